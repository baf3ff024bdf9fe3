"""LyCORIS's LoHa and LoKr as the plain LoRA that gives the same change: exactly, and so of a higher rank.

    LoHa    (A₁B₁) ∘ (A₂B₂), an elementwise product: a LoRA of rank r², whose factors hold every pair of columns and of rows
    LoKr    W₁ ⊗ W₂, a Kronecker product, each whole or itself a product: (P₁Q₁) ⊗ (P₂Q₂) = (P₁ ⊗ P₂)(Q₁ ⊗ Q₂)

Source: LyCORIS (Yeh et al., 2023, arXiv 2309.14859), LoHa after FedPara (Hyeon-Woo et al., 2021, arXiv 2108.06098).
"""

import torch

LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
PARTS = (*LOHA, *LOKR)


def as_lora(parts, largest):
    """The LoRA of one layer's change.

    Args:
        parts: {one of `PARTS`: matrix}, of one layer. largest: bytes that the result may take.

    Returns:
        (method, lora_A [R, in], lora_B [out, R], rank): `rank` divides an alpha; None where both factors of a LoKr are whole, which uses no alpha.

    Raises:
        ValueError: matrices are missing, too many, or do not fit together; in words that go on after a layer's name.
    """
    if wrong := [part for part, matrix in parts.items() if matrix.ndim != 2 or 0 in matrix.shape]:
        raise ValueError(f"{', '.join(wrong)} should be two-dimensional and not empty.")
    if set(parts) <= set(LOHA):
        return "LoHa", *_loha(*_all(parts, LOHA), largest)
    if set(parts) <= set(LOKR):
        return "LoKr", *_lokr(parts, largest)
    raise ValueError(f"{', '.join(parts)} do not belong together.")


def _all(parts, names):
    if missing := [name for name in names if name not in parts]:
        raise ValueError(f"{', '.join(missing)} is missing; the file is incomplete.")
    return [parts[name] for name in names]


def _whole(change):
    """(lora_A, lora_B) of a change that is given as one matrix: it stands on its longer side, beside ones."""
    rows, columns = change.shape
    return (change, torch.eye(rows)) if rows <= columns else (torch.eye(columns), change)


def _check_chain(a, b, names):
    if a.shape[1] != b.shape[0]:
        raise ValueError(
            f"{names[0]} {list(a.shape)} and {names[1]} {list(b.shape)} cannot be multiplied."
        )


def _check_size(rank, out_features, in_features, largest):
    """Before anything is multiplied; the result is never of a higher rank than its smaller side."""
    if 4 * min(rank, out_features, in_features) * (out_features + in_features) > largest:
        raise ValueError(
            f"its change, {out_features:,} by {in_features:,} numbers, is too large for a B-LoRA."
        )


def _loha(a1, b1, a2, b2, largest):
    _check_chain(a1, b1, LOHA[:2])
    _check_chain(a2, b2, LOHA[2:])
    (out_features, rank), in_features = a1.shape, b1.shape[1]
    if a2.shape[0] != out_features or b2.shape[1] != in_features:
        raise ValueError(
            f"the two products have the shapes {[out_features, in_features]} and {[a2.shape[0], b2.shape[1]]}."
        )
    _check_size(rank * a2.shape[1], out_features, in_features, largest)
    if rank * a2.shape[1] >= min(out_features, in_features):
        return *_whole((a1 @ b1) * (a2 @ b2)), rank
    return (b1[:, None] * b2[None]).flatten(0, 1), (a1[:, :, None] * a2[:, None]).flatten(1), rank


def _lokr(parts, largest):
    factors, ranks = [], []
    for name in ("lokr_w1", "lokr_w2"):
        if name in parts and not {f"{name}_a", f"{name}_b"} & set(parts):
            factors.append(_whole(parts[name]))
        elif name in parts:
            raise ValueError(f"{name} is there whole and as a product.")
        else:
            left, right = _all(parts, (f"{name}_a", f"{name}_b"))
            _check_chain(left, right, (f"{name}_a", f"{name}_b"))
            factors.append((right, left))
            ranks.append(right.shape[0])
    (a1, b1), (a2, b2) = factors
    out_features, in_features, rank = (
        b1.shape[0] * b2.shape[0],
        a1.shape[1] * a2.shape[1],
        a1.shape[0] * a2.shape[0],
    )
    _check_size(rank, out_features, in_features, largest)
    alphas_rank = ranks[-1] if ranks else None
    if rank >= min(out_features, in_features):
        return *_whole(torch.kron(b1 @ a1, b2 @ a2)), alphas_rank
    return torch.kron(a1, a2), torch.kron(b1, b2), alphas_rank
