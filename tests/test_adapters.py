"""A B-LoRA on disk and in a pipeline: exact files, linear alphas, nothing silently ignored, no trace left."""

import pytest
import torch
from safetensors.torch import save_file

from blora_nb import BLoRA, generate
from blora_nb.adapters import FILE_NAME, BLoRAError, applied, apply, remove, set_alphas
from blora_nb.blocks import half_of


def effective_weights(pipe):
    """Every attention weight of the U-Net as it acts now, LoRA included."""
    weights = {}
    for name, module in pipe.unet.named_modules():
        if hasattr(module, "lora_A"):
            weights[name] = module.get_base_layer().weight + sum(module.get_delta_weight(a) for a in module.active_adapters if a in module.lora_A)
    return weights


def test_file_round_trip_is_exact_and_plain_diffusers_reads_it(pipe, blora, tmp_path):
    file = blora.save(tmp_path)
    assert file.name == FILE_NAME
    again = BLoRA.load(tmp_path)
    assert again.halves == ("content", "style") and again.rank == 16 and again.metadata["training"] == blora.metadata["training"]
    assert all(torch.equal(t, again.state_dict[k]) for k, t in blora.state_dict.items())
    with pytest.raises(FileExistsError, match="exists already"):
        blora.save(tmp_path)
    remove(pipe)
    pipe.load_lora_weights(tmp_path)  # without our code
    assert pipe.get_list_adapters() and len(effective_weights(pipe)) == 32
    remove(pipe)


def test_halves_are_disjoint_and_complete(blora):
    content, style = blora.content, blora.style
    assert content.halves == ("content",) and style.halves == ("style",)
    assert content.state_dict.keys() | style.state_dict.keys() == blora.state_dict.keys()
    with pytest.raises(BLoRAError, match="no style half"):
        content.style


@pytest.mark.parametrize("prefix", ["unet.unet.", "unet.", ""])
def test_known_spellings_load_the_same(blora, tmp_path, prefix):
    save_file({prefix + k.removeprefix("unet."): t for k, t in blora.state_dict.items()}, tmp_path / "x.safetensors")
    assert BLoRA.load(tmp_path / "x.safetensors").state_dict.keys() == blora.state_dict.keys()


def test_the_oldest_diffusers_spelling_loads(blora, tmp_path):
    def old(key):
        for projection in ("to_q", "to_k", "to_v"):
            key = key.replace(f".{projection}.", f".processor.{projection}_lora.")
        return key.replace(".to_out.0.", ".processor.to_out_lora.").replace("lora_A", "down").replace("lora_B", "up")

    save_file({old(k): t for k, t in blora.state_dict.items()}, tmp_path / "x.safetensors")
    assert BLoRA.load(tmp_path / "x.safetensors").state_dict.keys() == blora.state_dict.keys()


def test_what_is_no_blora_is_an_error_with_its_name(blora, tmp_path):
    whole = next(iter(blora.state_dict.items()))
    cases = {
        "other_block": {whole[0].replace("up_blocks.0", "down_blocks.2"): whole[1]},
        "half_a_pair": {whole[0]: whole[1]},
        "other_format": {"lora_unet_something.alpha": torch.ones(1)},
        "not_a_number": {**blora.state_dict, whole[0]: whole[1] * float("nan")},
    }
    for name, tensors in cases.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(BLoRAError, match=name):
            BLoRA.load(tmp_path / f"{name}.safetensors")
    good = blora.save(tmp_path / "good.safetensors").read_bytes()
    for name, data in {"cut": good[: len(good) // 2], "empty": b"", "pickle": b"\x80\x04K\x01."}.items():
        (tmp_path / f"{name}.safetensors").write_bytes(data)
        with pytest.raises(BLoRAError, match=name):
            BLoRA.load(tmp_path / f"{name}.safetensors")
    with pytest.raises(BLoRAError, match="no file"):
        BLoRA.load(tmp_path / "missing.safetensors")


@pytest.mark.parametrize("alphas", [(1.0, 1.0), (0.5, -1.5), (0.0, 2.0)])
def test_alphas_are_linear_and_signed(pipe, blora, alphas):
    apply(pipe, blora, blora)
    set_alphas(pipe, *alphas)
    strength = dict(zip(("content", "style"), alphas))
    for name, acting in effective_weights(pipe).items():
        module = pipe.unet.get_submodule(name)
        key = f"unet.{name}.lora_{{}}.weight"
        change = blora.state_dict[key.format("B")] @ blora.state_dict[key.format("A")]
        torch.testing.assert_close(acting, module.get_base_layer().weight + strength[half_of(name + ".")] * change, atol=1e-5, rtol=1e-5)
    remove(pipe)


def test_applying_again_replaces_and_removing_leaves_no_trace(pipe, blora):
    remove(pipe)
    plain = generate(pipe, "A cat", seeds=3, num_inference_steps=3, progress=False)[0]
    once = generate(pipe, "A cat", blora, blora, seeds=3, num_inference_steps=3, progress=False)[0]
    twice = generate(pipe, "A cat", blora, blora, seeds=3, num_inference_steps=3, progress=False)[0]
    off = generate(pipe, "A cat", blora, blora, 0.0, 0.0, seeds=3, num_inference_steps=3, progress=False)[0]
    assert applied(pipe) == ["content", "style"] and once.tobytes() == twice.tobytes() != plain.tobytes()
    assert max(abs(a - b) for a, b in zip(off.tobytes(), plain.tobytes())) <= 1
    assert generate(pipe, "A cat", seeds=3, num_inference_steps=3, progress=False)[0].tobytes() == plain.tobytes()
    assert applied(pipe) == []
