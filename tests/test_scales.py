"""A LoRA acts as strongly as whoever wrote it meant, wherever in or beside the file that stands."""

import hashlib
import json
import math
import re
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from blora_nb.blocks import CONTENT_BLOCK, SGM_BLOCK_OF_HALF, STYLE_BLOCK, target_modules
from blora_nb.errors import BLoRAError, BLoRAWarning, PipelineError
from blora_nb.files.lora_settings import SOURCES
from blora_nb.files.other_methods import CHANGE_THE_BASE, REFUSED_METHODS
from blora_nb.lora import BLoRA, remove
from blora_nb.pipeline import load_pipeline, merge_few_step_lora, use_scheduler
from blora_nb.registry import options_of
from blora_nb.running.training_pictures import what_is_learned

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
LAYERS = [
    f"{block}.transformer_blocks.0.attn{a}.{p}"
    for block in (CONTENT_BLOCK, STYLE_BLOCK)
    for a in (1, 2)
    for p in PROJECTIONS
]
WIDTH, CONTEXT = 16, 12


def random_lora(rank_of, seed=0):
    """{layer: (lora_A, lora_B)} with a rank for each layer."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for layer in LAYERS:
        columns = CONTEXT if layer.endswith(("attn2.to_k", "attn2.to_v")) else WIDTH
        a = torch.randn(rank_of(layer), columns, generator=draw)
        found[layer] = a, torch.randn(WIDTH, rank_of(layer), generator=draw)
    return found


def sgm(layer):
    for block, half in ((CONTENT_BLOCK, "content"), (STYLE_BLOCK, "style")):
        layer = layer.replace(block, SGM_BLOCK_OF_HALF[half])
    return layer


def flat(layer):
    return layer.replace(".", "_")


def processor(layer):
    stem, _, last = layer.removesuffix(".0").rpartition(".")
    return f"{stem}.processor.{last}_lora"


# {naming: layer's name to the stem of its weights}, and the endings of the two matrices
ENDINGS = {
    "kohya": ("lora_down", "lora_up"),
    "peft": ("lora_A", "lora_B"),
    "lora": ("lora.down", "lora.up"),
    "old": ("down", "up"),
}
NAMINGS = {
    "diffusers": (lambda n: f"unet.{n}", "lora"),
    "diffusers, PEFT's endings": (lambda n: f"unet.{n}", "peft"),
    "doubled": (lambda n: f"unet.unet.{n}", "lora"),
    "processors": (lambda n: f"unet.{processor(n)}", "old"),
    "no prefix": (lambda n: n, "peft"),
    "compiled": (lambda n: f"unet._orig_mod.{n}", "peft"),
    "compiled and wrapped": (lambda n: f"module._orig_mod.{n}", "peft"),
    "peft": (lambda n: f"base_model.model.{n}", "peft"),
    "peft, compiled": (lambda n: f"base_model.model._orig_mod.{n}", "peft"),
    "kohya": (lambda n: f"lora_unet_{flat(n)}", "kohya"),
    "kohya, compiled": (lambda n: f"lora_unet__orig_mod_{flat(n)}", "kohya"),
    "sgm": (lambda n: f"lora_unet_{flat(sgm(n))}", "kohya"),
    "lycoris": (lambda n: f"lycoris_{flat(sgm(n))}", "kohya"),
    "comfyui": (lambda n: f"diffusion_model.{sgm(n)}", "kohya"),
    "comfyui, whole": (lambda n: f"model.diffusion_model.{sgm(n)}", "peft"),
}


def named(lora, naming, alphas=None):
    """The tensors of a file."""
    stem, endings = NAMINGS[naming]
    tensors = {}
    for layer, pair in lora.items():
        for part, matrix in zip(ENDINGS[endings], pair):
            tensors[f"{stem(layer)}.{part}.weight"] = matrix.clone()
        if alphas:
            tensors[f"{stem(layer)}.alpha"] = torch.tensor(float(alphas[layer]))
    return tensors


def read(path):
    """({layer: change}, notes) of a file, without the warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BLoRAWarning)
        blora = BLoRA.load(path)
    return {layer: b @ a for layer, (a, b) in blora.layers.items()}, blora.notes, blora


def agree(found, wanted):
    assert found.keys() == wanted.keys()
    for layer, change in wanted.items():
        assert (found[layer] - change).norm() <= 1e-5 * change.norm(), layer


def times(lora, scale):
    """{layer: change}, at one scale for all layers or at one that a function gives."""
    scale_of = scale if callable(scale) else lambda layer: scale
    return {layer: scale_of(layer) * (b @ a) for layer, (a, b) in lora.items()}


# --- any LoRA, written in any way, is read as itself ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("scales")


numbers = st.sampled_from([0.25, 0.5, 1, 2, 3.5, 8, 16, 32, 128, -4])
WAYS = ["own", "header", "header, plain", "header, nested"]
WAYS += ["beside", "entry", "plain", "kohya's header"]
TEXTS = [str, lambda n: f"{n:.3f}", lambda n: f" {n}", lambda n: f'"{n}"']


@st.composite
def loras(draw):
    ranks = {layer: draw(st.integers(1, 5)) for layer in LAYERS}
    return {
        "ranks": ranks,
        "alpha": draw(numbers),
        "pattern": draw(st.dictionaries(st.sampled_from(LAYERS), numbers, max_size=4)),
        "rslora": draw(st.booleans()),
        "naming": draw(st.sampled_from(sorted(NAMINGS))),
        "way": draw(st.sampled_from(WAYS)),
        "file": draw(st.sampled_from(["fish", "adapter_model", "pytorch_lora_weights", "Ø 1"])),
        "text": draw(st.sampled_from(TEXTS)),
        "seed": draw(st.integers(0, 99)),
    }


@settings(
    max_examples=100,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(loras())
@pytest.mark.slow
def test_a_lora_is_read_as_itself_however_it_is_written(folder, drawn):
    lora = random_lora(drawn["ranks"].get, drawn["seed"])
    ranks, alpha, way = drawn["ranks"], drawn["alpha"], drawn["way"]
    pattern = {} if way in ("plain", "kohya's header") else drawn["pattern"]

    def scale(layer):
        rank = ranks[layer]
        return pattern.get(layer, alpha) / (math.sqrt(rank) if drawn["rslora"] else rank)

    config = {"r": ranks[LAYERS[0]], "lora_alpha": alpha, "use_rslora": drawn["rslora"]}
    config["rank_pattern"] = {f"^{layer}": rank for layer, rank in ranks.items()}
    config["alpha_pattern"] = {f"^{layer}": number for layer, number in pattern.items()}
    beside, header, own = folder / "adapter_config.json", {}, None
    for old in folder.iterdir():
        old.unlink()
    match way:
        case "own":
            own = {layer: scale(layer) * rank for layer, rank in ranks.items()}
        case "header":
            prefixed = {f"unet.{k}": v for k, v in config.items()}
            header["lora_adapter_metadata"] = json.dumps(prefixed)
        case "header, plain":
            header["lora_adapter_metadata"] = json.dumps(config | {"text_encoder.lora_alpha": 77})
        case "header, nested":
            header["lora_adapter_metadata"] = json.dumps({"unet": {"default": config}})
        case "beside":
            beside.write_text(json.dumps(config))
        case "entry":
            header["lora_config"] = json.dumps(config)
        case "plain":
            header |= {"lora_alpha": drawn["text"](alpha), "use_rslora": str(drawn["rslora"])}
        case _:
            header |= {"ss_network_alpha": drawn["text"](alpha), "ss_network_dim": "Dynamic"}
            header["ss_network_args"] = json.dumps({"rs_lora": str(drawn["rslora"])})
    file = folder / f"{drawn['file']}.safetensors"
    save_file(named(lora, drawn["naming"], own), file, header)
    wanted = times(lora, scale)
    found, _, blora = read(file)
    agree(found, wanted)
    agree(read(folder)[0], wanted)
    for format in ("diffusers", "peft", "kohya", "sgm"):
        again = folder / format if format == "peft" else folder / f"{format}.safetensors"
        written = blora.save(again, format)
        assert not any("_orig_mod" in key or "module" in key for key in load_file(written))
        agree(read(again)[0], wanted)
        written.unlink()
        if format == "peft":
            (again / "adapter_config.json").unlink()
            again.rmdir()


# --- the order of precedence, and what is said ---


def test_what_a_place_says_is_used_in_the_order_of_the_documentation(tmp_path):
    """Each place says another alpha; one after the other is taken away."""
    lora = random_lora(lambda layer: 2)
    alphas = dict.fromkeys(LAYERS, 2.0)
    header = {
        "lora_adapter_metadata": json.dumps({"unet.lora_alpha": 6}),
        "lora_config": json.dumps({"lora_alpha": 8}),
        "ss_network_alpha": "10",
        "lora_alpha": "12",
    }
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({"lora_alpha": 4}))
    file = tmp_path / "x.safetensors"
    for place in range(len(SOURCES) + 1):
        save_file(named(lora, "peft", alphas), file, header)
        found, notes, _ = read(file)
        # the places say 2, 4, 6 …, which for rank 2 are the scales 1, 2, 3 …; the last one 1 again
        agree(found, times(lora, float(place + 1) if place < len(SOURCES) else 1.0))
        if place < len(SOURCES) - 1:
            said = " ".join(notes)
            assert "the latter is used" in said or "says something else" in said
        if place == 0:
            alphas = None
        elif place == 1:
            config.unlink()
        elif place < len(SOURCES):
            header.pop(next(iter(header)))
    (note,) = notes
    assert note == "there is no adapter_config.json beside it; the alpha is taken to be the rank."


SAID = {
    "kohya's header only": (
        "kohya",
        {"ss_network_alpha": "1", "ss_network_dim": "4"},
        0.25,
        "ss_network_alpha in the header says 1, which was used",
    ),
    "kohya's zero": ("kohya", {"ss_network_alpha": "0"}, 1.0, "kohya takes for the rank"),
    "kohya's None": ("kohya", {"ss_network_alpha": "None"}, 1.0, "no layer has an alpha"),
    "another rank": (
        "kohya",
        {"ss_network_alpha": "8", "ss_network_dim": "16"},
        2.0,
        "says another rank than the matrices have",
    ),
    "a rank of zero": (
        "diffusers",
        {"lora_alpha": "8", "rank": "0"},
        2.0,
        "gives 0 as the rank, which no LoRA has",
    ),
    "a rank of NaN": (
        "diffusers",
        {"lora_alpha": "8", "r": "nan"},
        2.0,
        "gives nan as the rank, which no LoRA has",
    ),
    "a negative rank": (
        "diffusers",
        {"lora_alpha": "8", "lora_rank": "-4"},
        2.0,
        "gives -4 as the rank, which no LoRA has",
    ),
    "no number": ("diffusers", {"lora_alpha": "high"}, 1.0, "that is no number and was not used"),
    "two names": (
        "diffusers",
        {"lora_alpha": "8", "alpha": "2"},
        2.0,
        "also gives alpha 2, which was not used",
    ),
    "rslora alone": (
        "diffusers",
        {"use_rslora": "true"},
        2.0,
        "gives use_rslora but no lora_alpha",
    ),
    "how it is to be used": ("diffusers", {"lora_scale": "2"}, 1.0, "lora_scale 2 in the header"),
    "no JSON": ("diffusers", {"lora_config": "{'lora_alpha': 2}"}, 1.0, "is no JSON object"),
    "JSON in JSON": (
        "diffusers",
        {"adapter_metadata": json.dumps({"peft_config": {"default": {"r": 4, "lora_alpha": 2}}})},
        0.5,
        "adapter_metadata in the header says 2, which was used",
    ),
    "a rank without an alpha": ("diffusers", {"rank": "4"}, 1.0, "gives no lora_alpha"),
    "negative": ("diffusers", {"alpha": "-4"}, -1.0, "a negative alpha"),
    "of no part in particular": (
        "no prefix",
        {"lora_adapter_metadata": json.dumps({"r": 4, "lora_alpha": 1})},
        0.25,
        None,
    ),
    "of the text encoder only": (
        "diffusers",
        {"lora_adapter_metadata": json.dumps({"text_encoder.lora_alpha": 1})},
        1.0,
        None,
    ),
    "as texts": (
        "diffusers",
        {"lora_adapter_metadata": json.dumps({"lora_alpha": "8", "use_rslora": "True"})},
        4.0,
        None,
    ),
    "nothing": ("peft", {}, 1.0, "there is no adapter_config.json beside it"),
}


@pytest.mark.parametrize("case", SAID)
def test_what_is_odd_or_missing_is_said(tmp_path, case):
    naming, header, scale, note = SAID[case]
    lora = random_lora(lambda layer: 4)
    save_file(named(lora, naming), tmp_path / "x.safetensors", header)
    found, notes, _ = read(tmp_path / "x.safetensors")
    agree(found, times(lora, scale))
    assert any(note in said for said in notes) if note else notes == []


@pytest.fixture
def beside(tmp_path):
    """A folder with one config and three files, of which PEFT may have written two."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    for name, naming in (("a", "peft"), ("b", "kohya"), ("adapter_model", "peft")):
        save_file(named(random_lora(rank_4), naming), tmp_path / f"{name}.safetensors")
    return tmp_path


def rank_4(layer):
    return 4


@pytest.mark.parametrize(
    ("name", "scale", "note"),
    [
        ("a", 2, "may be about adapter_model.safetensors, b.safetensors"),
        ("b", 1, "not used"),
        ("adapter_model", 2, None),
    ],
)
def test_whose_config_it_is_beside_several_files_is_said(beside, name, scale, note):
    found, notes, _ = read(beside / f"{name}.safetensors")
    agree(found, times(random_lora(rank_4), scale))
    assert any(note in said for said in notes) if note else notes == []


def test_a_config_beside_a_single_file_is_used_whoever_wrote_the_file(beside):
    for name in ("a", "adapter_model"):
        (beside / f"{name}.safetensors").unlink()
    found, notes, _ = read(beside / "b.safetensors")
    agree(found, times(random_lora(rank_4), 2))
    assert "not PEFT's, but the adapter_config.json beside it was used" in notes[0]


# --- what is refused ---

CONVERSION = "path_initial_model_for_weight_conversion"
CONVERTED = {
    "pissa": "PiSSA",
    "pissa_niter_16": "PiSSA",
    "PiSSA": "PiSSA",
    "olora": "OLoRA",
    "corda": "CorDA",
    "lora_ga": "LoRA-GA",
    "LoRA-GA": "LoRA-GA",
}
OTHER_METHODS = {
    **{init: ({"init_lora_weights": init}, name, CONVERSION) for init, name in CONVERTED.items()},
    "loftq": ({"init_lora_weights": "loftq"}, "LoftQ", "gaussian"),
    "kasa": ({"kasa_config": {"beta": 1e-4}}, "KaSA", "gaussian"),
    "dora": ({"use_dora": True}, "DoRA", "only plain LoRA"),
    "loha": ({"peft_type": "LOHA"}, "LOHA", "only LORA"),
}
PLACES = ("beside", "header", "header, plain", "header, another name", "entry", "plain")


def with_config(tmp_path, config, place, tensors):
    """A file of weights with a config in one of the `PLACES`."""
    header = {}
    if place == "beside":
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    elif place == "entry":
        header["peft_config"] = json.dumps({"lora_alpha": 8} | config)
    elif place == "plain":
        for key, value in config.items():
            header[key] = value if isinstance(value, str) else json.dumps(value)
    else:
        start = {"header": "unet.", "header, another name": "transformer."}.get(place, "")
        prefixed = {start + key: value for key, value in config.items()}
        header["lora_adapter_metadata"] = json.dumps(prefixed)
    save_file(tensors, tmp_path / "x.safetensors", header)
    return tmp_path / "x.safetensors"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("method", OTHER_METHODS)
def test_adapters_that_are_no_plain_lora_on_the_base_are_refused(tmp_path, pipe, method, place):
    config, name, remedy = OTHER_METHODS[method]
    file = with_config(tmp_path, config, place, named(random_lora(lambda layer: 2), "peft"))
    with pytest.raises(BLoRAError, match=f"{name}.*{remedy}"):
        BLoRA.load(file)
    with pytest.raises(BLoRAError, match=f"{name}.*{remedy}"):
        merge_few_step_lora(pipe, file)


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal", "mica", None])
def test_ways_to_begin_that_leave_the_base_alone_are_read(tmp_path, init):
    lora = random_lora(lambda layer: 2)
    config = {
        "init_lora_weights": init,
        "lora_alpha": 4,
        "use_dora": False,
        "kasa_config": None,
        "peft_type": "LORA",
    }
    found, notes, _ = read(with_config(tmp_path, config, "beside", named(lora, "peft")))
    agree(found, times(lora, 2))
    assert notes == []


def test_settings_of_several_models_none_of_which_is_the_unet_are_refused(tmp_path):
    config = {"one.lora_alpha": 2, "two.lora_alpha": 4}
    file = with_config(
        tmp_path, config, "header, plain", named(random_lora(lambda layer: 2), "diffusers")
    )
    with pytest.raises(BLoRAError, match="one, two, which differ"):
        BLoRA.load(file)


LAYER = "transformer_blocks_0_attn1_to_k"
OWN = "output_blocks_0_1_" + LAYER
WEIGHTS_OF = {
    "(IA)^3": [f"lora_unet_{OWN}.on_input", f"lora_unet_{OWN}.weight"],
    "OFT": [
        f"oft_unet_output_blocks_1_1_{LAYER}.oft_blocks",
        f"oft_unet_output_blocks_1_1_{LAYER}.alpha",
    ],
    "PEFT's BOFT": [f"base_model.model.{LAYERS[0]}.boft_R"],
    "GLoRA": [f"lycoris_{OWN}.a2.weight", f"lycoris_{OWN}.b1.weight"],
    "DoRA": [f"lora_unet_{OWN}.dora_scale"],
    "LoHa of convolutions": [f"lora_unet_{OWN}.hada_t1"],
    "LoKr of convolutions": [f"lora_unet_{OWN}.lokr_t2"],
    "full weight differences": [f"diffusion_model.{OWN}.diff"],
    "LoRA with a bias": [f"base_model.model.{LAYERS[0]}.lora_B.bias"],
    "PEFT's VERA": [f"base_model.model.{LAYERS[0]}.vera_lambda_b"],
    "KaSA": [f"base_model.model.{LAYERS[0]}.lora_diag"],
    "AdaLoRA": [f"base_model.model.{LAYERS[0]}.lora_E"],
    "Bone": [f"base_model.model.{LAYERS[0]}.bone_.weight"],
    "PEFT's RANDLORA": [f"base_model.model.{LAYERS[0]}.randlora_lambda"],
}


@pytest.mark.parametrize("method", WEIGHTS_OF)
def test_other_methods_are_refused_by_name(tmp_path, pipe, method):
    file = tmp_path / "x.safetensors"
    save_file({key: torch.ones(2, 2) for key in WEIGHTS_OF[method]}, file)
    words = re.escape(f" belongs to {method};")
    with pytest.raises(BLoRAError, match=words):
        BLoRA.load(file)
    with pytest.raises(BLoRAError, match=words):
        merge_few_step_lora(pipe, file)


@pytest.mark.parametrize("format", ["diffusers", "kohya", "peft"])
def test_of_names_that_are_all_loras_peft_is_not_asked(tmp_path, monkeypatch, format):
    lora = random_lora(lambda layer: 2)
    save_file(named(lora, format), tmp_path / "x.safetensors")
    # no module of this name can be imported any more
    monkeypatch.setitem(sys.modules, "peft.mapping", None)
    agree(read(tmp_path / "x.safetensors")[0], times(lora, 1))


def test_an_adapter_may_be_called_like_another_method(tmp_path):
    lora = random_lora(lambda layer: 2)
    tensors = {
        key.replace(".weight", ".my_oft_1.weight"): t for key, t in named(lora, "peft").items()
    }
    save_file(tensors, tmp_path / "x.safetensors")
    agree(read(tmp_path / "x.safetensors")[0], times(lora, 1))


def test_whole_weights_outside_the_two_blocks_are_left_out_and_inside_refused(tmp_path):
    lora = random_lora(lambda layer: 2)
    others = [
        "conv_out.weight",
        "conv_out.bias",
        "time_embedding.linear_1.weight",
        "conv_norm_out.bias",
        "up_blocks.1.resnets.0.norm1.weight",
    ]
    tensors = named(lora, "peft") | {f"base_model.model.{name}": torch.ones(2) for name in others}
    save_file(tensors, tmp_path / "x.safetensors")
    found, notes, _ = read(tmp_path / "x.safetensors")
    agree(found, times(lora, 1))
    assert "Weights left out: 5 of other blocks" in notes[0]
    save_file(
        tensors | {f"base_model.model.{CONTENT_BLOCK}.norm.weight": torch.ones(2)},
        tmp_path / "x.safetensors",
    )
    with pytest.raises(BLoRAError, match="norm.weight is a whole weight or bias.*modules_to_save"):
        BLoRA.load(tmp_path / "x.safetensors")


def test_a_blora_of_a_compiled_model_has_ordinary_names(tmp_path):
    tensors = named(random_lora(lambda layer: 2), "compiled")
    blora = BLoRA(tensors)
    assert list(blora.layers) == LAYERS
    agree(
        read(blora.save(tmp_path / "x.safetensors"))[0],
        times(random_lora(lambda layer: 2), 1),
    )


# --- LoKr with whole factors ---


@pytest.mark.parametrize(
    ("header", "alpha", "scale"),
    [
        ({"ss_network_dim": "16", "ss_network_alpha": "16"}, 64.0, 4.0),  # LyCORIS's rs_lora
        ({"ss_network_dim": "32", "ss_network_alpha": "1"}, 1.0, 1 / 32),
        ({"ss_network_dim": "10000", "ss_network_alpha": "10000"}, 10000.0, 1.0),
        ({"ss_network_dim": "None"}, 64.0, 1.0),
        ({"ss_network_dim": "16"}, math.inf, 1.0),
        ({}, 9999999999.0, 1.0),
    ],
)
def test_a_lokr_of_whole_factors_is_divided_by_the_headers_dim(tmp_path, header, alpha, scale):
    tensors, wanted, draw = {}, {}, torch.Generator().manual_seed(1)
    for layer, (a, b) in random_lora(lambda layer: 1).items():
        one = torch.randn(4, 4, generator=draw)
        two = torch.randn(b.shape[0] // 4, a.shape[1] // 4, generator=draw)
        stem = f"lycoris_{flat(layer)}"
        tensors |= {
            f"{stem}.lokr_w1": one,
            f"{stem}.lokr_w2": two,
            f"{stem}.alpha": torch.tensor(alpha),
        }
        wanted[layer] = scale * torch.kron(one, two)
    save_file(tensors, tmp_path / "x.safetensors", header)
    found, notes, _ = read(tmp_path / "x.safetensors")
    agree(found, wanted)
    said = any("scale 1 was used" in note for note in notes)
    assert said == (header.get("ss_network_dim", "None") == "None" or alpha == math.inf)


# --- few-step LoRAs ---


BLOCK, OWN_BLOCK = "transformer_blocks.0.", "transformer_blocks_0_"
# layers of every kind, and their names in SDXL's own code, which Lightning's files have
OWN_NAMES = {
    "down_blocks.0.downsamplers.0.conv": "input_blocks_3_0_op",
    "down_blocks.1.attentions.0.proj_in": "input_blocks_4_1_proj_in",
    f"down_blocks.2.attentions.1.{BLOCK}attn1.to_q": f"input_blocks_8_1_{OWN_BLOCK}attn1_to_q",
    "down_blocks.2.resnets.1.conv1": "input_blocks_8_0_in_layers_2",
    "mid_block.resnets.1.time_emb_proj": "middle_block_2_emb_layers_1",
    f"up_blocks.0.attentions.1.{BLOCK}attn2.to_out.0": (
        f"output_blocks_1_1_{OWN_BLOCK}attn2_to_out_0"
    ),
    f"up_blocks.0.attentions.2.{BLOCK}ff.net.0.proj": (
        f"output_blocks_2_1_{OWN_BLOCK}ff_net_0_proj"
    ),
    "up_blocks.0.upsamplers.0.conv": "output_blocks_2_2_conv",
    "up_blocks.1.resnets.0.conv2": "output_blocks_3_0_out_layers_3",
    "up_blocks.1.resnets.0.conv_shortcut": "output_blocks_3_0_skip_connection",
}
HEADER = {"unet.r": 4, "unet.lora_alpha": 3.0, "unet.use_rslora": True}
HEADER |= {"unet.target_modules": list(OWN_NAMES), "unet.rank_pattern": {}}
HEADER["unet.alpha_pattern"] = {}
# {kind of file: (naming, the .alpha of every layer, header, scale)}; the rank is 4
FEW_STEP = {
    "LCM": ("kohya", 8, {}, 2),
    "LCM, small alpha": ("kohya", 1, {}, 1 / 4),
    "Lightning": ("own", 2, {}, 1 / 2),
    "Lightning, no alphas": ("own", None, {}, 1),
    "diffusers": ("diffusers", None, {}, 1),
    "diffusers, PEFT's endings": ("diffusers, PEFT's endings", None, {}, 1),
    "diffusers, header": (
        "diffusers, PEFT's endings",
        None,
        {"lora_adapter_metadata": json.dumps(HEADER)},
        3 / math.sqrt(4),
    ),
}


def few_step_lora(pipe, naming, alpha):
    """(tensors of a file, {layer: change at scale 1})."""
    draw = torch.Generator().manual_seed(0)
    tensors, changes = {}, {}
    stem_of, endings = NAMINGS["kohya" if naming == "own" else naming]
    down, up = ENDINGS[endings]
    for layer, own_name in OWN_NAMES.items():
        shape = pipe.unet.get_submodule(layer).weight.shape
        a = torch.randn(4, *shape[1:], generator=draw) / 9
        b = torch.randn(shape[0], 4, *[1] * (len(shape) - 2), generator=draw) / 9
        changes[layer] = (b.flatten(1) @ a.flatten(1)).reshape(shape)
        stem = f"lora_unet_{own_name}" if naming == "own" else stem_of(layer)
        tensors |= {f"{stem}.{down}.weight": a, f"{stem}.{up}.weight": b}
        if alpha is not None:
            tensors[f"{stem}.alpha"] = torch.tensor(float(alpha))
    return tensors, changes


def weights_of(pipe):
    models = (pipe.unet, pipe.text_encoder, pipe.text_encoder_2)
    return [t.clone() for model in models for t in model.state_dict().values()]


@pytest.mark.parametrize("kind", FEW_STEP)
def test_a_few_step_lora_adds_exactly_what_it_says(fresh, tmp_path, kind):
    naming, alpha, header, scale = FEW_STEP[kind]
    tensors, changes = few_step_lora(fresh, naming, alpha)
    file = tmp_path / "few.safetensors"
    save_file(tensors, file, header)
    before = {layer: t.clone() for layer, t in fresh.unet.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merge_few_step_lora(fresh, file)
    after = fresh.unet.state_dict()
    for name, weight in before.items():
        layer = name.removesuffix(".weight")
        if layer in changes:
            change = scale * changes[layer]
            assert (after[name] - weight - change).norm() < 1e-5 * change.norm(), layer
        else:
            assert torch.equal(after[name], weight), layer
    assert options_of(fresh)["few_step_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_beside_a_fused_lora_none_is_merged(fresh, tmp_path):
    for seed, name in ((4, "few.safetensors"), (2, "mine.safetensors")):
        save_file(few_step_lora(fresh, "kohya", seed)[0], tmp_path / name)
    fresh.load_lora_weights(tmp_path, weight_name="mine.safetensors", adapter_name="mine")
    fresh.fuse_lora()
    fused = weights_of(fresh)
    with pytest.raises(PipelineError, match=r"mine is fused .* pipe.unfuse_lora\(\)"):
        merge_few_step_lora(fresh, tmp_path / "few.safetensors")
    assert all(map(torch.equal, weights_of(fresh), fused))


def test_a_few_step_lora_is_merged_once_and_noted(fresh, tmp_path):
    """As when a cell of a notebook is run again. Merged twice, it would act with twice its
    strength."""
    squares = [Image.new("RGB", (96, 96))]
    plain = what_is_learned(fresh, squares)["base model"]
    for seed, name in ((4, "few.safetensors"), (2, "other.safetensors")):
        save_file(few_step_lora(fresh, "kohya", seed)[0], tmp_path / name)
    merge_few_step_lora(fresh, tmp_path / "few.safetensors")
    once = weights_of(fresh)
    merge_few_step_lora(fresh, tmp_path / "few.safetensors")
    with pytest.raises(BLoRAError, match="few.safetensors is merged into this base model already"):
        merge_few_step_lora(fresh, tmp_path / "other.safetensors")
    assert all(map(torch.equal, weights_of(fresh), once))
    assert what_is_learned(fresh, squares)["base model"] != plain, "a training is of this base"


@pytest.mark.parametrize(
    ("merged", "timesteps"), [(True, [999, 749, 499, 249]), (False, [751, 501, 251, 1])]
)
def test_beside_a_few_step_lora_euler_begins_at_the_last_timestep(
    fresh, tmp_path, merged, timesteps
):
    """SDXL's own schedule begins at 751 of four steps; Lightning LoRAs were taught from 999 on."""
    fresh.scheduler.register_to_config(timestep_spacing="leading", steps_offset=1)
    if merged:
        save_file(few_step_lora(fresh, "kohya", 4)[0], tmp_path / "few.safetensors")
        merge_few_step_lora(fresh, tmp_path / "few.safetensors")
    use_scheduler(fresh, "euler")
    fresh.scheduler.set_timesteps(4)
    assert fresh.scheduler.timesteps.tolist() == timesteps


def test_a_small_scale_does_not_vanish_in_float16(tmp_path):
    name = "down_blocks.2.attentions.0.transformer_blocks.0.attn1.to_q"
    pipe = load_pipeline(device="cpu", dtype=torch.float16)
    module = pipe.unet.get_submodule(name)
    torch.nn.init.zeros_(module.weight)
    a, b = torch.randn(4, 144) * 8, torch.randn(144, 4) * 1e-3
    stem = f"lora_unet_{flat(name)}"
    tensors = {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b}
    save_file(tensors | {f"{stem}.alpha": torch.tensor(4e-3)}, tmp_path / "few.safetensors")
    merge_few_step_lora(pipe, tmp_path / "few.safetensors")
    wanted = b @ a * 1e-3
    assert (module.weight.float() - wanted).norm() < 5e-3 * wanted.norm()


ODD_LAYER = f"down_blocks.2.attentions.0.{BLOCK}attn1.to_q"
DOWN, UP = (f"unet.{ODD_LAYER}.lora.{part}.weight" for part in ("down", "up"))
FITTING = {DOWN: torch.ones(2, 144), UP: torch.ones(144, 2)}
OF_PEFT = {
    f"base_model.model.{ODD_LAYER}.lora_{part}.weight": t for part, t in zip("AB", FITTING.values())
}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({DOWN: torch.ones(2, 144)}, "without its partner"),
        ({DOWN: torch.ones(2, 640), UP: torch.ones(640, 2)}, "cannot load it into this base"),
        ({DOWN: torch.ones(2, 144), UP: torch.ones(144, 3)}, "cannot load it into this base"),
        ({DOWN: torch.full((2, 144), math.nan), UP: torch.ones(144, 2)}, "NaN"),
        (
            {"unet.some_layer.lora.down.weight": torch.ones(2, 2)}
            | {"unet.some_layer.lora.up.weight": torch.ones(2, 2)},
            "cannot load it into this base.*some_layer",
        ),
        (
            FITTING
            | {"unet.some_layer.lora.down.weight": torch.ones(2, 2)}
            | {"unet.some_layer.lora.up.weight": torch.ones(2, 2)},
            "finds 1 of its 2 layers",
        ),
        (OF_PEFT, "finds 0 of its 1 layers"),
        (FITTING | {f"unet.{ODD_LAYER}.alpha": torch.ones(2)}, "an alpha is one number"),
        ({DOWN: torch.tensor(1.0), UP: torch.ones(144, 2)}, "a LoRA's matrix has two sides"),
        ({DOWN: torch.ones(2, 144).bool(), UP: torch.ones(144, 2)}, "numbers of the format BOOL"),
        ({f"unet.{ODD_LAYER}.weight": torch.ones(2, 2)}, "None of its weights"),
        ({"bundle_emb.x.clip_l": torch.ones(1, 8)}, "None of its weights"),
    ],
)
def test_a_few_step_lora_that_does_not_fit_is_refused_and_the_base_stays(
    tmp_path, pipe, caplog, tensors, message
):
    remove(pipe)
    before = weights_of(pipe)
    save_file(tensors, tmp_path / "few.safetensors")
    with pytest.raises(BLoRAError, match=message) as caught:
        merge_few_step_lora(pipe, tmp_path / "few.safetensors")
    assert str(caught.value).startswith(str(tmp_path))
    assert not caplog.records
    assert pipe.get_list_adapters() == {}
    assert not any(hasattr(module, "base_layer") for module in pipe.unet.modules())
    assert all(map(torch.equal, weights_of(pipe), before))
    assert "few_step_lora" not in options_of(pipe)


def test_a_few_step_lora_without_its_ending_is_not_taken_for_a_pickled_file(tmp_path, pipe):
    save_file(FITTING, tmp_path / "few.bin")
    with pytest.raises(BLoRAError, match=r"end in \.safetensors"):
        merge_few_step_lora(pipe, tmp_path / "few.bin")


@pytest.mark.parametrize("way", ["own", "some without", "ranks", "header", "beside"])
def test_a_few_step_lora_of_which_diffusers_would_miss_the_alphas_is_refused(tmp_path, pipe, way):
    tensors, _ = few_step_lora(pipe, "kohya", 2 if way == "some without" else None)
    first, *others = (f"lora_unet_{flat(layer)}" for layer in OWN_NAMES)
    header = {}
    match way:
        case "own":
            tensors |= {f"{stem}.alpha": torch.tensor(2.0) for stem in others}
            tensors[f"{first}.alpha"] = torch.tensor(1.0)
        case "some without":
            del tensors[f"{first}.alpha"]
        case "ranks":
            for part in ("down", "up"):
                name = f"{first}.lora_{part}.weight"
                cut = tensors[name][:2] if part == "down" else tensors[name][:, :2]
                tensors[name] = cut.contiguous()
        case "header":
            header["ss_network_alpha"] = "2"
        case "beside":
            (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 2}')
    save_file(tensors, tmp_path / "few.safetensors", header)
    with pytest.raises(BLoRAError, match="diffusers would merge it at another strength"):
        merge_few_step_lora(pipe, tmp_path / "few.safetensors")


# --- real writers ---


@pytest.mark.parametrize(
    ("rank", "alpha", "rslora"), [(8, 32, False), (4, 1, False), (16, 8, True)]
)
def test_what_diffusers_saves_of_an_adapter_is_read_at_its_scale(tmp_path, rank, alpha, rslora):
    from peft import LoraConfig

    unet = load_pipeline(device="cpu").unet
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        use_rslora=rslora,
        init_lora_weights=False,
        target_modules=target_modules(),
    )
    unet.add_adapter(config, adapter_name="mine")
    wanted = {
        name: m.get_delta_weight("mine").detach()
        for name, m in unet.named_modules()
        if hasattr(m, "get_delta_weight")
    }
    unet.save_lora_adapter(tmp_path, adapter_name="mine")
    found, notes, _ = read(tmp_path)
    agree(found, wanted)
    assert notes == []


# --- the documentation ---


def test_the_documentation_lists_the_places_and_the_refused_methods():
    text = (Path(__file__).resolve().parent.parent / "docs" / "formats.md").read_text(
        encoding="utf-8"
    )
    scales = text.split("## Scales")[1].split("## Refused")[0]
    rows = [line.split("|")[2].strip(" `") for line in scales.splitlines() if line.startswith("| ")]
    assert rows[1:-1] == [place for place, _ in SOURCES]
    refused = text.split("## Refused")[1].split("\n## ")[0].replace("\n  ", " ")
    bullets = [line[2:].split(":")[0] for line in refused.splitlines() if line.startswith("* ")]
    assert ", ".join(bullets).split(", ") == [*REFUSED_METHODS, *CHANGE_THE_BASE.values()]
