"""Files of other tools in, files for other tools out.

Exact round trips, names by the rules of those tools, clear refusals.
"""

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
from blora_nb.lora import BLoRA, apply, check_fits, combine, remove
from random_sdxl import unet_config

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def layer_sizes(width, context, depth, feed_forward):
    """{layer: (outputs, inputs)} of the two blocks."""
    sizes = {}
    for block in BLOCK_OF_HALF.values():
        for i in range(depth):
            for a in (1, 2):
                for p in PROJECTIONS:
                    inputs = context if a == 2 and p in ("to_k", "to_v") else width
                    sizes[f"{block}.transformer_blocks.{i}.attn{a}.{p}"] = width, inputs
        if feed_forward:
            sizes |= {f"{block}.{name}": (width, width) for name in ("proj_in", "proj_out")}
            for i in range(depth):
                feed = f"{block}.transformer_blocks.{i}.ff.net"
                sizes |= {f"{feed}.0.proj": (8 * width, width), f"{feed}.2": (width, 4 * width)}
    return sizes


def made(width=144, context=192, depth=2, rank=lambda layer: 4, feed_forward=False, seed=0):
    """A B-LoRA with random weights; `rank` may differ from layer to layer."""
    generator, state_dict = torch.Generator().manual_seed(seed), {}
    for layer, (outputs, inputs) in layer_sizes(width, context, depth, feed_forward).items():
        down = torch.randn(rank(layer), inputs, generator=generator)
        up = torch.randn(outputs, rank(layer), generator=generator)
        state_dict[f"unet.{layer}.lora_A.weight"] = down
        state_dict[f"unet.{layer}.lora_B.weight"] = up
    return BLoRA(state_dict, {"training": json.dumps({"instance_prompt": "A [v]"})})


def mixed_rank(layer):
    return 3 if "attentions.0" in layer else 6 if "attn2" in layer else 2


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(t, other[key]) for key, t in one.items())


def changes(blora):
    return {layer: b @ a for layer, (a, b) in blora.layers.items()}


def test_bloras_can_be_looked_for_in_a_list():
    one, other = made(seed=1), made(seed=2)
    assert one in [other, one]
    assert one != other
    assert len({one, other}) == 2


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


@pytest.mark.parametrize("format", ["diffusers", "kohya", "sgm"])
def test_a_written_file_of_any_format_acts_the_same_in_plain_diffusers(pipe, tmp_path, format):
    blora = made(rank=mixed_rank)
    remove(pipe)
    # without our code
    pipe.load_lora_weights(blora.save(tmp_path / "x.safetensors", format))
    acting = {
        name: module.get_delta_weight(module.active_adapters[0])
        for name, module in pipe.unet.named_modules()
        if hasattr(module, "get_delta_weight") and module.r
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


def a1111_module(key):
    """What A1111's Lora extension does with a name.

    The part before the first dot must be, after lora_unet_ became diffusion_model_, a module of
    the model with dots as underscores; diffusers' up_blocks are first renamed, three attentions
    to a block.
    """
    name = key.split(".", 1)[0]
    if match := re.fullmatch(r"lora_unet_up_blocks_(\d+)_attentions_(\d+)_(.+)", name):
        return f"diffusion_model_output_blocks_{3 * int(match[1]) + int(match[2])}_1_{match[3]}"
    return name.replace("lora_unet", "diffusion_model")


def comfyui_names(depth):
    """{name in a file: module of the model} for the two blocks, as ComfyUI looks for them.

    For each of the model's weights it looks for lora_unet_ + the name with underscores, and for
    the same under diffusers' name, + .lora_up.weight, .lora_down.weight, .alpha (scale
    alpha / rank; without alpha 1).
    """
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
    parts = {key.split(".", 1)[1] for key in tensors}
    assert parts == {"lora_up.weight", "lora_down.weight", "alpha"}
    modules = {"diffusion_model_" + module.replace(".", "_") for module in known.values()}
    assert {a1111_module(key) for key in tensors} == modules
    if format == "sgm":
        starts = ("lora_unet_output_blocks_0_1_", "lora_unet_output_blocks_1_1_")
        assert all(stem.startswith(starts) for stem in stems)
    # else A1111 hides it beside SDXL models
    metadata = safe_open(tmp_path / "x.safetensors", "pt").metadata()
    assert metadata["ss_base_model_version"].startswith("sdxl_")
    stem = next(s for s in stems if known[s] == "output_blocks.1.1.transformer_blocks.9.attn2.to_v")
    down, up = (tensors[f"{stem}.lora_{part}.weight"] for part in ("down", "up"))
    scale = tensors[f"{stem}.alpha"].item() / down.shape[0]
    layer = "up_blocks.0.attentions.1.transformer_blocks.9.attn2.to_v"
    assert torch.equal(scale * up @ down, changes(blora)[layer])


def replaced(key, *pairs):
    for old, new in pairs:
        key = key.replace(old, new)
    return key


def processors(key):
    for p in ("to_q", "to_k", "to_v"):
        key = key.replace(f".{p}.lora_", f".processor.{p}_lora.")
    output = (".to_out.0.lora_", ".processor.to_out_lora.")
    return replaced(key, output, ("_lora.A", "_lora.down"), ("_lora.B", "_lora.up"))


def diffusers_025(key):
    return replaced(key, ("lora_A", "lora.down"), ("lora_B", "lora.up"))


def sgm(key):
    blocks = ("up_blocks.0.attentions.0", "output_blocks.0.1")
    return replaced(key, blocks, ("up_blocks.0.attentions.1", "output_blocks.1.1"))


def peft(key):
    return "base_model.model." + key.removeprefix("unet.")


def kohya(key):
    layer, part = key.removeprefix("unet.").split(".lora_")
    return f"lora_unet_{layer.replace('.', '_')}.lora_{'down' if part[0] == 'A' else 'up'}.weight"


SPELLINGS = {
    "diffusers": lambda k: k,
    "diffusers 0.25": diffusers_025,
    "doubled unet": lambda k: "unet." + diffusers_025(k),
    "doubled unet, PEFT's endings": lambda k: "unet." + k,
    "processors": processors,
    "doubled processors": lambda k: "unet." + processors(k),
    "no prefix": lambda k: k.removeprefix("unet."),
    "peft": peft,
    "peft with adapter name": lambda k: peft(k).replace(".weight", ".default.weight"),
    "layers of a whole U-Net": lambda k: diffusers_025(k).replace(".lora.", ".lora_layer."),
    "kohya": kohya,
    "kohya sgm": lambda k: kohya(sgm(k)),
    "lycoris": lambda k: kohya(sgm(k)).replace("lora_unet_", "lycoris_"),
    "comfyui": lambda k: "diffusion_model." + sgm(k).removeprefix("unet."),
}


def respelled(blora, spelling):
    return {SPELLINGS[spelling](key): t for key, t in blora.state_dict.items()}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_read(tmp_path, spelling):
    blora = made()
    save_file(respelled(blora, spelling), tmp_path / "x.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BLoRAWarning)
        again = BLoRA.load(tmp_path / "x.safetensors")
    assert same(blora.state_dict, again.state_dict)
    assert again.format
    expected = {"peft": PEFT_CONFIG, "kohya": "no layer has an", "lycoris": "no layer has an"}
    notes = [expected[name] for name in (spelling.split()[0],) if name in expected]
    assert len(again.notes) == len(notes)
    assert all(note in found for note, found in zip(notes, again.notes))


@pytest.mark.parametrize("spelling", ["diffusers 0.25", "doubled unet"])
def test_files_of_diffusers_own_converter_are_read(tmp_path, spelling):
    from diffusers.utils import convert_all_state_dict_to_peft, convert_state_dict_to_kohya

    blora = made()
    in_peft = convert_all_state_dict_to_peft(respelled(blora, spelling))
    converted = convert_state_dict_to_kohya(in_peft)
    save_file({key: t.contiguous() for key, t in converted.items()}, tmp_path / "x.safetensors")
    assert same(blora.state_dict, BLoRA.load(tmp_path / "x.safetensors").state_dict)


def test_layers_of_a_lycoris_preset_are_read(tmp_path):
    # LyCORIS trains every linear layer of a block
    blora = made(feed_forward=True)
    tensors = {kohya(sgm(key)): t for key, t in blora.state_dict.items()}
    # 1 × 1 convolutions
    tensors |= {key: t[:, :, None, None] for key, t in tensors.items() if "proj_in" in key}
    one = torch.tensor(1.0, dtype=torch.float16)
    tensors |= {key.split(".")[0] + ".alpha": one.clone() for key in tensors}
    save_file(tensors, tmp_path / "x.safetensors")
    again = changes(BLoRA.load(tmp_path / "x.safetensors"))
    for layer, change in changes(blora).items():
        # alpha 1, rank 4
        assert torch.equal(again[layer], change / 4)


LAYER = "up_blocks.0.attentions.1.transformer_blocks.1.attn2.to_k"
# LAYER has an alpha of its own, and the queries of self-attention have another
CONFIG = {"r": 4, "lora_alpha": 12, "alpha_pattern": {f"^{LAYER}": 1.5, "attn1.to_q": 6}}


def in_the_header(blora, folder):
    """diffusers writes PEFT's config there."""
    header = {"lora_adapter_metadata": json.dumps({f"unet.{k}": v for k, v in CONFIG.items()})}
    save_file(respelled(blora, "diffusers 0.25"), folder / "a.safetensors", header)


def with_config(blora, folder, config=CONFIG):
    """PEFT writes it beside its file."""
    save_file(respelled(blora, "peft"), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("write", [in_the_header, with_config])
def test_alphas_are_taken_from_where_the_config_is(tmp_path, write):
    blora = made(rank=mixed_rank)
    write(blora, tmp_path)
    again = changes(BLoRA.load(tmp_path))
    for name, change in changes(blora).items():
        alpha = 1.5 if name == LAYER else 6 if name.endswith("attn1.to_q") else 12
        torch.testing.assert_close(again[name], change * alpha / mixed_rank(name))


def test_kohya_has_an_alpha_for_each_layer(tmp_path):
    """Where one is missing it counts as the rank, and that is said."""
    blora = made(rank=mixed_rank)
    alpha = {f"lora_unet_{LAYER.replace('.', '_')}.alpha": torch.tensor(3.0)}
    save_file(respelled(blora, "kohya") | alpha, tmp_path / "k.safetensors")
    with pytest.warns(BLoRAWarning, match="no alpha, taken to be the rank"):
        again = changes(BLoRA.load(tmp_path / "k.safetensors"))
    torch.testing.assert_close(again[LAYER], changes(blora)[LAYER] * 3 / 6)


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
    with_config(blora, tmp_path, {"r": 4, "lora_alpha": 8, "alpha_pattern": {pattern: 2}})
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
    patterns = pattern if isinstance(pattern, dict) else {pattern: 2}
    with_config(made(), tmp_path, {"alpha_pattern": patterns})
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
    with_config(blora, tmp_path, {"alpha_pattern": dict.fromkeys(patterns, 2)})
    start = time.process_time()
    assert same(BLoRA.load(tmp_path).state_dict, blora.state_dict)
    assert time.process_time() - start < 5


def test_without_its_config_a_peft_file_is_read_at_scale_1_and_that_is_said(tmp_path):
    blora = made()
    save_file(respelled(blora, "peft"), tmp_path / "adapter_model.safetensors")
    with pytest.warns(BLoRAWarning, match="no adapter_config.json beside it"):
        assert same(BLoRA.load(tmp_path).state_dict, blora.state_dict)


def test_what_other_programs_put_beside_is_left_out(tmp_path):
    """Convolutions at the ends of the U-Net, time embeddings, textual inversions."""
    blora = made()
    starts = """
        unet.conv_in unet.conv_out unet.time_embedding.linear_1 lora_unet_conv_in
        lycoris_time_embedding_linear_1 unet.time_embed.0
    """
    tensors = {"bundle_emb.x.clip_l": torch.ones(1, 8)} | blora.state_dict
    for start in starts.split():
        tensors |= {f"{start}.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.warns(BLoRAWarning, match="1 of embeddings, 12 of other blocks"):
        assert same(BLoRA.load(tmp_path / "x.safetensors").state_dict, blora.state_dict)


def test_the_only_file_of_a_folder_is_meant(tmp_path):
    blora = made()
    blora.save(tmp_path / "a.safetensors")
    (tmp_path / "._a.safetensors").write_bytes(b"left by a Mac")
    assert same(BLoRA.load(tmp_path).state_dict, blora.state_dict)


@pytest.fixture
def sources(tmp_path):
    """A folder with two B-LoRAs, one with a pickled file, one with nothing, and a dead link."""
    for name in "ab":
        made().save(tmp_path / f"{name}.safetensors")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_lora_weights.bin").write_bytes(b"PK")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "gone.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{}", "there are a.safetensors, b.safetensors.*name one"),
        ("{}/pickled", "only pytorch_lora_weights.bin, and such files can run code"),
        ("{}/nothing", "no .safetensors file in it"),
        ("{}/link.safetensors", "is a link to .*gone.safetensors, which is not there"),
        ("{}/none.safetensors", "There is no file or folder"),
        ("", "is empty"),
        (" ", "is empty"),
        ("https://example.org/x.safetensors", "download the file"),
    ],
)
def test_a_source_that_is_no_single_file_is_explained(sources, source, message):
    with pytest.raises(BLoRAError, match=message):
        BLoRA.load(source.format(sources))


@pytest.mark.parametrize("name", ["x.pt", "x.safetensor", "x.SAFETENSORS"])
def test_a_file_to_be_written_has_the_usual_ending(tmp_path, name):
    with pytest.raises(ValueError, match="ending .safetensors"):
        made().save(tmp_path / name)


def test_a_dead_link_is_not_written_through(sources):
    with pytest.raises(FileExistsError, match="exists already"):
        made().save(sources / "link.safetensors")


def test_a_file_below_a_file_cannot_be_made(sources):
    with pytest.raises(OSError, match="a.safetensors cannot be made"):
        made().save(sources / "a.safetensors" / "x.safetensors")


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://huggingface.co/lora-library/B-LoRA-pen", "lora-library/B-LoRA-pen"),
        ("https://huggingface.co/lora-library/B-LoRA-pen/tree/main", "lora-library/B-LoRA-pen"),
        ("https://huggingface.co/u/n/blob/main/sub/x.safetensors", "u/n/sub/x.safetensors"),
        ("https://hf.co/u/n/resolve/main/x.safetensors?download=true", "u/n/x.safetensors"),
    ],
)
def test_the_address_of_a_page_on_the_hub_is_taken_for_the_id(monkeypatch, address, name):
    from blora_nb.files import locating as files

    def asked(source):
        raise BLoRAError(f"asked for {source}.")

    monkeypatch.setattr(files, "_from_hub", asked)
    with pytest.raises(BLoRAError, match=f"^asked for {name}.$"):
        BLoRA.load(address)


@pytest.mark.parametrize(
    "address",
    [
        "https://huggingface.co/u/n/blob/v2/x.safetensors",
        "https://huggingface.co/datasets/u/n",
        "https://huggingface.co/u/n/resolve/refs%2Fpr%2F1/x.safetensors",
    ],
)
def test_another_address_on_the_hub_is_refused(address):
    with pytest.raises(BLoRAError, match="main revision of a model"):
        BLoRA.load(address)


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
    left_out = "whole.safetensors: Weights left out: 3 of text encoders, 9 of other blocks;"
    with pytest.warns(BLoRAWarning, match=left_out):
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
        lambda s: s.update({FIRST: torch.ones(4, 145)}),
        r"\[4, 145\].*should be \[rank, 144\]",
    ),
    "another rank": (
        lambda s: s.update({FIRST: torch.ones(5, 144)}),
        "rank 5 and its partner rank 4",
    ),
    "one dimension": (lambda s: s.update({FIRST: torch.ones(144)}), "two-dimensional"),
    "no columns": (lambda s: s.update({FIRST: torch.ones(4, 0)}), "not empty"),
    "whole numbers": (
        lambda s: s.update({FIRST: torch.ones(4, 144, dtype=torch.int32)}),
        "numbers of the format I32",
    ),
    "NaN": (
        lambda s: s.update({FIRST: torch.full((4, 144), float("nan"))}),
        "to_q.lora_A.weight: NaN",
    ),
    "infinite": (
        lambda s: s.update({FIRST: torch.full((4, 144), float("inf"))}),
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
        lambda s: s.update({"unet." + FIRST: torch.ones(4, 144)}),
        "two names for the same weight",
    ),
    "DoRA": (
        lambda s: s.update({FIRST.replace("lora_A.weight", "dora_scale"): torch.ones(144)}),
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


UNUSUAL = {
    "style half has no attn1.to_out.0": lambda key: "attentions.1" in key and "attn1.to_out" in key,
    "content half has 1 transformer layers; the base model has 2": lambda key: (
        "attentions.0.transformer_blocks.1" in key
    ),
}


@pytest.mark.parametrize("message", UNUSUAL)
def test_layers_that_are_not_there_are_said(tmp_path, message):
    missing = UNUSUAL[message]
    tensors = {key: t for key, t in made().state_dict.items() if not missing(key)}
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.warns(BLoRAWarning, match=message):
        assert BLoRA.load(tmp_path / "x.safetensors").halves == ("content", "style")


def test_a_half_that_is_zero_is_said(tmp_path):
    tensors = {key: t * ("attentions.0" in key) for key, t in made().state_dict.items()}
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.warns(BLoRAWarning, match="style half is zero"):
        assert BLoRA.load(tmp_path / "x.safetensors").halves == ("content", "style")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "FLUX"),
        ("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", "FLUX"),
        (
            "lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight",
            "no B-LoRA but looks like a LoRA for Stable Diffusion 1 or 2",
        ),
        (
            "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
            r"None of its weights \(1\) belongs to .*: this is no B-LoRA; "
            "they are weights of text encoders",
        ),
        ("model.diffusion_model.input_blocks.0.0.weight", "may be a whole model"),
    ],
)
def test_files_for_other_models_are_recognised(tmp_path, key, message):
    save_file({key: torch.ones(4, 8)}, tmp_path / "x.safetensors")
    with pytest.raises(BLoRAError, match=message):
        BLoRA.load(tmp_path / "x.safetensors")


def test_every_layer_of_sdxls_two_blocks_is_known():
    """SDXL's own configuration, without weights."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_config("full"))
    blora = made(width=1280, context=2048, depth=10, rank=lambda layer: 1, feed_forward=True)
    check_fits(unet, blora)
    linears = {
        n
        for n, m in unet.named_modules()
        if type(m) is torch.nn.Linear
        and n.startswith(tuple(f"{b}." for b in BLOCK_OF_HALF.values()))
    }
    assert linears == blora.layers.keys()
    assert len([n for n in linears if ".attn" in n]) == 160


def sdxl_blora():
    return made(width=1280, context=2048, depth=10, rank=lambda layer: 1)


def test_the_base_is_told_from_the_sizes_of_the_weights():
    assert base_of(sdxl_blora().state_dict) == "SDXL"
    assert base_of(made().state_dict) == "the teaching model"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (sdxl_blora, "(?i)the base model has no layer|size .* in the base model"),
        (lambda: made(width=96, context=128), "(?i)96 channels"),
    ],
    ids=["SDXL", "96 channels"],
)
def test_a_blora_for_another_base_is_refused_and_what_was_applied_stays(pipe, wrong, message):
    apply(pipe, made())
    with pytest.raises(BLoRAError, match=message):
        apply(pipe, style=wrong())
    assert list(pipe.unet.peft_config) == ["content"]
    remove(pipe)


def test_alphas_can_be_baked_into_a_file_of_two_bloras(tmp_path):
    one, two = made(seed=1), made(seed=2)
    file = combine(one, two, 0.5, -2.0).save(tmp_path / "x.safetensors", "sgm")
    for layer, change in changes(BLoRA.load(file)).items():
        content = "attentions.0" in layer
        expected = 0.5 * changes(one)[layer] if content else -2 * changes(two)[layer]
        assert torch.equal(change, expected)


def test_one_half_alone_is_combined_but_not_none():
    assert combine(style=made()).halves == ("style",)
    with pytest.raises(BLoRAError, match="content half"):
        combine()


def test_wrong_requests_write_nothing(tmp_path):
    with pytest.raises(ValueError, match="choose one of diffusers, peft"):
        made().save(tmp_path / "x.safetensors", "webui")
    with pytest.raises(ValueError, match="name a folder"):
        made().save(tmp_path / "x.safetensors", "peft")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_one_more_file_is_no_longer_clear(tmp_path):
    made().save(tmp_path / "any.safetensors")
    assert BLoRA.load(tmp_path).halves
    made(seed=1).save(tmp_path / "other.safetensors")
    with pytest.raises(BLoRAError, match="any.safetensors, other.safetensors; name one"):
        BLoRA.load(tmp_path)
