"""The world that the teaching model learns from; and a shortened run of the whole training."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from blora_nb.course.drawings import OBJECTS, label_map
from blora_nb.evaluation.judge import Judge
from world.painting import paint, place, random_poses
from world.styles import (
    HELD_OUT_HUES,
    HELD_OUT_NAMED_STYLES,
    HELD_OUT_PATTERNS,
    NAMED_STYLES,
    NUMBERS,
    PATTERNS,
    get,
    hue_of,
    random_styles,
)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def shapes() -> torch.Tensor:
    """Label maps uint8 [16, 4, 128, 128] of the objects that this repository draws."""
    maps = []
    for parts in OBJECTS.values():
        labels = label_map(parts, (0.9, 0.0, 0.0, 0.0), 0, 128)
        maps.append(np.stack([255 * (labels == part) for part in (1, 2, 3, 4)]).astype(np.uint8))
    return torch.from_numpy(np.stack(maps))


def test_pictures_are_the_same_for_the_same_numbers(shapes):
    def painted() -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        placed = place(shapes, random_poses(16, generator))
        return paint(placed, random_styles(16, generator))

    first = painted()
    assert first.shape == (16, 3, 128, 128)
    assert first.abs().max() <= 1
    assert torch.equal(first, painted())
    # no two of them are alike, and none is empty
    assert first.std((1, 2, 3)).min() > 0.02
    assert torch.cdist(first.flatten(1), first.flatten(1)).fill_diagonal_(99).min() > 5


def test_a_shape_stands_where_its_pose_says(shapes):
    moved = place(shapes[:1], torch.tensor([[0.5, 0.4, -0.2, 0.0, 1.0]]))[0].sum(0)
    y, x = (moved > 0.5).nonzero().float().mean(0).div(64).sub(1).tolist()
    middle_y, middle_x = (shapes[0].sum(0) > 127).nonzero().float().mean(0).div(64).sub(1).tolist()
    assert x == pytest.approx(0.4 + 0.5 * middle_x, abs=0.03)
    assert y == pytest.approx(-0.2 + 0.5 * middle_y, abs=0.03)


def test_held_out_styles_are_not_drawn_in_training():
    generator = torch.Generator().manual_seed(0)
    held_out = [PATTERNS.index(pattern) for pattern in HELD_OUT_PATTERNS]
    seen, unseen = random_styles(4000, generator), random_styles(400, generator, held_out=True)

    def has_new_pattern(styles: torch.Tensor) -> torch.Tensor:
        chosen = torch.stack(
            [get(styles, f"{part}_pattern").argmax(1) for part in ("ground", "fill")]
        )
        return sum((chosen == pattern).any(0) for pattern in held_out) > 0

    assert not has_new_pattern(seen).any()
    assert has_new_pattern(unseen).float().mean() > 0.4
    hue = hue_of(get(unseen, "main_1"))
    inside = (hue > HELD_OUT_HUES[0]) & (hue < HELD_OUT_HUES[1])
    assert (has_new_pattern(unseen) | inside).float().mean() > 0.9


def test_named_styles_are_many_and_differ():
    styles = torch.stack([*NAMED_STYLES.values(), *HELD_OUT_NAMED_STYLES.values()])
    assert len(NAMED_STYLES) >= 24
    assert len(HELD_OUT_NAMED_STYLES) >= 6
    assert styles.shape[1] == NUMBERS
    assert torch.cdist(styles, styles).fill_diagonal_(99).min() > 0.5


@pytest.mark.slow
def test_a_shortened_training_makes_a_whole_pipeline(shapes, tmp_path):
    """All stages on 16 shapes, a few steps each; stopped once in between."""
    names = np.array(list(OBJECTS))
    np.savez(
        tmp_path / "shapes.npz",
        coverage=shapes.numpy(),
        names=names,
        sets=np.array(["noto"] * len(names)),
        held_out=np.array([name in ("crown", "apple", "boat") for name in names]),
    )
    environment = {**os.environ, "TEACHING_MODEL_WORK": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def run(script: str, *arguments: object) -> str:
        command = [sys.executable, str(ROOT / "data" / script), *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
        return done.stdout

    few = ("--batch-size", 4)
    run("train_unet.py", "--pictures", 8, "--report-every", 0, *few)
    first = load_file(tmp_path / "unet.safetensors")
    assert '"never seen"' in run("train_unet.py", "--pictures", 16, *few)  # goes on, and measures
    second = load_file(tmp_path / "unet.safetensors")
    assert any(not torch.equal(first[name], second[name]) for name in first)
    run("train_vae.py", "--steps", 4, "--batch-size", 2)
    assert "psnr_mean_db" in json.loads((tmp_path / "vae_report.json").read_text(encoding="utf-8"))
    assert "unexplained" in run("train_eyes.py", "--steps", 2, "--batch-size", 2)
    few_triples = ("--batch-size", 4, "--pool-size", 16)
    assert "shape_among_100" in run("train_judge.py", "--steps", 2, *few_triples)
    judge = Judge.load(tmp_path / "judge")
    assert judge.named_objects.norm(dim=1).min() > 0.9
    assert "nouns" in run("teach_words.py", "--steps", 2, "--batch-size", 4)

    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(tmp_path / "tiny_sdxl")
    image = pipe("A house in neon style", num_inference_steps=2).images[0]
    assert image.size == (96, 96)
