"""The teaching model is a plain SDXL pipeline, small, and good; and the halves of a B-LoRA do what the README says."""

import json
import re
from pathlib import Path

import torch

from blora_nb.assets import TINY_SDXL, fingerprint
from blora_nb.blocks import CONTENT_BLOCK, STYLE_BLOCK
from blora_nb.generation import generate
from drawings import OBJECTS, STYLES, draw, is_held_out

ROOT = Path(__file__).resolve().parent.parent
HELD_OUT = [(o, s) for o in OBJECTS for s in STYLES if is_held_out(o, s)]


def test_diffusers_loads_it_without_our_code():
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(TINY_SDXL)
    image = pipe(
        "A cat in neon style", num_inference_steps=4, generator=torch.Generator().manual_seed(0)
    ).images[0]
    assert image.size == (96, 96)
    assert sum(f.stat().st_size for f in TINY_SDXL.rglob("*") if f.is_file()) <= 16_000_000


def test_it_draws_combinations_it_never_saw(pipe, judge):
    generators = [torch.Generator().manual_seed(i) for i in range(len(HELD_OUT))]
    images = pipe(
        [f"A {o} in {s} style" for o, s in HELD_OUT],
        generator=generators,
        num_inference_steps=20,
        guidance_scale=3.0,
    ).images
    verdicts = judge.name(images)
    assert sum(v[0] == o for v, (o, _) in zip(verdicts, HELD_OUT)) >= 20
    assert sum(v[1] == s for v, (_, s) in zip(verdicts, HELD_OUT)) >= 21


def test_the_autoencoder_gives_pictures_back(pipe):
    from blora_nb.files.images import to_tensor

    pixels = torch.cat(
        [to_tensor(draw(o, s, 3_000_000 + i, 96)) for i, (o, s) in enumerate(HELD_OUT)]
    )
    with torch.no_grad():
        decoded = pipe.vae.decode(pipe.vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
    psnr = -10 * torch.log10((decoded - pixels).square().mean((1, 2, 3)) / 4)
    assert psnr.mean() >= 27
    assert psnr.min() >= 20


def test_both_halves_rebuild_and_each_alone_keeps_its_part(pipe, judge, blora):
    seeds = range(6)
    count = lambda expected, prompt, **halves: judge.name(
        generate(pipe, prompt, **halves, seeds=seeds, progress=False)
    ).count(expected)
    assert count(("star", "sunset"), "A [v]", content=blora, style=blora) >= 4
    assert count(("star", "gold"), "A [c] in gold style", content=blora) >= 3
    assert count(("house", "sunset"), "A house in [s] style", style=blora) >= 3


def test_the_stored_measurements_belong_to_this_model_and_reach_the_goals():
    """They are made again by `make bench`."""
    separation, model, recipes, structure = (
        json.loads((ROOT / "benchmarks" / f"{name}.json").read_text())
        for name in ("separation", "teaching_model", "recipes", "structure")
    )
    assert {stored["model"] for stored in (separation, model, recipes, structure)} == {
        fingerprint()
    }
    table = separation["table"]
    rivals = [
        table[name]["both"]
        for name in ("no LoRA", "ordinary LoRAs of both, all blocks", "B-LoRA, halves swapped")
    ]
    assert table["B-LoRA: style transfer"]["both"] >= 0.6
    assert max(rivals) < 0.4
    blocks = model["block maps"]["teaching model"]
    assert blocks[CONTENT_BLOCK]["object follows"] >= 0.8
    assert blocks[CONTENT_BLOCK]["style stays"] >= 0.8
    assert blocks[STYLE_BLOCK]["style follows"] >= 0.8
    assert blocks[STYLE_BLOCK]["object stays"] >= 0.7


def rows_of(text):
    """The tables in a Markdown text: the first cell of each row to the numbers in the others."""
    rows = {}
    for line in text.splitlines():
        first, *others = (
            [cell.strip(" *`") for cell in line.strip("|").split("|")]
            if line.startswith("|")
            else [""]
        )
        numbers = [float(cell) for cell in others if re.fullmatch(r"\d+\.\d+", cell)]
        if numbers:
            rows[first] = numbers
    return rows


def test_the_readme_quotes_what_was_measured():
    from recipes import against

    readme = (ROOT / "README.md").read_text()
    quoted = rows_of(readme)
    separation, recipes, structure = (
        json.loads((ROOT / "benchmarks" / f"{name}.json").read_text())
        for name in ("separation", "recipes", "structure")
    )
    for name, row in separation["table"].items():
        assert quoted[name] == [
            round(row[key], 2) for key in ("object", "style", "both", "standard error")
        ], name
    options = {
        "train --content_B_LoRA FIRST": "two-step style training",
        "generate --asymmetric_guidance": "asymmetric guidance",
        "train --x0_loss_from STEP": "x0 loss in the second half",
        "train --snr_gamma 5": "min-SNR 5",
        "generate --content_until .7 --style_from .3": "timed halves (content until .7, style from .3)",
    }
    for option, name in options.items():
        assert quoted[option] == [round(recipes["rows"][name]["both"], 2)], option
        assert (
            f"{option}` | {recipes['rows'][name]['both']:.2f} | {against(recipes['rows'][name], recipes['rows']['plain'])} |"
            in readme
        )
    kept = {
        "neither": "halves only",
        "generate --controlnet tiny --outline_of PICTURE": "ControlNet, scale 1.0",
        "generate --image PICTURE --strength 0.6": "img2img, strength 0.6",
    }
    for option, name in kept.items():
        assert quoted[option] == [
            round(structure["rows"][name][key], 2) for key in ("both", "layout")
        ], option
        assert (
            name == "halves only"
            or f"| {against(structure['rows'][name], structure['rows']['halves only'])} |" in readme
        )


def test_the_readme_quotes_what_was_followed():
    readme, rows = (
        (ROOT / "README.md").read_text(),
        json.loads((ROOT / "benchmarks" / "followed.json").read_text())["rows"],
    )
    quoted = {
        "blora_nb": "blora_nb, checkpointing none",
        "blora_nb, activations recomputed": "blora_nb, checkpointing full",
        "original script": "original script",
        "original script with gradient checkpointing": "original script with gradient checkpointing",
        "diffusers' advanced script": "diffusers' advanced script, latents cached",
        "diffusers' advanced script with gradient checkpointing": "diffusers' advanced script with gradient checkpointing, latents cached",
    }
    for name, row in quoted.items():
        assert (
            f"| {name} | {rows[row]['TFLOP']:.2f} | {rows[row]['operations']} | {rows[row]['peak memory, GiB']:.2f} |"
            in readme
        ), name


def test_the_readme_quotes_how_fast_it_was():
    quoted, sizes = (
        rows_of((ROOT / "README.md").read_text()),
        json.loads((ROOT / "benchmarks" / "training_speed.json").read_text()),
    )
    names = {
        "the original script": "original script",
        "the original script with gradient checkpointing": "original script with gradient checkpointing",
        "diffusers' advanced script, latents cached": "diffusers' advanced script, latents cached",
        "diffusers' advanced script with gradient checkpointing, latents cached": "diffusers' advanced script with gradient checkpointing, latents cached",
    }
    for name, row in names.items():
        assert quoted[name] == [
            round(sizes[size]["rows"][row]["times ours"], 2)
            for size in ("thin", "small", "quarter", "full")
        ], name
