"""Files of LyCORIS's LoHa and LoKr: the LoRA that is read gives the same change.

What does not fit together is named.
"""

import json

import pytest
import torch
from safetensors.torch import save_file

from blora_nb.errors import BLoRAError
from blora_nb.files.lycoris import as_lora
from blora_nb.lora import BLoRA
from test_formats import changes, made

# of the layer whose matrices a test spoils
ROWS, COLUMNS = 144, 144


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) / 4


def loha(rank):
    """(matrices, change) of an [out, in] layer, alpha 2."""

    def of(rows, columns):
        a1, b1 = random(rows, rank), random(rank, columns)
        a2, b2 = random(rows, rank + 1), random(rank + 1, columns)
        matrices = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2}
        return matrices, (a1 @ b1) * (a2 @ b2) * 2 / rank

    return of


def lokr_product(rows, columns):
    whole, a, b = random(8, 4), random(rows // 8, 3), random(3, columns // 4)
    return {"lokr_w1": whole, "lokr_w2_a": a, "lokr_w2_b": b}, torch.kron(whole, a @ b) * 2 / 3


def lokr_products(rows, columns):
    one, two, a, b = random(8, 1), random(1, 4), random(rows // 8, 1), random(1, columns // 4)
    matrices = {"lokr_w1_a": one, "lokr_w1_b": two, "lokr_w2_a": a, "lokr_w2_b": b}
    return matrices, torch.kron(one @ two, a @ b) * 2


def lokr_whole(rows, columns):
    """Its alpha means nothing: LyCORIS writes whatever the rank would have been."""
    one, two = random(8, 4), random(rows // 8, columns // 4)
    return {"lokr_w1": one, "lokr_w2": two}, torch.kron(one, two)


METHODS = {
    "LoHa": (loha(3), 12),
    "LoHa of high rank": (loha(13), 144),
    "LoKr, one product": (lokr_product, 12),
    "LoKr, two products": (lokr_products, 1),
    "LoKr, whole": (lokr_whole, "72 to 144"),
}


def written(file, of, spoil=None):
    """A file with LyCORIS's names for the two blocks; returns {layer: change}."""
    tensors, wanted = {}, {}
    for layer, change in changes(made(feed_forward=True)).items():
        matrices, wanted[layer] = of(*change.shape)
        if spoil and layer.endswith("attentions.0.proj_in"):
            spoil(matrices)
        name = "lycoris_" + layer.replace(".", "_")
        tensors |= {f"{name}.{part}": matrix for part, matrix in matrices.items()}
        tensors[f"{name}.alpha"] = torch.tensor(2.0)
    save_file(tensors, file)
    return wanted


@pytest.mark.parametrize("method", METHODS)
def test_the_change_is_the_same_and_the_method_is_said(tmp_path, method):
    of, rank = METHODS[method]
    wanted = written(tmp_path / "x.safetensors", of)
    with pytest.warns(UserWarning, match=f"{method[:4]}, read as the LoRA .* of rank {rank}[ .]"):
        blora = BLoRA.load(tmp_path / "x.safetensors")
    assert changes(blora).keys() == wanted.keys()
    for layer, change in changes(blora).items():
        torch.testing.assert_close(change, wanted[layer], atol=1e-5, rtol=1e-5)
    again = BLoRA.load(blora.save(tmp_path / "plain.safetensors", "kohya"))
    torch.testing.assert_close(changes(again), changes(blora), atol=0, rtol=0)


FAULTS = {
    "a matrix is missing": (
        loha(3),
        lambda m: m.pop("hada_w2_b"),
        "attentions.0.proj_in: hada_w2_b is missing",
    ),
    "another rank": (
        loha(3),
        lambda m: m.update(hada_w1_b=random(5, COLUMNS)),
        r"hada_w1_a \[144, 3\] and hada_w1_b \[5, 144\] cannot be multiplied",
    ),
    "two sizes": (
        loha(3),
        lambda m: m.update(hada_w2_a=random(9, 4)),
        r"two products have the shapes \[144, 144\] and \[9, 144\]",
    ),
    "one number": (
        loha(3),
        lambda m: m.update(hada_w1_a=torch.ones(())),
        "hada_w1_a should be two-dimensional",
    ),
    "both methods": (loha(3), lambda m: m.update(lokr_w1=random(2, 2)), "do not belong together"),
    "a LoRA besides": (
        loha(3),
        lambda m: m.update({"lora_down.weight": random(4, COLUMNS)}),
        "matrices of a LoRA beside hada_w1_a",
    ),
    "whole and a product": (
        lokr_product,
        lambda m: m.update(lokr_w1_a=random(8, 1)),
        "lokr_w1 is there whole and as a product",
    ),
    "half a product": (lokr_product, lambda m: m.pop("lokr_w2_b"), "lokr_w2_b is missing"),
    "another width": (
        lokr_product,
        lambda m: m.update(lokr_w1=random(8, 8)),
        r"proj_in.*should be \[rank, 144\]",
    ),
    "not a number": (
        loha(3),
        lambda m: m.update(hada_w1_a=torch.full((ROWS, 3), float("nan"))),
        "NaN",
    ),
    "more than there is memory": (
        lokr_whole,
        lambda m: m.update(lokr_w1=torch.ones(4000, 4000), lokr_w2=torch.ones(900, 900)),
        "3,600,000 by 3,600,000 numbers, is too large",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_together_is_named(tmp_path, fault):
    of, spoil, message = FAULTS[fault]
    written(tmp_path / "x.safetensors", of, spoil)
    with pytest.raises(BLoRAError, match=message):
        BLoRA.load(tmp_path / "x.safetensors")


def test_the_memory_is_counted_before_anything_is_multiplied():
    matrices = {"lokr_w1": torch.ones(10, 10), "lokr_w2": torch.ones(10, 10)}
    size = 4 * 100 * 200
    assert as_lora(matrices, size)[1].numel() == 100 * 100
    with pytest.raises(ValueError, match="too large"):
        as_lora(matrices, size - 1)


def test_the_same_methods_from_peft_are_refused_because_their_alphas_differ(tmp_path):
    blora = made()
    blora.save(tmp_path, "peft")
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "LOHA"}))
    with pytest.raises(BLoRAError, match="PEFT's LOHA"):
        BLoRA.load(tmp_path)
