"""LyCORIS's LoHa and LoKr as the plain LoRA that gives the same change, exactly.

    LoHa    (A₁B₁) ∘ (A₂B₂), an elementwise product: a LoRA of rank r², whose factors hold every
            pair of columns and of rows
    LoKr    W₁ ⊗ W₂, a Kronecker product, each whole or itself a product:
            (P₁Q₁) ⊗ (P₂Q₂) = (P₁ ⊗ P₂)(Q₁ ⊗ Q₂)

Source: LyCORIS (Yeh et al., 2023, arXiv 2309.14859), LoHa after FedPara (Hyeon-Woo et al., 2021,
arXiv 2108.06098).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from blora_nb.files.names import LOHA, LOKR


class PlainLoRA(NamedTuple):
    """A layer's change as a LoRA: b @ a."""

    method: str  # that it was made with, "LoHa" or "LoKr"
    a: Tensor  # lora_A [rank, in]
    b: Tensor  # lora_B [out, rank]
    divisor: int | None  # of an alpha; None where both factors of a LoKr are whole: it uses none


def as_lora(parts: dict[str, Tensor], largest: int) -> PlainLoRA:
    """The LoRA of one layer's change, given as {one of `names.PARTS`: matrix}.

    Args:
        largest: bytes that the result may take.

    Raises:
        ValueError: matrices are missing, too many, or do not fit together; the message goes on
            after a layer's name.
    """
    wrong = [part for part, matrix in parts.items() if matrix.ndim != 2 or 0 in matrix.shape]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} should be two-dimensional and not empty.")
    if parts.keys() <= set(LOHA):
        return _from_loha(parts, largest)
    if parts.keys() <= set(LOKR):
        return _from_lokr(parts, largest)
    raise ValueError(f"{', '.join(parts)} do not belong together.")


def _from_loha(parts: dict[str, Tensor], largest: int) -> PlainLoRA:
    a1, b1 = _product(parts, "hada_w1")
    a2, b2 = _product(parts, "hada_w2")
    out_features, in_features = a1.shape[0], b1.shape[1]
    other = [a2.shape[0], b2.shape[1]]
    if other != [out_features, in_features]:
        raise ValueError(
            f"the two products have the shapes {[out_features, in_features]} and {other}."
        )
    divisor = a1.shape[1]
    rank = divisor * a2.shape[1]
    _check_size(rank, out_features, in_features, largest)
    if rank >= min(out_features, in_features):
        return PlainLoRA("LoHa", *_of_whole_change((a1 @ b1) * (a2 @ b2)), divisor)
    a = (b1[:, None] * b2[None]).flatten(0, 1)
    b = (a1[:, :, None] * a2[:, None]).flatten(1)
    return PlainLoRA("LoHa", a, b, divisor)


def _from_lokr(parts: dict[str, Tensor], largest: int) -> PlainLoRA:
    factors, divisor = [], None
    for name in ("lokr_w1", "lokr_w2"):
        is_product = bool({f"{name}_a", f"{name}_b"} & parts.keys())
        if name in parts and is_product:
            raise ValueError(f"{name} is there whole and as a product.")
        if name in parts:
            factors.append(_of_whole_change(parts[name]))
        else:
            left, right = _product(parts, name)
            factors.append((right, left))
            divisor = right.shape[0]
    (a1, b1), (a2, b2) = factors
    out_features, in_features = b1.shape[0] * b2.shape[0], a1.shape[1] * a2.shape[1]
    rank = a1.shape[0] * a2.shape[0]
    _check_size(rank, out_features, in_features, largest)
    if rank >= min(out_features, in_features):
        return PlainLoRA("LoKr", *_of_whole_change(torch.kron(b1 @ a1, b2 @ a2)), divisor)
    return PlainLoRA("LoKr", torch.kron(a1, a2), torch.kron(b1, b2), divisor)


def _product(parts: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """The two matrices whose product is called `name`."""
    left, right = f"{name}_a", f"{name}_b"
    missing = [part for part in (left, right) if part not in parts]
    if missing:
        raise ValueError(f"{', '.join(missing)} is missing; the file is incomplete.")
    a, b = parts[left], parts[right]
    if a.shape[1] != b.shape[0]:
        raise ValueError(
            f"{left} {list(a.shape)} and {right} {list(b.shape)} cannot be multiplied."
        )
    return a, b


def _of_whole_change(change: Tensor) -> tuple[Tensor, Tensor]:
    """(lora_A, lora_B) of a change given as one matrix: the other is the identity."""
    rows, columns = change.shape
    return (change, torch.eye(rows)) if rows <= columns else (torch.eye(columns), change)


def _check_size(rank: int, out_features: int, in_features: int, largest: int) -> None:
    """Before anything is multiplied; the result is never of a higher rank than its smaller side."""
    if 4 * min(rank, out_features, in_features) * (out_features + in_features) > largest:
        raise ValueError(
            f"its change, {out_features:,} by {in_features:,} numbers, is too large for a B-LoRA."
        )
