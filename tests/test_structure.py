"""Layouts kept by img2img and ControlNet; batches that are too large for the memory."""

import json

import numpy as np
import pytest
import torch

from blora_nb.course.drawings import draw, free_pose
from blora_nb.errors import ImageError, ImageWarning
from blora_nb.files.saved_images import read_settings, save_image, save_picture
from blora_nb.generation import generate
from blora_nb.running.memory import GIB, pictures_at_once
from blora_nb.structure import load_controlnet, outline
from helpers import pixels, refused, run_here, succeeded


def shape(picture, background):
    """Where the picture is not background: a Boolean [height, width]."""
    return np.abs(np.asarray(picture, dtype=int) - background).max(axis=2) > 60


def overlap(one, two):
    return (one & two).sum() / (one | two).sum()


@pytest.fixture(scope="module")
def turned():
    """A cat in a pose that the model was never shown, and where it is."""
    picture = draw("cat", "neon", 0, 96, free_pose(0))
    return picture, shape(picture, np.asarray(picture, dtype=int)[2, 2])


@pytest.mark.slow
def test_the_layout_is_kept(pipe, turned):
    picture, where = turned
    prompt, options = "A cat in neon style", {"seeds": [0, 1, 2], "progress": False}
    corner = np.asarray(picture, dtype=int)[2, 2]

    def overlaps(**more):
        images = generate(pipe, prompt, **options, **more)
        return np.median([overlap(shape(image, corner), where) for image in images])

    plain = overlaps()
    assert overlaps(image=picture, strength=0.5) > plain + 0.15
    prompt = "A [c] in neon style"  # what is in the picture is said by the outline
    assert overlaps(controlnet="tiny", control_image=outline(picture, 96)) > plain + 0.15


def test_all_ways_to_steer_a_picture_go_together(pipe, blora, turned):
    both = generate(
        pipe,
        "A [v]",
        style=blora,
        image=turned[0],
        strength=0.7,
        controlnet=load_controlnet(pipe, "tiny"),
        control_image=outline(turned[0], 96),
        seeds=[0, 1, 2],
        progress=False,
    )
    assert {image.size for image in both} == {(96, 96)}
    assert both[0].tobytes() != both[1].tobytes()


def test_progress_and_pixels_of_the_steps_that_are_made(pipe, turned):
    seen = []
    options = {"image": turned[0], "num_inference_steps": 5, "strength": 0.6, "seeds": [4, 7]}
    images = generate(
        pipe, "A cat", progress=lambda done, total: seen.append((done, total)), **options
    )
    assert seen == [(i, 6) for i in range(1, 7)]
    alone = generate(pipe, "A cat", progress=False, **options | {"seeds": 7})[0]
    assert images[1].tobytes() == alone.tobytes() != images[0].tobytes()


def test_an_outline_may_have_another_shape(pipe, turned):
    options = {"height": 64, "width": 128, "num_inference_steps": 2, "progress": False}
    with pytest.warns(ImageWarning, match="96 × 96 .* 50% of it"):
        edges = outline(turned[0], (128, 64))
    assert edges.size == (128, 64)
    steered = {"controlnet": "tiny", "control_image": edges}
    assert generate(pipe, "A cat", **steered, **options)[0].size == (128, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"controlnet": "tiny"}, "control_image"),
        ({"control_image": "the cat"}, "controlnet that follows"),
        ({"image": "the cat", "strength": 0}, "above 0"),
        ({"image": "the cat", "strength": 1.5}, "at most 1"),
        ({"image": "the cat", "strength": 0.1, "num_inference_steps": 5}, "none of the 5 steps"),
    ],
)
def test_what_does_not_go_together_is_said(pipe, turned, options, message):
    options = {k: turned[0] if value == "the cat" else value for k, value in options.items()}
    with pytest.raises(ValueError, match=message):
        generate(pipe, "A cat", progress=False, **options)


def test_a_picture_that_is_not_there_is_named(pipe, tmp_path):
    with pytest.raises(ImageError, match="no picture"):
        generate(pipe, "A cat", image=tmp_path / "missing.png", progress=False)


def test_a_controlnet_of_another_base_is_refused(pipe, turned):
    other = load_controlnet(pipe, "tiny")
    other.register_to_config(cross_attention_dim=2048)
    with pytest.raises(ValueError, match="another base model"):
        generate(pipe, "A cat", controlnet=other, control_image=turned[0], progress=False)


def test_pictures_with_a_layout_are_made_again(turned, tmp_path):
    turned[0].save(tmp_path / "cat.png")
    command = ["generate", "--prompt", "A cat", "--image", "cat.png", "--strength", 0.5]
    command += ["--controlnet", "tiny", "--outline_of", "cat.png", "--num_inference_steps", 4]
    succeeded(run_here(*command, "--seeds", 3, "--output_path", "one", cwd=tmp_path))
    like = ["generate", "--like", "one/A_cat_seed3.png", "--output_path"]
    again = succeeded(run_here(*like, "two", cwd=tmp_path))
    assert "note:" not in again.stderr
    one, two = (tmp_path / name / "A_cat_seed3.png" for name in ("one", "two"))
    assert pixels(one) == pixels(two)
    assert read_settings(one) == read_settings(two)

    draw("cat", "wood", 1, 96).save(tmp_path / "cat.png")
    changed = succeeded(run_here(*like, "three", cwd=tmp_path))
    assert "note: image_sha256 was" in changed.stderr
    assert "note: control_image_sha256 was" in changed.stderr


@pytest.mark.parametrize(
    ("recorded", "typed"), [("outline_of", "control_image"), ("control_image", "outline_of")]
)
def test_a_layout_that_is_typed_takes_the_place_of_the_pictures_own(
    turned, tmp_path, recorded, typed
):
    """The picture's own is not there any more: whoever reads it fails."""
    turned[0].save(tmp_path / "cat.png")
    settings = {"prompt": "A cat", "seed": 3, "controlnet": "tiny", "num_inference_steps": 1}
    settings["base_model"] = "tiny_sdxl"
    save_image(turned[0], tmp_path / "made.png", settings | {recorded: "gone.png"})
    command = ["generate", "--like", "made.png", f"--{typed}", "cat.png", "--output_path", "new"]
    succeeded(run_here(*command, cwd=tmp_path))
    made_with = read_settings(tmp_path / "new" / "A_cat_seed3.png")
    assert made_with[typed] == "cat.png"
    assert recorded not in made_with


def test_a_picture_begun_from_one_in_no_file_needs_its_file(pipe, turned, tmp_path):
    options = {"image": turned[0], "num_inference_steps": 4, "progress": False}
    picture = save_picture(generate(pipe, "A cat", **options)[0], tmp_path / "four")
    nameless = run_here("generate", "--like", picture, "--output_path", tmp_path / "five")
    refused(nameless, "was not in a file", "--image", code=2)


def test_a_batch_that_does_not_fit_is_halved(pipe, monkeypatch):
    """The U-Net stands in for a GPU with room for two pictures, then for none."""
    room, forward = 2, pipe.unet.forward

    def small(sample, *args, **kwargs):
        if len(sample) > 2 * room:  # guidance doubles the batch
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …"
            )
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(pipe.unet, "forward", small)
    seen, options = [], {"seeds": [5, 6, 7, 8], "num_inference_steps": 2}
    images = generate(
        pipe,
        "A fish",
        batch_size=4,
        progress=lambda done, total: seen.append((done, total)),
        **options,
    )
    assert seen == [(2, 8), (4, 8), (6, 8), (8, 8)]
    assert [image.info["blora_nb"]["batch_seeds"] for image in images] == [
        [5, 6],
        [5, 6],
        [7, 8],
        [7, 8],
    ]
    json.dumps(images[0].info["blora_nb"])
    room = 0
    with pytest.raises(
        MemoryError,
        match=r"one picture.*Tried to allocate 2.00 GiB\)\. "
        r"Try, in this order: --vae_tiling.*smaller height",
    ):
        generate(pipe, "A fish", progress=False, **options)
    assert pictures_at_once(pipe) == 1
    assert pictures_at_once(pipe, 1024, 1024, free=13 * GIB) == 2
    assert pictures_at_once(pipe, free=13 * GIB) == 8
