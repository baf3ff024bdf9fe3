"""The still forms: each picture of a sweep is the one that `generate` draws, in its place.

And the caption says how.
"""

import io

import numpy as np
import pytest
from PIL import Image

from blora_nb.assets import DATA
from blora_nb.blocks import TRANSFORMER_BLOCKS
from blora_nb.course.examples import example_names, example_picture
from blora_nb.evaluation.metrics import ranked
from blora_nb.figures.charts import line_figure
from blora_nb.figures.checkpoints import write_validation_sheet
from blora_nb.figures.diagram import parts_of, unet_diagram
from blora_nb.figures.grids import alpha_grid, picture_grid, seed_ranking
from blora_nb.files.saved_images import save_image
from blora_nb.generation import generate
from blora_nb.lora import BLoRA


@pytest.fixture(scope="module")
def halves():
    return {
        "content": BLoRA.load(DATA / "bloras" / "cat_wood.safetensors"),
        "style": BLoRA.load(DATA / "bloras" / "flower_neon.safetensors"),
    }


def pictures(figure):
    """The pictures of a figure by the label of their column, or the one under them."""
    return [np.asarray(ax.images[0].get_array()) for ax in figure.axes if ax.images]


PROMPT = "A [c] in [s] style"


def same(figure, expected):
    """Whether the figure shows these pictures, in this order."""
    shown = pictures(figure)
    return len(shown) == len(expected) and all(
        np.array_equal(one, np.asarray(two)) for one, two in zip(shown, expected)
    )


def test_a_grid_has_the_content_downwards_and_the_style_to_the_right(pipe, halves):
    options = {"num_inference_steps": 2, "progress": False}
    alphas = {"content_alphas": (-1, 1), "style_alphas": (0, 0.5, 1)}
    figure = alpha_grid(pipe, **halves, **alphas, seed=3, **options)
    expected = [
        generate(pipe, PROMPT, **halves, content_alpha=c, style_alpha=s, seeds=3, **options)[0]
        for c in (-1, 1)
        for s in (0, 0.5, 1)
    ]
    assert same(figure, expected)
    assert [ax.get_ylabel() for ax in figure.axes[::3]] == ["content -1", "content 1"]
    assert "seed 3" in repr(figure)
    assert "content alpha -1 to 1" in repr(figure)
    assert "style alpha 0 to 1" in repr(figure)


def test_one_alpha_for_one_half_gives_a_sweep_over_the_other(pipe, halves):
    options = {"num_inference_steps": 2, "progress": False}
    alphas = {"content_alphas": (0, 2), "style_alphas": (0.5,)}
    figure = alpha_grid(pipe, **halves, **alphas, **options)
    expected = [
        generate(pipe, PROMPT, **halves, content_alpha=a, style_alpha=0.5, **options)[0]
        for a in (0, 2)
    ]
    assert same(figure, expected)
    assert "seed 0" in repr(figure)
    assert "content alpha 0 to 2, style alpha 0.5, 2 steps" in repr(figure)


def test_a_half_that_is_left_out_has_no_alphas_to_draw(pipe, halves):
    options = {"num_inference_steps": 1, "progress": False, "style": halves["style"]}
    with pytest.raises(ValueError, match=r"no content half .*content_alphas=\[1\]"):
        alpha_grid(pipe, **options)
    figure = alpha_grid(pipe, content_alphas=[1], style_alphas=[0.5], **options)
    assert same(figure, generate(pipe, PROMPT, **options, style_alpha=0.5))


def test_a_grid_names_only_the_half_that_is_there(pipe, halves):
    alphas = {"content_alphas": [1], "style_alphas": [0.5, 1]}
    options = {"num_inference_steps": 1, "progress": False}
    figure = alpha_grid(pipe, style=halves["style"], **alphas, **options)
    assert [ax.get_ylabel() for ax in figure.axes] == ["", ""]
    assert [ax.get_title() for ax in figure.axes] == ["style 0.5", "style 1"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"seed": [0, 1]}, r"one seed, not with \[0, 1\]"),
        ({"content_alphas": []}, "content_alphas is empty: name at least one"),
        ({"style_alphas": 1}, "style_alphas is a list of numbers"),
    ],
)
def test_what_no_grid_can_be_drawn_of_is_named(pipe, halves, asked, said):
    with pytest.raises(ValueError, match=said):
        alpha_grid(pipe, **halves, **asked, num_inference_steps=1, progress=False)


@pytest.mark.parametrize("given", [list, iter])
def test_pictures_in_no_rows_are_one_row(given):
    images = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green")]
    assert same(picture_grid(given([*images, None])), images)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_a_picture_of_any_mode_has_its_own_colours(mode):
    grey = Image.new("L", (8, 8), 255)
    grey.paste(0, (0, 0, 4, 8))
    assert same(picture_grid([[grey.convert(mode)]]), [grey.convert("RGB")])


def test_what_is_transparent_is_white():
    figure = picture_grid([[Image.new("RGBA", (8, 8), (255, 0, 0, 0))]])
    assert same(figure, [Image.new("RGB", (8, 8), "white")])


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"column_labels": ["a", "b"]}, "column_labels has 2 texts for 3 columns"),
        ({"row_labels": ["a", "b"]}, "row_labels has 2 texts for 1 rows"),
        ({"titles": [["a", "b"]]}, "A row of titles has 2 texts for 3 pictures"),
    ],
)
def test_a_grid_has_a_label_for_each(labels, said):
    with pytest.raises(ValueError, match=said):
        picture_grid([Image.new("RGB", (8, 8))] * 3, **labels)


@pytest.mark.parametrize("rows", [[], [[], []], [Image.new("RGB", (8, 8)), [None]]])
def test_a_grid_needs_pictures_that_are_all_in_rows_or_all_in_none(rows):
    with pytest.raises(ValueError, match="a list of rows"):
        picture_grid(rows)


def test_more_curves_than_can_be_told_apart_are_refused():
    curves = {name: [1, 2] for name in "abcde"}
    with pytest.raises(ValueError, match="5 curves, and only 4"):
        line_figure(curves, "x", "y")


@pytest.mark.parametrize(("lowest", "bottom"), [(0.2, 0), (-0.5, -0.575)])
def test_a_chart_begins_at_0_unless_a_value_is_below(lowest, bottom):
    figure = line_figure({"cosine": [lowest, 1.0]}, "x", "y")
    assert figure.axes[0].get_ylim()[0] == pytest.approx(bottom)


def test_the_best_seed_has_both(pipe):
    assert ranked([0.9, 0.2, 0.8], [0.1, 0.9, 0.8]) == [2, 1, 0]
    images = [Image.new("RGB", (96, 96), colour) for colour in ("red", "green", "blue")]
    figure = seed_ranking(
        [7, 8, 9], images, {"content kept": [0.9, 0.2, 0.8], "style moved": [0.1, 0.9, 0.8]}
    )
    colours = [tuple(picture[0, 0]) for picture in pictures(figure)]
    assert colours == [(0, 0, 255), (0, 128, 0), (255, 0, 0)]
    assert figure.axes[0].texts[0].get_text() == "1. seed 9\ncontent kept 0.80\nstyle moved 0.80"


@pytest.mark.parametrize("scores", [{}, {"content kept": [0.9]}])
def test_seeds_are_ranked_by_a_score_for_each(scores):
    with pytest.raises(ValueError, match="Given are seeds: 2, images: 2"):
        seed_ranking([7, 8], [Image.new("RGB", (8, 8))] * 2, scores)


@pytest.mark.parametrize("scores", [[], [[0.9, 0.2], [0.1]]])
def test_pictures_are_ranked_by_lists_of_one_length(scores):
    with pytest.raises(ValueError, match="lists of scores of the same length"):
        ranked(*scores)


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


@pytest.fixture(scope="module")
def smooth():
    """A picture of many colours that run into each other, as in a photo out of focus."""
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((128, 128), Image.Resampling.BICUBIC)


def test_only_pictures_that_stay_the_same_have_fewer_colours(smooth):
    """The examples are flat and keep a notebook small; in a smooth picture bands would show."""
    flat = [example_picture(name) for name in example_names()[:4]]
    for pictures, mode in ((flat, "P"), ([smooth], "RGBA")):
        shown = Image.open(io.BytesIO(picture_grid([pictures]).png()))
        assert shown.mode == mode


def test_a_sheet_on_disk_has_all_colours(smooth, tmp_path):
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    save_image(smooth, checkpoint / "A_seed0.png", {"prompt": "A"})
    sheet = Image.open(write_validation_sheet(tmp_path)).convert("RGB")
    assert len(sheet.getcolors(sheet.width * sheet.height)) > 5_000


def test_the_diagram_has_every_block_where_the_latents_pass_it(pipe):
    parts = parts_of(pipe.unet)
    names = [part.name for part in parts]
    assert [name for name in names if name in TRANSFORMER_BLOCKS] == list(TRANSFORMER_BLOCKS)
    residual = [
        name for name, _ in pipe.unet.named_modules() if name.split(".")[-2:-1] == ["resnets"]
    ]
    assert {part.name for part in parts if part.kind == "res"} == set(residual)
    figure = unet_diagram(pipe)
    written = [text.get_text() for text in figure.axes[0].texts]
    assert {"W4", "content", "W5", "style", "latents", "prediction"} <= set(written)
    assert "up_blocks.0.attentions.1" in figure.caption
    assert Image.open(io.BytesIO(figure.png())).width > 800
