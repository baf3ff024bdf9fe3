"""Files of other tools in, files for other tools out: exact round trips, names by the rules of those tools, clear refusals."""

import json
import re
import time
import warnings

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from blora_nb.blocks import BLOCK_OF_HALF
from blora_nb.errors import BLoRAError, BLoRAWarning
from blora_nb.files.lora_settings import PEFT_CONFIG
from blora_nb.files.state_dict_checks import base_of
from blora_nb.lora import BLoRA, _check_fits, apply, combine, remove
from random_sdxl import unet_config

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def made(width=104, context=128, depth=2, rank=lambda layer: 4, feed_forward=False, seed=0):
    """A B-LoRA with random weights; `rank` may differ from layer to layer."""
    generator, state_dict = torch.Generator().manual_seed(seed), {}
    for block in BLOCK_OF_HALF.values():
        layers = [
            (
                f"{block}.transformer_blocks.{i}.attn{a}.{p}",
                width,
                context if a == 2 and p in ("to_k", "to_v") else width,
            )
            for i in range(depth)
            for a in (1, 2)
            for p in PROJECTIONS
        ]
        if feed_forward:
            layers += [(f"{block}.proj_in", width, width), (f"{block}.proj_out", width, width)]
            layers += [
                (f"{block}.transformer_blocks.{i}.{n}", *s)
                for i in range(depth)
                for n, s in (
                    ("ff.net.0.proj", (8 * width, width)),
                    ("ff.net.2", (width, 4 * width)),
                )
            ]
        for layer, out_features, in_features in layers:
            r = rank(layer)
            state_dict[f"unet.{layer}.lora_A.weight"] = torch.randn(
                r, in_features, generator=generator
            )
            state_dict[f"unet.{layer}.lora_B.weight"] = torch.randn(
                out_features, r, generator=generator
            )
    return BLoRA(state_dict, {"training": json.dumps({"instance_prompt": "A [v]"})})


def mixed_rank(layer):
    return 3 if "attentions.0" in layer else 6 if "attn2" in layer else 2


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(t, other[key]) for key, t in one.items())


def changes(blora):
    return {layer: b @ a for layer, (a, b) in blora.layers.items()}


@pytest.mark.parametrize("format", ["diffusers", "peft", "kohya", "sgm"])
@pytest.mark.parametrize(
    "blora", [made(), made(rank=mixed_rank, feed_forward=True)], ids=["one rank", "mixed ranks"]
)
def test_round_trips_are_exact(tmp_path, format, blora):
    again = BLoRA.load(blora.save(tmp_path / "whole", format))
    assert same(blora.state_dict, again.state_dict)
    assert again.metadata["training"] == blora.metadata["training"]
    assert not again.notes
    half = BLoRA.load(blora.style.save(tmp_path / "style", format))
    assert half.halves == ("style",)
    assert same(blora.style.state_dict, half.state_dict)
    assert again.fingerprint == blora.fingerprint != half.fingerprint
    assert not list(tmp_path.rglob("*.part"))


def test_a_written_file_of_any_format_acts_the_same_in_plain_diffusers(pipe, tmp_path):
    blora = made(rank=mixed_rank)
    for format in ("diffusers", "kohya", "sgm"):
        remove(pipe)
        pipe.load_lora_weights(
            blora.save(tmp_path / f"{format}.safetensors", format)
        )  # without our code
        acting = {
            n: m.get_delta_weight(m.active_adapters[0])
            for n, m in pipe.unet.named_modules()
            if hasattr(m, "get_delta_weight") and m.r
        }
        assert acting.keys() == changes(blora).keys()
        for layer, change in changes(blora).items():
            torch.testing.assert_close(acting[layer], change, atol=1e-5, rtol=1e-5)
    remove(pipe)


def test_peft_reads_what_is_written_for_it(pipe, tmp_path):
    import copy

    from peft import PeftModel

    blora = made(rank=mixed_rank)
    blora.save(tmp_path, "peft")
    unet = PeftModel.from_pretrained(copy.deepcopy(pipe.unet), tmp_path).base_model.model
    for layer, change in changes(blora).items():
        torch.testing.assert_close(
            unet.get_submodule(layer).get_delta_weight("default"), change, atol=1e-5, rtol=1e-5
        )


# What A1111 does with a name (its Lora extension): the part before the first dot must be, after lora_unet_ became diffusion_model_, a
# module of the model with dots as underscores; diffusers' up_blocks are first renamed, three attentions to a block.
def a1111_module(key):
    name = key.split(".", 1)[0]
    if match := re.fullmatch(r"lora_unet_up_blocks_(\d+)_attentions_(\d+)_(.+)", name):
        return f"diffusion_model_output_blocks_{3 * int(match[1]) + int(match[2])}_1_{match[3]}"
    return name.replace("lora_unet", "diffusion_model")


# What ComfyUI does: for each of the model's weights it looks for lora_unet_ + the name with underscores, and for the same under diffusers'
# name, + .lora_up.weight, .lora_down.weight, .alpha (scale alpha / rank; without alpha 1).
def comfyui_names(depth):
    """{name in a file: module of the model} for the two blocks, by both spellings."""
    names = {}
    for n, diffusers in enumerate(BLOCK_OF_HALF.values()):
        for i in range(depth):
            for a in (1, 2):
                for p in PROJECTIONS:
                    module = f"output_blocks.{n}.1.transformer_blocks.{i}.attn{a}.{p}"
                    for spelling in (module, module.replace(f"output_blocks.{n}.1", diffusers)):
                        names["lora_unet_" + spelling.replace(".", "_")] = module
    return names


@pytest.mark.parametrize("format", ["kohya", "sgm"])
def test_names_are_found_by_a1111_and_comfyui(tmp_path, format):
    blora = made(width=1280, context=2048, depth=10, rank=lambda layer: 2)
    tensors = load_file(blora.save(tmp_path / "x.safetensors", format))
    known = comfyui_names(10)
    stems = {key.split(".", 1)[0] for key in tensors}
    assert stems <= known.keys()
    assert len(stems) == 160
    assert len({known[s] for s in stems}) == 160
    assert {key.split(".", 1)[1] for key in tensors} == {
        "lora_up.weight",
        "lora_down.weight",
        "alpha",
    }
    assert {a1111_module(key) for key in tensors} == {
        "diffusion_model_" + module.replace(".", "_") for module in known.values()
    }
    if format == "sgm":
        assert all(
            stem.startswith(("lora_unet_output_blocks_0_1_", "lora_unet_output_blocks_1_1_"))
            for stem in stems
        )
    with safe_open(tmp_path / "x.safetensors", "pt") as opened:
        assert opened.metadata()["ss_base_model_version"].startswith(
            "sdxl_"
        )  # else A1111 hides it beside SDXL models
    stem = next(s for s in stems if known[s] == "output_blocks.1.1.transformer_blocks.9.attn2.to_v")
    scale = tensors[stem + ".alpha"].item() / tensors[stem + ".lora_down.weight"].shape[0]
    change = scale * tensors[stem + ".lora_up.weight"] @ tensors[stem + ".lora_down.weight"]
    assert torch.equal(
        change, changes(blora)["up_blocks.0.attentions.1.transformer_blocks.9.attn2.to_v"]
    )


def processors(key):
    for p in ("to_q", "to_k", "to_v"):
        key = key.replace(f".{p}.lora_", f".processor.{p}_lora.")
    return (
        key.replace(".to_out.0.lora_", ".processor.to_out_lora.")
        .replace("_lora.A", "_lora.down")
        .replace("_lora.B", "_lora.up")
    )


def diffusers_025(key):
    return key.replace("lora_A", "lora.down").replace("lora_B", "lora.up")


def sgm(key):
    return key.replace("up_blocks.0.attentions.0", "output_blocks.0.1").replace(
        "up_blocks.0.attentions.1", "output_blocks.1.1"
    )


def kohya(key):
    layer, part = key.removeprefix("unet.").split(".lora_")
    return f"lora_unet_{layer.replace('.', '_')}.lora_{'down' if part[0] == 'A' else 'up'}.weight"


SPELLINGS = {
    "diffusers": lambda k: k,
    "diffusers 0.25": diffusers_025,
    "doubled unet": lambda k: "unet." + diffusers_025(k),
    "processors": processors,
    "doubled processors": lambda k: "unet." + processors(k),
    "no prefix": lambda k: k.removeprefix("unet."),
    "peft": lambda k: "base_model.model." + k.removeprefix("unet."),
    "peft with adapter name": lambda k: (
        "base_model.model." + k.removeprefix("unet.").replace(".weight", ".default.weight")
    ),
    "layers of a whole U-Net": lambda k: diffusers_025(k).replace(".lora.", ".lora_layer."),
    "kohya": kohya,
    "kohya sgm": lambda k: kohya(sgm(k)),
    "lycoris": lambda k: kohya(sgm(k)).replace("lora_unet_", "lycoris_"),
    "comfyui": lambda k: "diffusion_model." + sgm(k).removeprefix("unet."),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_read(tmp_path, spelling):
    blora = made()
    save_file(
        {SPELLINGS[spelling](key): t for key, t in blora.state_dict.items()},
        tmp_path / "x.safetensors",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BLoRAWarning)
        again = BLoRA.load(tmp_path / "x.safetensors")
    assert same(blora.state_dict, again.state_dict)
    assert again.format
    expected = {"peft": PEFT_CONFIG, "kohya": "no layer has an", "lycoris": "no layer has an"}
    notes = [expected[name] for name in (spelling.split()[0],) if name in expected]
    assert len(again.notes) == len(notes)
    assert all(note in found for note, found in zip(notes, again.notes))


def test_files_of_diffusers_own_converter_are_read(tmp_path):
    from diffusers.utils import convert_all_state_dict_to_peft, convert_state_dict_to_kohya

    blora = made()
    for spelling in ("diffusers 0.25", "doubled unet"):
        converted = convert_state_dict_to_kohya(
            convert_all_state_dict_to_peft(
                {SPELLINGS[spelling](key): t for key, t in blora.state_dict.items()}
            )
        )
        save_file({key: t.contiguous() for key, t in converted.items()}, tmp_path / "x.safetensors")
        assert same(blora.state_dict, BLoRA.load(tmp_path / "x.safetensors").state_dict)


def test_layers_of_a_lycoris_preset_are_read(tmp_path):
    blora = made(feed_forward=True)  # LyCORIS trains every linear layer of a block
    tensors = {kohya(sgm(key)): t for key, t in blora.state_dict.items()}
    tensors |= {
        key.split(".")[0] + ".alpha": torch.tensor(1.0, dtype=torch.float16) for key in tensors
    }
    save_file(
        {
            key: t[:, :, None, None] if "proj_in" in key and t.ndim == 2 else t
            for key, t in tensors.items()
        },
        tmp_path / "x.safetensors",
    )  # 1 × 1 convolutions
    again = changes(BLoRA.load(tmp_path / "x.safetensors"))
    assert all(
        torch.equal(again[layer], change / 4) for layer, change in changes(blora).items()
    )  # alpha 1, rank 4


def test_alphas_are_taken_from_wherever_they_stand(tmp_path):
    blora = made(rank=mixed_rank)
    layer = "up_blocks.0.attentions.1.transformer_blocks.1.attn2.to_k"
    # diffusers writes PEFT's config into the header
    config = {
        "unet.r": 4,
        "unet.lora_alpha": 12,
        "unet.alpha_pattern": {f"^{layer}": 1.5, "attn1.to_q": 6},
    }
    save_file(
        {diffusers_025(k): t for k, t in blora.state_dict.items()},
        tmp_path / "a.safetensors",
        {"lora_adapter_metadata": json.dumps(config)},
    )
    # PEFT writes it beside
    save_file(
        {SPELLINGS["peft"](k): t for k, t in blora.state_dict.items()},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({k.removeprefix("unet."): v for k, v in config.items()})
    )
    for path in (tmp_path / "a.safetensors", tmp_path / "adapter_model.safetensors"):
        again = changes(BLoRA.load(path))
        for name, change in changes(blora).items():
            alpha = 1.5 if name == layer else 6 if name.endswith("attn1.to_q") else 12
            torch.testing.assert_close(again[name], change * alpha / mixed_rank(name))
    # kohya has one for each layer; where one is missing it counts as the rank, and that is said
    tensors = {kohya(k): t for k, t in blora.state_dict.items()} | {
        f"lora_unet_{layer.replace('.', '_')}.alpha": torch.tensor(3.0)
    }
    save_file(tensors, tmp_path / "k.safetensors")
    with pytest.warns(BLoRAWarning, match="no alpha, taken to be the rank"):
        again = changes(BLoRA.load(tmp_path / "k.safetensors"))
    torch.testing.assert_close(again[layer], changes(blora)[layer] * 3 / 6)


@pytest.mark.parametrize(
    "pattern",
    [
        r"up_blocks\.0\.attentions\.0\..*",
        r"^up_blocks\.0\.attentions\.0\..*",
        "(to_q|to_k)",
        "attn..to_q",
        "to_v$",
        r"attn2\.to_out\.0",
        "0",
    ],
)
def test_patterns_for_alphas_mean_what_they_mean_in_peft(tmp_path, pattern):
    from peft.utils.other import get_pattern_key

    blora = made()
    save_file(
        {SPELLINGS["peft"](k): t for k, t in blora.state_dict.items()},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"r": 4, "lora_alpha": 8, "alpha_pattern": {pattern: 2}})
    )
    again = changes(BLoRA.load(tmp_path))
    scales = {
        layer: 0.5 if get_pattern_key([pattern], layer) == pattern else 2.0 for layer in again
    }
    assert set(scales.values()) == {0.5, 2.0}
    for layer, change in changes(blora).items():
        torch.testing.assert_close(again[layer], change * scales[layer])


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+b",
        "(.*)*x",
        ".*.*.*.*x",
        "a{1000}",
        "(?=x)",
        "(.|..)(.|..)Z",
        "(a|aa)" * 5,
        {f"layer{k}": 2 for k in range(3000)},
    ],
)
def test_patterns_that_could_take_for_ever_are_refused(tmp_path, pattern):
    save_file(
        {SPELLINGS["peft"](k): t for k, t in made().state_dict.items()},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"alpha_pattern": pattern if isinstance(pattern, dict) else {pattern: 2}})
    )
    with pytest.raises(BLoRAError, match="too involved|for 3,000 patterns"):
        BLoRA.load(tmp_path)


@pytest.mark.parametrize(
    "patterns",
    [
        ["(a|aa|aaa|to)" * 4 + "." * 60 + "z"],
        [".*" + "." * 40 + ".*" + "." * 40 + "z"],
        [f"layer{k}.to_q" for k in range(2000)],
    ],
)
def test_the_worst_patterns_that_are_tried_are_quick(tmp_path, patterns):
    blora = made()
    save_file(
        {SPELLINGS["peft"](k): t for k, t in blora.state_dict.items()},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"alpha_pattern": dict.fromkeys(patterns, 2)})
    )
    start = time.process_time()
    assert same(BLoRA.load(tmp_path).state_dict, blora.state_dict)
    assert time.process_time() - start < 5


def test_without_its_config_a_peft_file_is_read_at_scale_1_and_that_is_said(tmp_path):
    blora = made()
    save_file(
        {SPELLINGS["peft"](k): t for k, t in blora.state_dict.items()},
        tmp_path / "adapter_model.safetensors",
    )
    with pytest.warns(BLoRAWarning, match="no adapter_config.json beside it"):
        assert same(BLoRA.load(tmp_path).state_dict, blora.state_dict)


def test_what_other_programs_put_beside_is_left_out(tmp_path):
    """Convolutions at the ends of the U-Net, time embeddings, textual inversions."""
    blora = made()
    others = [
        f"{start}.{end}"
        for start in (
            "unet.conv_in",
            "unet.conv_out",
            "unet.time_embedding.linear_1",
            "lora_unet_conv_in",
            "lycoris_time_embedding_linear_1",
            "unet.time_embed.0",
        )
        for end in ("lora_A.weight", "lora_B.weight")
    ]
    save_file(
        blora.state_dict
        | {name: torch.ones(2, 2) for name in others}
        | {"bundle_emb.x.clip_l": torch.ones(1, 8)},
        tmp_path / "x.safetensors",
    )
    with pytest.warns(BLoRAWarning, match="1 of embeddings, 12 of other blocks"):
        assert same(BLoRA.load(tmp_path / "x.safetensors").state_dict, blora.state_dict)


def test_which_file_of_a_folder_is_meant(tmp_path):
    blora = made()
    blora.save(tmp_path / "a.safetensors")
    (tmp_path / "._a.safetensors").write_bytes(b"left by a Mac")
    assert same(BLoRA.load(tmp_path).state_dict, blora.state_dict)
    blora.save(tmp_path / "b.safetensors")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_lora_weights.bin").write_bytes(b"PK")
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "gone.safetensors")
    for source, message in {
        tmp_path: "there are a.safetensors, b.safetensors.*name one",
        tmp_path / "pickled": "only pytorch_lora_weights.bin, and such files can run code",
        tmp_path / "link.safetensors": "is a link to .*gone.safetensors, which is not there",
        "": "is empty",
        " ": "is empty",
        "https://example.org/x.safetensors": "download the file",
        tmp_path / "none.safetensors": "There is no file or folder",
    }.items():
        with pytest.raises(BLoRAError, match=message):
            BLoRA.load(source)
    for name, message in {
        "x.pt": "ending .safetensors",
        "x.safetensor": "ending .safetensors",
        "x.SAFETENSORS": "ending .safetensors",
    }.items():
        with pytest.raises(ValueError, match=message):
            blora.save(tmp_path / name)
    with pytest.raises(FileExistsError, match="exists already"):
        blora.save(tmp_path / "link.safetensors")
    with pytest.raises(OSError, match="a.safetensors cannot be made"):
        blora.save(tmp_path / "a.safetensors" / "x.safetensors")


def test_the_address_of_a_page_on_the_hub_is_taken_for_the_id(monkeypatch):
    from blora_nb.files import locating as files

    asked = []
    monkeypatch.setattr(
        files,
        "_from_hub",
        lambda source: asked.append(source) or (_ for _ in ()).throw(BLoRAError("asked")),
    )
    for address in (
        "https://huggingface.co/lora-library/B-LoRA-pen_sketch",
        "https://huggingface.co/lora-library/B-LoRA-pen_sketch/tree/main",
        "https://huggingface.co/u/n/blob/main/sub/x.safetensors",
        "https://hf.co/u/n/resolve/main/x.safetensors?download=true",
    ):
        with pytest.raises(BLoRAError, match="asked"):
            BLoRA.load(address)
    for address in (
        "https://huggingface.co/u/n/blob/v2/x.safetensors",
        "https://huggingface.co/datasets/u/n",
        "https://huggingface.co/u/n/resolve/refs%2Fpr%2F1/x.safetensors",
    ):
        with pytest.raises(BLoRAError, match="main revision of a model"):
            BLoRA.load(address)
    assert asked == ["lora-library/B-LoRA-pen_sketch"] * 2 + [
        "u/n/sub/x.safetensors",
        "u/n/x.safetensors",
    ]


def test_of_a_whole_models_lora_the_halves_are_taken_and_that_is_said(tmp_path):
    blora = made()
    tensors = {kohya(sgm(k)): t for k, t in blora.state_dict.items()}
    for other in (
        "lora_unet_input_blocks_8_1_proj_in",
        "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "lora_unet_output_blocks_2_1_proj_in",
    ):
        tensors |= {
            f"{other}.lora_down.weight": torch.ones(2, 8),
            f"{other}.lora_up.weight": torch.ones(8, 2),
            f"{other}.alpha": torch.tensor(2.0),
        }
    save_file(tensors, tmp_path / "whole.safetensors")
    with pytest.warns(
        BLoRAWarning,
        match="whole.safetensors: Weights left out: 3 of text encoders, 9 of other blocks;",
    ):
        again = BLoRA.load(tmp_path / "whole.safetensors")
    assert same(blora.state_dict, again.state_dict)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_number_formats_are_read(tmp_path, dtype):
    blora = made()
    save_file({key: t.to(dtype) for key, t in blora.state_dict.items()}, tmp_path / "x.safetensors")
    again = BLoRA.load(tmp_path / "x.safetensors").state_dict
    assert all(torch.equal(again[key], t.to(dtype).float()) for key, t in blora.state_dict.items())


FIRST = "unet.up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"
FAULTS = {
    "a matrix is missing": (lambda s: s.pop(FIRST), "without its partner.*to_q.lora_A"),
    "a layer is missing": (
        lambda s: [s.pop(FIRST), s.pop(FIRST.replace("A.w", "B.w"))],
        "transformer_blocks.0.attn1.to_q: missing",
    ),
    "a transformer layer is missing": (
        lambda s: [s.pop(k) for k in list(s) if "attentions.1.transformer_blocks.0." in k],
        r"attentions.1.transformer_blocks.0.attn1.to_k, .* and 4 more: missing",
    ),
    "another width": (
        lambda s: s.update({FIRST: torch.ones(4, 105)}),
        r"\[4, 105\].*should be \[rank, 104\]",
    ),
    "another rank": (
        lambda s: s.update({FIRST: torch.ones(5, 104)}),
        "rank 5 and its partner rank 4",
    ),
    "one dimension": (lambda s: s.update({FIRST: torch.ones(104)}), "two-dimensional"),
    "no columns": (lambda s: s.update({FIRST: torch.ones(4, 0)}), "not empty"),
    "whole numbers": (
        lambda s: s.update({FIRST: torch.ones(4, 104, dtype=torch.int32)}),
        "numbers of the format I32",
    ),
    "NaN": (
        lambda s: s.update({FIRST: torch.full((4, 104), float("nan"))}),
        "to_q.lora_A.weight: NaN",
    ),
    "infinite": (
        lambda s: s.update({FIRST: torch.full((4, 104), float("inf"))}),
        "NaN or infinite",
    ),
    "zeros": (
        lambda s: s.update({k: torch.zeros_like(t) for k, t in s.items() if "lora_B" in k}),
        "would change nothing",
    ),
    "alphas of zero": (
        lambda s: s.update(
            {k.replace("lora_A.weight", "alpha"): torch.zeros(()) for k in list(s) if "lora_A" in k}
        ),
        "would change nothing",
    ),
    "an alpha of NaN": (
        lambda s: s.update({FIRST.replace("lora_A.weight", "alpha"): torch.tensor(float("nan"))}),
        "to_q: the alpha is NaN",
    ),
    "an unknown name": (
        lambda s: s.update({"some.thing": torch.ones(1)}),
        "some.thing is not the name of a LoRA weight",
    ),
    "an unknown layer": (
        lambda s: s.update({FIRST.replace("to_q", "to_x"): torch.ones(1)}),
        "to_x.*layer that SDXL's transformer blocks do not have",
    ),
    "the same weight twice": (
        lambda s: s.update({"unet." + FIRST: torch.ones(4, 104)}),
        "two names for the same weight",
    ),
    "DoRA": (
        lambda s: s.update({FIRST.replace("lora_A.weight", "dora_scale"): torch.ones(104)}),
        "dora_scale belongs to DoRA",
    ),
    "OFT": (
        lambda s: s.update({"lora_unet_output_blocks_0_1_proj_in.oft_blocks": torch.ones(1)}),
        "OFT; only plain LoRA",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_named(tmp_path, fault):
    change, message = FAULTS[fault]
    state_dict = dict(made().state_dict)
    change(state_dict)
    save_file(state_dict, tmp_path / "x.safetensors")
    with pytest.raises(BLoRAError, match=message) as caught:
        BLoRA.load(tmp_path / "x.safetensors")
    assert str(caught.value).startswith(str(tmp_path / "x.safetensors"))


def test_what_is_unusual_is_said(tmp_path):
    whole = made().state_dict
    cases = {
        "style half has no attn1.to_out.0": {
            k: t for k, t in whole.items() if "attentions.1" not in k or "attn1.to_out" not in k
        },
        "content half has 1 transformer layers; the base model has 2": {
            k: t for k, t in whole.items() if "attentions.0.transformer_blocks.1" not in k
        },
        "style half is zero": {k: t * 0 if "attentions.1" in k else t for k, t in whole.items()},
    }
    for number, (message, tensors) in enumerate(cases.items()):
        save_file(tensors, tmp_path / f"{number}.safetensors")
        with pytest.warns(BLoRAWarning, match=message):
            assert BLoRA.load(tmp_path / f"{number}.safetensors").halves == ("content", "style")


def test_loras_for_other_models_are_recognised(tmp_path):
    for key, message in {
        "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": "FLUX",
        "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": "FLUX",
        "lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight": "no B-LoRA but looks like a LoRA for Stable Diffusion 1 or 2",
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": r"None of its weights \(1\) belongs to .*: this is no B-LoRA; they are weights of text encoders",
        "model.diffusion_model.input_blocks.0.0.weight": "may be a whole model",
    }.items():
        save_file({key: torch.ones(4, 8)}, tmp_path / "x.safetensors")
        with pytest.raises(BLoRAError, match=message):
            BLoRA.load(tmp_path / "x.safetensors")


def test_every_layer_of_sdxls_two_blocks_is_known():
    """SDXL's own configuration, without weights."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_config("full"))
    blora = made(width=1280, context=2048, depth=10, rank=lambda layer: 1, feed_forward=True)
    _check_fits(unet, blora)
    linears = {
        n
        for n, m in unet.named_modules()
        if type(m) is torch.nn.Linear
        and n.startswith(tuple(f"{b}." for b in BLOCK_OF_HALF.values()))
    }
    assert linears == blora.layers.keys()
    assert len([n for n in linears if ".attn" in n]) == 160


def test_a_blora_for_another_base_is_refused_and_what_was_applied_stays(pipe):
    apply(pipe, made())
    sdxl = made(width=1280, context=2048, depth=10, rank=lambda layer: 1)
    assert base_of(sdxl.state_dict) == "SDXL"
    assert base_of(made().state_dict) == "the teaching model"
    for wrong, message in (
        (sdxl, "the base model has no layer|size .* in the base model"),
        (made(width=96, context=128), "96 channels"),
    ):
        with pytest.raises(BLoRAError, match=f"(?i){message}"):
            apply(pipe, style=wrong)
        assert list(pipe.unet.peft_config) == ["content"]
    remove(pipe)


def test_alphas_can_be_baked_into_a_file_of_two_bloras(tmp_path):
    one, two = made(seed=1), made(seed=2)
    again = changes(
        BLoRA.load(combine(one, two, 0.5, -2.0).save(tmp_path / "x.safetensors", "sgm"))
    )
    for layer, change in again.items():
        assert torch.equal(
            change,
            0.5 * changes(one)[layer] if "attentions.0" in layer else -2 * changes(two)[layer],
        )
    assert combine(style=two).halves == ("style",)
    with pytest.raises(BLoRAError, match="content half"):
        combine()


def test_wrong_requests_write_nothing(tmp_path):
    with pytest.raises(ValueError, match="choose one of diffusers, peft"):
        made().save(tmp_path / "x.safetensors", "webui")
    with pytest.raises(ValueError, match="name a folder"):
        made().save(tmp_path / "x.safetensors", "peft")
    assert list(tmp_path.iterdir()) == []


def test_folders(tmp_path):
    made().save(tmp_path / "named" / "any.safetensors")
    assert BLoRA.load(tmp_path / "named").halves
    made(seed=1).save(tmp_path / "named" / "other.safetensors")
    with pytest.raises(BLoRAError, match="any.safetensors, other.safetensors; name one"):
        BLoRA.load(tmp_path / "named")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BLoRAError, match="no .safetensors file in it"):
        BLoRA.load(tmp_path / "empty")
