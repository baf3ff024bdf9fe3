"""Layouts kept by img2img and ControlNet, as measured on the teaching model; batches that are too large for the memory."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from blora_nb.errors import ImageError
from blora_nb.files.saved_images import read_settings, save_picture
from blora_nb.generation import generate
from blora_nb.running.memory import GIB, pictures_at_once
from blora_nb.structure import load_controlnet, outline
from drawings import draw, free_pose


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


def test_the_layout_is_kept(pipe, blora, turned):
    picture, where = turned
    prompt, options = "A cat in neon style", {"seeds": [0, 1, 2], "progress": False}
    corner = np.asarray(picture, dtype=int)[2, 2]
    overlaps = lambda images: np.median([overlap(shape(image, corner), where) for image in images])
    plain = overlaps(generate(pipe, prompt, **options))
    followed = overlaps(
        generate(
            pipe,
            prompt,
            controlnet="tiny",
            control_image=outline(draw("cat", "wood", 0, 96, free_pose(0)), 96),
            **options,
        )
    )
    started = overlaps(generate(pipe, prompt, image=picture, strength=0.5, **options))
    assert followed > plain + 0.15 and started > plain + 0.15, (plain, followed, started)
    both = generate(
        pipe,
        "A [v]",
        style=blora,
        image=picture,
        strength=0.7,
        controlnet=load_controlnet(pipe, "tiny"),
        control_image=outline(picture, 96),
        style_from=0.5,
        asymmetric_guidance=True,
        **options,
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
    assert (
        images[1].tobytes()
        == generate(pipe, "A cat", progress=False, **options | {"seeds": 7})[0].tobytes()
        != images[0].tobytes()
    )
    small = generate(
        pipe,
        "A cat",
        num_inference_steps=2,
        controlnet="tiny",
        control_image=outline(turned[0], 64),
        height=64,
        width=128,
        progress=False,
    )
    assert small[0].size == (128, 64)


def test_what_does_not_go_together_is_said(pipe, turned, tmp_path):
    picture = turned[0]
    for options, message in (
        ({"controlnet": "tiny"}, "control_image"),
        ({"control_image": picture}, "controlnet that follows"),
        ({"image": picture, "strength": 0}, "above 0"),
        ({"image": picture, "strength": 1.5}, "at most 1"),
        ({"image": picture, "strength": 0.1, "num_inference_steps": 5}, "none of the 5 steps"),
    ):
        with pytest.raises(ValueError, match=message):
            generate(pipe, "A cat", progress=False, **options)
    with pytest.raises(ImageError, match="no picture"):
        generate(pipe, "A cat", image=tmp_path / "missing.png", progress=False)
    other = load_controlnet(pipe, "tiny")
    other.register_to_config(cross_attention_dim=2048)
    with pytest.raises(ValueError, match="another base model"):
        generate(pipe, "A cat", controlnet=other, control_image=picture, progress=False)


def test_pictures_with_a_layout_are_made_again(pipe, turned, tmp_path):
    run = lambda *arguments: subprocess.run(
        [sys.executable, "-m", "blora_nb", "generate", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )
    turned[0].save(tmp_path / "cat.png")
    made = run(
        "--prompt",
        "A cat",
        "--image",
        "cat.png",
        "--strength",
        0.5,
        "--controlnet",
        "tiny",
        "--outline_of",
        "cat.png",
        "--num_inference_steps",
        4,
        "--seeds",
        3,
        "--output_path",
        "one",
    )
    assert made.returncode == 0, made.stderr
    again = run("--like", "one/A_cat_seed3.png", "--output_path", "two")
    assert again.returncode == 0 and "note:" not in again.stderr, again.stderr
    assert (
        Image.open(tmp_path / "one/A_cat_seed3.png").tobytes()
        == Image.open(tmp_path / "two/A_cat_seed3.png").tobytes()
    )
    assert read_settings(tmp_path / "two/A_cat_seed3.png") == read_settings(
        tmp_path / "one/A_cat_seed3.png"
    )

    draw("cat", "wood", 1, 96).save(tmp_path / "cat.png")
    changed = run("--like", "one/A_cat_seed3.png", "--output_path", "three")
    assert (
        changed.returncode == 0
        and "note: image_sha256 was" in changed.stderr
        and "note: control_image_sha256 was" in changed.stderr
    ), changed.stderr
    save_picture(
        generate(pipe, "A cat", image=turned[0], num_inference_steps=4, progress=False)[0],
        tmp_path / "four",
    )
    nameless = run("--like", "four/A_cat_seed0.png", "--output_path", "five")
    assert nameless.returncode == 2
    assert "was not in a file" in nameless.stderr
    assert "--image" in nameless.stderr


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
        match=r"one picture.*Tried to allocate 2.00 GiB\)\. Try, in this order: --vae_tiling.*smaller height",
    ):
        generate(pipe, "A fish", progress=False, **options)
    assert pictures_at_once(pipe) == 1
    assert pictures_at_once(pipe, 1024, 1024, free=13 * GIB) == 2
    assert pictures_at_once(pipe, free=13 * GIB) == 8
