"""A B-LoRA on disk and in a pipeline.

Exact files, linear alphas, nothing silently ignored, no trace left.
"""

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file

from blora_nb.blocks import half_of
from blora_nb.errors import BLoRAError, PipelineWarning
from blora_nb.files.locating import FILE_NAME
from blora_nb.generation import generate
from blora_nb.lora import (
    BLoRA,
    applied,
    applied_alphas,
    apply,
    combine,
    from_original_alpha,
    mix,
    only_half,
    remove,
    set_alphas,
)


def effective_weights(pipe):
    """Every attention weight of the U-Net as it acts now, LoRA included."""
    weights = {}
    for name, module in pipe.unet.named_modules():
        if hasattr(module, "lora_A"):
            weights[name] = module.get_base_layer().weight + sum(
                module.get_delta_weight(a) for a in module.active_adapters if a in module.lora_A
            )
    return weights


def cut_to(blora, rank):
    """A B-LoRA with only the first `rank` rows and columns."""
    return BLoRA(
        {k: t[:rank] if "lora_A" in k else t[:, :rank] for k, t in blora.state_dict.items()}
    )


def change_of(blora, layer):
    a, b = blora.layers[layer]
    return b @ a


def test_file_round_trip_is_exact_and_plain_diffusers_reads_it(pipe, blora, tmp_path):
    file = blora.save(tmp_path)
    assert file.name == FILE_NAME
    again = BLoRA.load(tmp_path)
    assert again.halves == ("content", "style")
    assert again.rank == 32
    assert again.metadata["training"] == blora.metadata["training"]
    assert all(torch.equal(t, again.state_dict[k]) for k, t in blora.state_dict.items())
    with pytest.raises(FileExistsError, match="exists already"):
        blora.save(tmp_path)
    remove(pipe)
    # without our code
    pipe.load_lora_weights(tmp_path)
    assert pipe.get_list_adapters()
    assert len(effective_weights(pipe)) == 32
    remove(pipe)


def test_pefts_two_files_are_written_together_or_not_at_all(blora, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(OSError, match="No space left"):
            blora.save(tmp_path / "x", "peft")
    assert list((tmp_path / "x").iterdir()) == []
    blora.save(tmp_path / "x", "peft")
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_a_file_is_read_once_for_a_picture(pipe, blora, tmp_path, monkeypatch):
    file, load, read = blora.save(tmp_path), BLoRA.load, []

    def counted(source):
        read.append(source)
        return load(source)

    monkeypatch.setattr(BLoRA, "load", counted)
    image = generate(
        pipe, "A [v]", content=[(file, 0.5)], style=tmp_path, num_inference_steps=1, progress=False
    )[0]
    made_with = image.info["blora_nb"]
    assert read == [file, tmp_path]
    assert made_with["content_B_LoRA"] == [str(file)]
    assert made_with["content_weights"] == [0.5]
    assert made_with["style_fingerprint"] == blora.style.fingerprint
    assert made_with["content_fingerprint"] == mix("content", [(blora, 0.5)]).fingerprint


def test_a_lora_that_was_switched_off_is_on_again(pipe, blora):
    options = {"num_inference_steps": 1, "progress": False}
    plain = generate(pipe, "A [v]", **options)[0]
    styled = generate(pipe, "A [v]", style=blora, **options)[0]
    pipe.disable_lora()
    again = generate(pipe, "A [v]", style=blora, **options)[0]
    assert again.tobytes() == styled.tobytes() != plain.tobytes()


def test_what_others_switched_on_beside_the_halves_is_not_switched_off_silently(fresh, blora):
    apply(fresh, blora)
    fresh.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), adapter_name="mine")
    fresh.unet.set_adapters(["content", "mine"])
    with pytest.warns(PipelineWarning, match="The LoRA mine, .* is switched off"):
        set_alphas(fresh, content_alpha=0.5)


def test_the_metadata_of_several_are_what_is_true_of_all(blora):
    one = BLoRA(blora.state_dict, {"base_model": "b", "learned": "x", "modelspec.license": "mit"})
    two = BLoRA(blora.state_dict, {"base_model": "b", "learned": "y", "modelspec.license": "own"})
    both = {"base_model": "b", "modelspec.license": "mit and own"}
    assert combine(one, two).metadata == both
    assert combine(one, one).metadata == one.metadata
    weak = combine(one, content_alpha=0.3).metadata
    assert weak == {"base_model": "b", "modelspec.license": "mit", "content_alpha": "0.3"}
    weaker = combine(combine(one, content_alpha=0.3), content_alpha=0.5)
    assert weaker.metadata["content_alpha"] == "0.3 × 0.5"
    nameless = BLoRA(blora.state_dict)
    assert combine(one, nameless).metadata == {"modelspec.license": "mit and unknown"}


@pytest.mark.parametrize("use", [apply, combine])
@pytest.mark.parametrize(
    ("name", "alpha"), [("content_alpha", float("nan")), ("style_alpha", float("inf"))]
)
def test_alphas_that_are_no_numbers_are_refused(pipe, blora, use, name, alpha):
    arguments = [pipe, blora, blora] if use is apply else [blora, blora]
    with pytest.raises(ValueError, match=f"{name} must be an ordinary number"):
        use(*arguments, **{name: alpha})


def test_weights_that_are_no_numbers_are_refused(blora):
    with pytest.raises(ValueError, match="a weight of the style half"):
        mix("style", [(blora, float("nan"))])


def test_files_that_would_change_nothing_are_refused(blora, tmp_path):
    with pytest.raises(BLoRAError, match="All alphas are 0"):
        combine(style=blora, style_alpha=0)
    weak = combine(style=blora, style_alpha=1e-9)
    with pytest.raises(BLoRAError, match="too small for float16"):
        weak.save(tmp_path / "x.safetensors", dtype=torch.float16)


def test_a_picture_of_nan_is_an_error_with_its_seed(pipe, blora):
    options = {"style_alpha": 1e30, "seeds": 3, "num_inference_steps": 2, "progress": False}
    with pytest.raises(ValueError, match="NaN instead of a picture for the seed 3.*smaller alphas"):
        generate(pipe, "A", style=blora, **options)


def test_halves_are_disjoint_and_complete(blora):
    content, style = blora.content, blora.style
    assert content.halves == ("content",)
    assert style.halves == ("style",)
    assert content.state_dict.keys() | style.state_dict.keys() == blora.state_dict.keys()
    with pytest.raises(BLoRAError, match="no style half"):
        _ = content.style


OF_ANOTHER_KIND = {
    "other_block": lambda key, t: {key.replace("up_blocks.0", "down_blocks.2"): t},
    "half_a_pair": lambda key, t: {key: t},
    "other_format": lambda key, t: {"lora_unet_something.alpha": torch.ones(1)},
    "not_a_number": lambda key, t: {key: t * float("nan")},
}


@pytest.mark.parametrize("name", OF_ANOTHER_KIND)
def test_weights_that_are_no_blora_are_an_error_with_the_files_name(blora, tmp_path, name):
    tensors = OF_ANOTHER_KIND[name](*next(iter(blora.state_dict.items())))
    if name == "not_a_number":
        tensors = blora.state_dict | tensors
    save_file(tensors, tmp_path / f"{name}.safetensors")
    with pytest.raises(BLoRAError, match=name):
        BLoRA.load(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize("name", ["cut", "empty", "pickle"])
def test_what_is_no_safetensors_file_is_an_error_with_its_name(blora, tmp_path, name):
    file = tmp_path / f"{name}.safetensors"
    whole = blora.save(tmp_path / "good.safetensors").read_bytes()
    file.write_bytes(
        {"cut": whole[: len(whole) // 2], "empty": b"", "pickle": b"\x80\x04K\x01."}[name]
    )
    with pytest.raises(BLoRAError, match=name):
        BLoRA.load(file)


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(BLoRAError, match="no file"):
        BLoRA.load(tmp_path / "missing.safetensors")


@pytest.mark.parametrize("alphas", [(1.0, 1.0), (0.5, -1.5), (0.0, 2.0)])
def test_alphas_are_linear_and_signed(pipe, blora, alphas):
    apply(pipe, blora, blora)
    set_alphas(pipe, content_alpha=alphas[0])
    set_alphas(pipe, style_alpha=alphas[1])  # leaves the other as it is
    strength = dict(zip(("content", "style"), alphas))
    for name, acting in effective_weights(pipe).items():
        alpha = strength[half_of(name + ".")]
        base = pipe.unet.get_submodule(name).get_base_layer().weight
        expected = base + alpha * change_of(blora, name)
        torch.testing.assert_close(acting, expected, atol=1e-5, rtol=1e-5)
    remove(pipe)


@pytest.mark.parametrize("how", ["set_alphas", "apply", "generate"])
def test_an_alpha_of_a_half_that_is_not_there_is_refused(pipe, blora, how):
    """0 and the default are not: a half that is not there does not act."""
    apply(pipe, style=blora, content_alpha=0.0)
    call = {
        "set_alphas": lambda: set_alphas(pipe, content_alpha=1.0),
        "apply": lambda: apply(pipe, style=blora, content_alpha=0.5),
        "generate": lambda: generate(pipe, "A cat", style=blora, content_alpha=-1, progress=False),
    }
    with pytest.raises(ValueError, match=r"content_alpha is .* no content half.*content=…"):
        call[how]()
    assert applied(pipe) == ["style"]
    set_alphas(pipe, 0.0, 0.5)
    assert applied_alphas(pipe) == (0.0, 0.5)
    remove(pipe)


def test_an_alpha_is_kept_while_the_other_changes_after_a_half_alone(pipe, blora):
    apply(pipe, blora, blora, content_alpha=0.5)
    with only_half(pipe, "style"):
        pass
    set_alphas(pipe, style_alpha=0.25)
    strength = {"content": 0.5, "style": 0.25}
    for name, acting in effective_weights(pipe).items():
        base = pipe.unet.get_submodule(name).get_base_layer().weight
        expected = base + strength[half_of(name + ".")] * change_of(blora, name)
        torch.testing.assert_close(acting, expected, atol=1e-5, rtol=1e-5)
    remove(pipe)


def test_applying_again_replaces_and_removing_leaves_no_trace(pipe, blora):
    remove(pipe)

    def draw(*halves):
        options = {"seeds": 3, "num_inference_steps": 3, "progress": False}
        return generate(pipe, "A cat", *halves, **options)[0].tobytes()

    plain, once, twice = draw(), draw(blora, blora), draw(blora, blora)
    off = draw(blora, blora, 0.0, 0.0)
    assert applied(pipe) == ["content", "style"]
    assert once == twice != plain
    assert max(abs(a - b) for a, b in zip(off, plain)) <= 1
    assert draw() == plain
    assert applied(pipe) == []


def test_styles_of_several_bloras_are_mixed_by_weight_whatever_their_ranks(pipe, blora):
    other = cut_to(BLoRA({k: t.roll(1, -1) for k, t in blora.state_dict.items()}), 5)
    style = [(blora, 0.25), (other.style, 2.0), (blora, -0.5)]
    apply(pipe, [blora, (other, -0.5)], style=style, content_alpha=2.0)
    for name, acting in effective_weights(pipe).items():
        first, second = change_of(blora, name), change_of(other, name)
        if half_of(name + ".") == "content":
            change = 2 * (first - 0.5 * second)
        else:
            change = -0.25 * first + 2 * second
        expected = pipe.unet.get_submodule(name).get_base_layer().weight + change
        torch.testing.assert_close(acting, expected, atol=2e-5, rtol=1e-5)
    assert applied(pipe) == ["content", "style"]
    remove(pipe)
    with pytest.raises(BLoRAError, match="empty"):
        mix("style", [])
    with pytest.raises(BLoRAError, match="no style half"):
        mix("style", [blora, blora.content])


def test_ranks_may_differ_from_layer_to_layer(pipe, blora):
    state_dict = {}
    for i, (layer, (a, b)) in enumerate(blora.layers.items()):
        rank = 1 + i % 7
        state_dict[f"unet.{layer}.lora_A.weight"] = a[:rank]
        state_dict[f"unet.{layer}.lora_B.weight"] = b[:, :rank]
    ragged = BLoRA(state_dict)
    apply(pipe, ragged, ragged)
    for name, acting in effective_weights(pipe).items():
        expected = pipe.unet.get_submodule(name).get_base_layer().weight + change_of(ragged, name)
        torch.testing.assert_close(acting, expected, atol=1e-5, rtol=1e-5)
    remove(pipe)


@pytest.mark.parametrize("alpha", [1.1, 0.5, -1.0])
def test_published_alphas_are_translated(alpha):
    """The original multiplies both matrices by its alpha."""
    down, up = torch.randn(2, 5), torch.randn(5, 2)
    ours = from_original_alpha(alpha) * (up @ down)
    torch.testing.assert_close(ours, (alpha * up) @ (alpha * down))


def quantize(unet, kind):
    """Replace the linear layers of the transformer blocks as bitsandbytes does.

    diffusers allows it on a GPU only.
    """
    import bitsandbytes as bnb

    for name, module in list(unet.named_modules()):
        if type(module) is torch.nn.Linear and "transformer_blocks" in name:
            size = module.in_features, module.out_features, module.bias is not None
            if kind == "8bit":
                new = bnb.nn.Linear8bitLt(*size, has_fp16_weights=False)
                new.weight = bnb.nn.Int8Params(
                    module.weight.data.clone(), requires_grad=False, has_fp16_weights=False
                )
            else:
                new = bnb.nn.Linear4bit(*size, compute_dtype=torch.float32, quant_type="nf4")
                new.weight = bnb.nn.Params4bit(
                    module.weight.data.clone(), requires_grad=False, quant_type="nf4"
                )
            new.bias = module.bias
            unet.set_submodule(name, new.to("cpu"))
    # PEFT takes its own layers for such a base
    setattr(unet, f"is_loaded_in_{kind}", True)


@pytest.mark.parametrize("base", ["float16", "bfloat16", "8bit", "4bit"])
def test_halves_act_on_small_number_formats_and_leave_no_trace(base):
    from blora_nb.pipeline import load_pipeline
    from test_formats import made

    blora = made()
    if base.endswith("bit"):
        pytest.importorskip("bitsandbytes")
        pipe = load_pipeline(device="cpu")
        quantize(pipe.unet, base)
    else:
        pipe = load_pipeline(device="cpu", dtype=getattr(torch, base))
    dtype = torch.float32 if base.endswith("bit") else pipe.unet.dtype
    inputs = torch.randn(1, 3, 192, generator=torch.Generator().manual_seed(0)).to(dtype)
    layers = {
        block: f"up_blocks.0.attentions.{n}.transformer_blocks.0.attn2.to_v"
        for n, block in enumerate(("content", "style"))
    }

    def answers():
        with torch.no_grad():
            return {
                half: pipe.unet.get_submodule(layer)(inputs).float()
                for half, layer in layers.items()
            }

    plain = answers()
    weights = pipe.unet.state_dict().items()
    before = {name: t.clone() for name, t in weights if torch.is_tensor(t)}
    # the second time in place of the first
    for _ in range(2):
        apply(pipe, blora, [(blora, 0.5), (blora, 0.5)], 1.0, -0.5)
        for half, strength in (("content", 1.0), ("style", -0.5)):
            expected = strength * inputs.float() @ change_of(blora, layers[half]).T
            assert (answers()[half] - plain[half] - expected).norm() < 0.02 * expected.norm()
    remove(pipe)
    after = pipe.unet.state_dict()
    assert applied(pipe) == []
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    assert all(torch.equal(answers()[half], plain[half]) for half in layers)
