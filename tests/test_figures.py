"""The still forms: each picture of a sweep is the one that `generate` draws, in its place.

And the caption says how.
"""

import io

import numpy as np
import pytest
from PIL import Image

from blora_nb.assets import DATA
from blora_nb.figures import alpha_grid, alpha_sweep, picture_grid, seed_ranking, seed_sweep
from blora_nb.generation import generate
from blora_nb.lora import BLoRA
from blora_nb.metrics import ranked


@pytest.fixture(scope="module")
def halves():
    return {
        "content": BLoRA.load(DATA / "bloras" / "cat_wood.safetensors"),
        "style": BLoRA.load(DATA / "bloras" / "flower_neon.safetensors"),
    }


def pictures(figure):
    """The pictures of a figure by the label of their column, or the one under them."""
    return [np.asarray(ax.images[0].get_array()) for ax in figure.axes if ax.images]


def test_a_grid_has_the_content_downwards_and_the_style_to_the_right(pipe, halves):
    figure = alpha_grid(
        pipe,
        **halves,
        content_alphas=(-1, 1),
        style_alphas=(0, 0.5, 1),
        seed=3,
        num_inference_steps=2,
        progress=False,
    )
    expected = [
        generate(
            pipe,
            "A [c] in [s] style",
            **halves,
            content_alpha=c,
            style_alpha=s,
            seeds=3,
            num_inference_steps=2,
            progress=False,
        )[0]
        for c in (-1, 1)
        for s in (0, 0.5, 1)
    ]
    assert all((a == np.asarray(b)).all() for a, b in zip(pictures(figure), expected, strict=True))
    assert [ax.get_ylabel() for ax in figure.axes[::3]] == ["content -1", "content 1"]
    assert "seed 3" in repr(figure)
    assert "content alpha -1 to 1" in repr(figure)
    assert "style alpha 0 to 1" in repr(figure)


def test_a_sweep_varies_one_half(pipe, halves):
    figure = alpha_sweep(
        pipe,
        **halves,
        half="content",
        alphas=(0, 2),
        other_alpha=0.5,
        num_inference_steps=2,
        progress=False,
    )
    expected = [
        generate(
            pipe,
            "A [c] in [s] style",
            **halves,
            content_alpha=a,
            style_alpha=0.5,
            num_inference_steps=2,
            progress=False,
        )[0]
        for a in (0, 2)
    ]
    assert all((a == np.asarray(b)).all() for a, b in zip(pictures(figure), expected, strict=True))
    assert "seed 0" in repr(figure)
    assert "style alpha 0.5" in repr(figure)


def test_seeds_side_by_side(pipe, halves):
    figure = seed_sweep(
        pipe,
        "A [c] in gold style",
        content=halves["content"],
        seeds=(2, 5, 6, 7, 9),
        num_inference_steps=1,
        progress=False,
    )
    expected = generate(
        pipe,
        "A [c] in gold style",
        content=halves["content"],
        seeds=(2, 5, 6, 7, 9),
        num_inference_steps=1,
        progress=False,
    )
    assert all((a == np.asarray(b)).all() for a, b in zip(pictures(figure), expected, strict=True))
    assert "style alpha" not in repr(figure)


def test_the_best_seed_has_both(pipe):
    assert ranked([0.9, 0.2, 0.8], [0.1, 0.9, 0.8]) == [2, 1, 0]
    images = [Image.new("RGB", (96, 96), colour) for colour in ("red", "green", "blue")]
    figure = seed_ranking(
        [7, 8, 9], images, {"content kept": [0.9, 0.2, 0.8], "style moved": [0.1, 0.9, 0.8]}
    )
    assert [tuple(picture[0, 0]) for picture in pictures(figure)] == [
        (0, 0, 255),
        (0, 128, 0),
        (255, 0, 0),
    ]
    assert figure.axes[0].texts[0].get_text() == "1. seed 9\ncontent kept 0.80\nstyle moved 0.80"


def test_a_figure_keeps_its_colours(picture):
    """Few colours keep a notebook small.

    A gradient must not show bands for it, nor a small spot lose its colour.
    """
    spotted = picture.copy()
    spotted.paste((0, 255, 0), (40, 40, 52, 52))
    figure = picture_grid([[spotted]], side=4)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    true, shown = (
        np.asarray(Image.open(file).convert("RGB")).astype(int)
        for file in (drawn, io.BytesIO(figure.png()))
    )
    wrong = np.abs(true - shown).max(-1)
    assert wrong.mean() < 4
    assert np.percentile(wrong, 99.5) < 40
    assert (np.abs(shown - (0, 255, 0)).max(-1) < 30).sum() >= 40
