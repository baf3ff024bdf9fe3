"""The teaching model is a plain SDXL pipeline, small, and good; halves do what the README says."""

import json
import re
from statistics import mean

import pytest
import torch

from blora_nb.assets import TINY_SDXL, known_words
from blora_nb.blocks import CONTENT_BLOCK, STYLE_BLOCK
from blora_nb.course.drawings import OBJECTS, STYLES, draw
from blora_nb.defaults import TINY_DEFAULTS
from blora_nb.evaluation.metrics import JudgeScorer
from blora_nb.evaluation.rebuilding import rebuild
from blora_nb.files.images import to_tensor
from blora_nb.generation import generate, sample
from blora_nb.guards.prompts import unknown_words
from conftest import ROOT
from recipes import against
from report import fingerprint

OWN = [draw(o, s, 3_000_000 + i, 96) for i, (o, s) in enumerate(zip(OBJECTS, STYLES))]


def test_diffusers_loads_it_without_our_code():
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(TINY_SDXL)
    generator = torch.Generator().manual_seed(0)
    image = pipe("A cat in neon style", num_inference_steps=4, generator=generator).images[0]
    assert image.size == (96, 96)
    assert sum(f.stat().st_size for f in TINY_SDXL.rglob("*") if f.is_file()) <= 32_000_000


@pytest.mark.slow
def test_it_draws_what_words_say(pipe, judge):
    wanted = list(zip(OBJECTS, STYLES))
    images = [sample(pipe, f"A {o} in {s} style", (1,), progress=False)[0] for o, s in wanted]
    named = JudgeScorer(judge).name(images)
    assert sum(found == wanted for (found, _), (wanted, _) in zip(named, wanted)) >= 8
    assert sum(found == wanted for (_, found), (_, wanted) in zip(named, wanted)) >= 7


def test_it_knows_hundreds_of_words(pipe):
    words = known_words()
    assert len(words["objects"]) >= 800
    assert len(words["styles"]) >= 24
    prompts = [f"A {name}" for name in words["objects"]]
    prompts += [f"A [c] in {name} style" for name in words["styles"]]
    prompts += [f"A {w} in red on {c} style" for w, c in zip(words["others"], words["colours"])]
    assert [unknown_words(pipe, prompt) for prompt in prompts] == [[]] * len(prompts)
    assert unknown_words(pipe, "A zeppelin in cubist style") == ["zeppelin", "cubist"]


def test_the_autoencoder_gives_pictures_back(pipe):
    pixels = torch.cat([to_tensor(picture) for picture in OWN])
    with torch.no_grad():
        decoded = pipe.vae.decode(pipe.vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
    psnr = -10 * torch.log10((decoded - pixels).square().mean((1, 2, 3)) / 4)
    assert psnr.mean() >= 30
    assert psnr.min() >= 25


@pytest.mark.slow
def test_both_halves_rebuild_and_each_alone_keeps_its_part(pipe, judge, picture, blora):
    assert rebuild(pipe, blora, picture).learned
    scorer = JudgeScorer(judge)

    def drawn(prompt, **halves):
        return generate(pipe, prompt, **halves, seeds=range(4), progress=False)

    golden = drawn("A [c] in gold style", content=blora)
    houses = drawn("A house in [s] style", style=blora)
    assert mean(scorer.content_kept(golden, picture)) > mean(scorer.content_kept(houses, picture))
    assert mean(scorer.style_moved(houses, picture)) > mean(scorer.style_moved(golden, picture))
    assert mean(scorer.says_style(golden, "gold")) > mean(scorer.says_style(houses, "gold"))


def measured(name):
    """The table that `make bench` has stored."""
    return json.loads((ROOT / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))


TABLES = [
    "tuning",
    "separation",
    "teaching_model",
    "recipes",
    "structure",
    "sampling",
    "other_designers",
]


@pytest.mark.parametrize("name", TABLES)
def test_the_stored_measurements_belong_to_this_model_or_say_that_they_do_not(name):
    """They are made again by `make bench`."""
    page = (ROOT / "benchmarks" / f"{name}.md").read_text(encoding="utf-8")
    earlier = measured(name)["model"] != fingerprint()
    assert ("an earlier state of the teaching model" in page) == earlier


def test_options_that_were_measured_on_another_model_say_so():
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    earlier = measured("recipes")["model"] != fingerprint()
    assert ("on an earlier state of the teaching model" in page) == earlier


def test_the_halves_separate_better_than_their_rivals():
    table = measured("separation")["table"]
    names = ["no LoRA", "ordinary LoRAs of both, all blocks", "B-LoRA, halves swapped"]
    assert table["B-LoRA: style transfer"]["both"] >= 0.3
    assert max(table[name]["both"] for name in names) < 0.2


def test_no_training_was_found_that_is_clearly_better_than_the_default():
    table = measured("tuning")["table"]
    steps, learning_rate = TINY_DEFAULTS.max_train_steps, TINY_DEFAULTS.learning_rate
    chosen = table[f"{steps} steps at {learning_rate:g}"]
    for row in table.values():
        assert row["both"] - chosen["both"] < 2 * row["standard error"]


def test_no_guidance_was_found_that_is_clearly_better_than_the_default():
    rows = measured("tuning")["by guidance"]
    steps, learning_rate = TINY_DEFAULTS.max_train_steps, TINY_DEFAULTS.learning_rate
    trained = f"{steps} steps at {learning_rate:g}, guidance"
    chosen = rows[f"{trained} {TINY_DEFAULTS.guidance_scale:g}"]
    others = [row for name, row in rows.items() if name.startswith(trained)]
    assert len(others) > 2
    for row in others:
        assert row["both"] - chosen["both"] < 2 * row["standard error"]
        assert row["mean dB"] - chosen["mean dB"] < 0.5


def test_the_two_blocks_have_their_roles():
    blocks = measured("teaching_model")["block maps"]["teaching model"]
    for block, row in blocks.items():
        assert (row["object follows"] >= 0.9) == (block == CONTENT_BLOCK)
        assert (row["style follows"] >= 0.9) == (block == STYLE_BLOCK)
        if block != CONTENT_BLOCK:
            assert row["object follows"] <= 0.1
        if block != STYLE_BLOCK:
            assert row["style follows"] <= 0.1


PAGES = [ROOT / "docs" / f"{name}.md" for name in ("results", "speed", "options")]
DOCS = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def rows_of(text):
    """The tables in a Markdown text: each row's first cell to the numbers in the others."""
    rows = {}
    for line in text.splitlines():
        if line.startswith("|"):
            first, *others = (cell.strip(" *`") for cell in line.strip("|").split("|"))
            numbers = [float(cell) for cell in others if re.fullmatch(r"\d+\.\d+", cell)]
            if numbers:
                rows[first] = numbers
    return rows


QUOTED = rows_of(DOCS)


@pytest.mark.parametrize("name", measured("separation")["table"])
def test_the_docs_quote_the_separation(name):
    row = measured("separation")["table"][name]
    columns = ("object", "style", "both", "standard error")
    assert QUOTED[name] == [round(row[column], 2) for column in columns]


RECIPES = {
    "train --content_B_LoRA FIRST": "two-step style training",
    "train --x0_loss_from STEP": "x0 loss in the second half",
    "train --snr_gamma 5": "min-SNR 5",
}


@pytest.mark.parametrize("option", RECIPES)
def test_the_docs_quote_the_recipes(option):
    rows = measured("recipes")["rows"]
    row = rows[RECIPES[option]]
    assert QUOTED[option] == [round(row["both"], 2)]
    assert f"{option}` | {row['both']:.2f} | {against(row, rows['plain'])} |" in DOCS


STRUCTURES = {
    "neither": "halves only",
    "generate --controlnet tiny --outline_of PICTURE": "ControlNet, no content half",
    "generate --image PICTURE --strength 0.6": "img2img, strength 0.6",
}


@pytest.mark.parametrize("option", STRUCTURES)
def test_the_docs_quote_how_well_layouts_are_kept(option):
    rows = measured("structure")["rows"]
    row, plain = rows[STRUCTURES[option]], rows["halves only"]
    assert QUOTED[option] == [round(row[column], 2) for column in ("both", "layout")]
    assert row is plain or f"| {against(row, plain)} |" in DOCS


CACHED = "diffusers' advanced script, latents cached"
CHECKPOINTING = " with gradient checkpointing"
CACHED_CHECKPOINTING = f"diffusers' advanced script{CHECKPOINTING}, latents cached"
FOLLOWED = {
    "blora_nb": "blora_nb, checkpointing none",
    "blora_nb, activations recomputed": "blora_nb, checkpointing full",
    "original script": "original script",
    f"original script{CHECKPOINTING}": f"original script{CHECKPOINTING}",
    "diffusers' advanced script": CACHED,
    f"diffusers' advanced script{CHECKPOINTING}": CACHED_CHECKPOINTING,
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_the_docs_quote_what_was_followed(name):
    row = measured("followed")["rows"][FOLLOWED[name]]
    numbers = f"{row['TFLOP']:.2f} | {row['operations']} | {row['peak memory, GiB']:.2f}"
    assert f"| {name} | {numbers} |" in DOCS


SPEEDS = {
    "the original script": "original script",
    f"the original script{CHECKPOINTING}": f"original script{CHECKPOINTING}",
    CACHED: CACHED,
    CACHED_CHECKPOINTING: CACHED_CHECKPOINTING,
}


@pytest.mark.parametrize("name", SPEEDS)
def test_the_docs_quote_how_fast_it_was(name):
    sizes = measured("training_speed")
    times = [sizes[size]["rows"][SPEEDS[name]] for size in ("thin", "small", "quarter", "full")]
    assert QUOTED[name] == [round(row["times ours"], 2) for row in times]
