"""Pictures that can be made again from themselves, and the commands that describe and convert files, as a user types them."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

from blora_nb.errors import BLoRAError, ImageError
from blora_nb.files.saved_images import read_settings, save_image, save_picture
from blora_nb.generation import generate
from blora_nb.lora import BLoRA, combine
from test_formats import made, mixed_rank


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "blora_nb", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


def pixels(path):
    return np.asarray(Image.open(path)).tobytes()


def test_a_picture_is_made_again_bit_by_bit(tmp_path):
    one, two = (made(rank=mixed_rank, seed=s) for s in (1, 2))
    BLoRA({k: t * 0.2 for k, t in one.state_dict.items()}).save(tmp_path / "one.safetensors")
    BLoRA({k: t * 0.2 for k, t in two.state_dict.items()}).save(tmp_path / "two.safetensors", "sgm")
    typed = [
        "--content_B_LoRA",
        "one.safetensors",
        "--style_B_LoRA",
        "two.safetensors",
        "--style_alpha",
        "-0.75",
        "--num_inference_steps",
        3,
        "--guidance_scale",
        2.5,
        "--negative_prompt",
        "a <dog> ü",
    ]
    first = run(
        "generate",
        "--prompt",
        "A [c]/in ü style",
        "--output_path",
        "first",
        *typed,
        "--seeds",
        -1,
        7,
        cwd=tmp_path,
    )
    assert first.returncode == 0, first.stderr
    pictures = sorted((tmp_path / "first").iterdir())
    assert len(pictures) == 2
    settings = read_settings(pictures[0])
    assert settings["style_alpha"] == -0.75
    assert (
        settings["content_fingerprint"]
        == BLoRA.load(tmp_path / "one.safetensors").content.fingerprint
    )
    assert (
        settings["style_fingerprint"] == BLoRA.load(tmp_path / "two.safetensors").style.fingerprint
    )
    assert len(settings["base_model_sha256"]) == 64
    assert "torch" in settings["versions"]
    again = run("generate", "--like", pictures[0], "--output_path", "again", cwd=tmp_path)
    assert again.returncode == 0 and "note:" not in again.stderr, again.stderr
    (made_again,) = (tmp_path / "again").iterdir()
    assert pixels(made_again) == pixels(pictures[0]) != pixels(pictures[1])
    assert read_settings(made_again) == settings

    # what is typed goes before; what has changed since is said
    (tmp_path / "two.safetensors").unlink()
    one.save(tmp_path / "two.safetensors")
    other = run(
        "generate",
        "--like",
        pictures[0],
        "--output_path",
        "other",
        "--style_alpha",
        "0.25",
        cwd=tmp_path,
    )
    assert other.returncode == 0 and "note: style_fingerprint was" in other.stderr, other.stderr
    (changed,) = (tmp_path / "other").iterdir()
    assert read_settings(changed)["style_alpha"] == 0.25
    assert read_settings(changed)["seed"] == settings["seed"]
    assert pixels(changed) != pixels(pictures[0])
    (tmp_path / "two.safetensors").unlink()
    lost = run("generate", "--like", pictures[0], "--output_path", "lost", cwd=tmp_path)
    assert lost.returncode == 1
    assert "There is no file or folder two.safetensors" in lost.stderr


def test_pictures_made_in_python_batches_and_mixtures_too_are_made_again(pipe, tmp_path):
    """What the command line needs stands on the picture, whoever made it: files, weights, the seeds of its batch."""
    for name, seed in (("one", 1), ("two", 2), ("three", 3)):
        BLoRA({k: t * 0.2 for k, t in made(seed=seed).state_dict.items()}).save(tmp_path / name)
    content, (two, three) = (
        BLoRA.load(tmp_path / "one"),
        (str(tmp_path / name) for name in ("two", "three")),
    )
    images = generate(
        pipe,
        "A [c]",
        content,
        [(two, 0.5), (BLoRA.load(three), -0.3)],
        seeds=[4, 9, 2],
        batch_size=2,
        num_inference_steps=3,
        style_from=0.4,
        progress=False,
    )
    paths = [save_picture(image, tmp_path / "out") for image in images]
    assert [p.name for p in paths] == ["A_c_seed4.png", "A_c_seed9.png", "A_c_seed2.png"]
    for path in paths[1:]:  # the second of a batch of two, and one alone
        again = run("generate", "--like", path, "--output_path", tmp_path / path.stem)
        assert again.returncode == 0 and "note:" not in again.stderr, again.stderr
        (file,) = (tmp_path / path.stem).iterdir()
        assert pixels(file) == pixels(path)
        assert read_settings(file) == read_settings(path)

    weights = BLoRA({k: t * 0.2 for k, t in made(seed=5).state_dict.items()})
    (nameless,) = generate(pipe, "A [c]", weights, num_inference_steps=2, progress=False)
    like = [
        "generate",
        "--like",
        save_picture(nameless, tmp_path),
        "--output_path",
        tmp_path / "named",
    ]
    refused = run(*like)
    assert refused.returncode == 2
    assert "was not in a file" in refused.stderr
    assert "--content_B_LoRA" in refused.stderr
    weights.save(tmp_path / "five")
    named = run(*like, "--content_B_LoRA", tmp_path / "five")
    assert named.returncode == 0 and "note:" not in named.stderr, named.stderr
    assert pixels(next((tmp_path / "named").iterdir())) == pixels(like[2])
    with pytest.raises(ImageError, match="does not know"):
        save_picture(Image.new("RGB", (4, 4)), tmp_path)


def test_several_halves_are_mixed_on_the_command_line(pipe, tmp_path):
    for name, seed in (("one", 1), ("two", 2)):
        made(rank=mixed_rank, seed=seed).save(tmp_path / name)
    mixed = [
        "--style_B_LoRA",
        tmp_path / "one",
        tmp_path / "two",
        "--style_weights",
        "0.75",
        "-0.5",
    ]
    result = run(
        "export",
        *mixed,
        "--style_alpha",
        2,
        "--format",
        "diffusers",
        "--output_path",
        tmp_path / "mixed.safetensors",
    )
    assert result.returncode == 0, result.stderr
    from_python = combine(style=[(tmp_path / "one", 0.75), (tmp_path / "two", -0.5)], style_alpha=2)
    assert BLoRA.load(tmp_path / "mixed.safetensors").fingerprint == from_python.fingerprint
    for more, message in (
        (["--style_weights", "1"], "1 weights for 2 B-LoRAs"),
        (["--content_weights", "1"], "1 weights for 0"),
    ):
        result = run(
            "generate", "--prompt", "A", "--output_path", tmp_path / "out", *mixed[:3], *more
        )
        assert result.returncode == 1
        assert message in result.stderr
        assert not (tmp_path / "out").exists()


def test_half_precision_files_are_half_as_large_and_never_infinite(tmp_path):
    one = made(seed=1)
    one.save(tmp_path / "exact.safetensors")
    for dtype in ("float16", "bfloat16"):
        result = run(
            "export",
            "--content_B_LoRA",
            tmp_path / "exact.safetensors",
            "--style_B_LoRA",
            tmp_path / "exact.safetensors",
            "--dtype",
            dtype,
            "--format",
            "diffusers",
            "--output_path",
            tmp_path / f"{dtype}.safetensors",
        )
        assert (
            result.returncode == 0
            and (tmp_path / f"{dtype}.safetensors").stat().st_size
            < 0.6 * (tmp_path / "exact.safetensors").stat().st_size
        ), result.stderr
        half = BLoRA.load(tmp_path / f"{dtype}.safetensors")
        assert all(
            t.dtype == torch.float32
            and torch.equal(t, one.state_dict[k].to(getattr(torch, dtype)).float())
            for k, t in half.state_dict.items()
        )
    large = BLoRA({k: t * 1e6 for k, t in one.state_dict.items()})
    with pytest.raises(BLoRAError, match="too large for float16.*bfloat16"):
        large.save(tmp_path / "new" / "large.safetensors", dtype=torch.float16)
    assert not (tmp_path / "new").exists()


def test_another_few_step_lora_is_noticed(tmp_path):
    layer = "unet.down_blocks.2.attentions.0.transformer_blocks.0.attn1.to_q"
    weights = lambda seed: {
        f"{layer}.lora_{part}.weight": torch.randn(
            *shape, generator=torch.Generator().manual_seed(seed)
        )
        for part, shape in (("A", (4, 104)), ("B", (104, 4)))
    }
    save_file(weights(1), tmp_path / "few.safetensors")
    assert (
        run(
            "generate",
            "--prompt",
            "A",
            "--few_step_lora",
            "few.safetensors",
            "--output_path",
            "out",
            "--seeds",
            1,
            "--num_inference_steps",
            2,
            cwd=tmp_path,
        ).returncode
        == 0
    )
    like = ["generate", "--like", "out/A_seed1.png", "--output_path"]
    twice = run(
        "generate",
        "--prompt",
        "A",
        "--output_path",
        "twice",
        "--seeds",
        1,
        1,
        "--batch_size",
        2,
        "--num_inference_steps",
        2,
        cwd=tmp_path,
    )
    assert twice.returncode == 0
    assert (
        run(
            "generate", "--like", "twice/A_seed1.png", "--output_path", "once", cwd=tmp_path
        ).returncode
        == 0
    )
    assert len(list((tmp_path / "twice").iterdir())) == 2
    assert len(list((tmp_path / "once").iterdir())) == 1
    again = run(*like, "again", cwd=tmp_path)
    assert (
        again.returncode == 0
        and "note:" not in again.stderr
        and pixels(tmp_path / "again" / "A_seed1.png") == pixels(tmp_path / "out" / "A_seed1.png")
    ), again.stderr
    save_file(weights(2), tmp_path / "few.safetensors")
    other = run(*like, "other", cwd=tmp_path)
    assert other.returncode == 0
    assert "note: few_step_sha256 was" in other.stderr


def test_pictures_without_or_with_odd_settings_are_refused(tmp_path):
    picture = Image.new("RGB", (4, 4))
    picture.save(tmp_path / "plain.png")
    picture.save(tmp_path / "photo.jpg")
    for name, text in (("list", "[1]"), ("deep", "[" * 100_000), ("cut", '{"seed"')):
        info = PngImagePlugin.PngInfo()
        info.add_text("blora_nb", text)
        picture.save(tmp_path / f"{name}.png", pnginfo=info)
    for name, message in (
        ("plain.png", "no settings inside"),
        ("photo.jpg", "no settings inside"),
        ("list.png", "JSON object"),
        ("deep.png", "JSON object"),
        ("cut.png", "JSON object"),
        ("none.png", "no picture"),
    ):
        with pytest.raises(ImageError, match=message):
            read_settings(tmp_path / name)


@pytest.mark.parametrize(
    "settings",
    [
        {"prompt": "A", "seed": "x"},
        {"prompt": "A", "seed": 0, "num_inference_steps": "many"},
        {"prompt": "A", "seed": 0, "num_inference_steps": [3]},
        {"seed": 0},
        {"prompt": "A", "seed": 0, "device": "cuda:99"},
        {"prompt": "A", "batch_seeds": 5},
        {"prompt": "A", "dtype": "load"},
        {"prompt": "A", "content_B_LoRA": "ok.safetensors", "content_weights": "x"},
    ],
)
def test_settings_that_make_no_sense_are_one_clear_line(tmp_path, settings):
    save_image(Image.new("RGB", (4, 4)), tmp_path / "x.png", settings)
    result = run("generate", "--like", tmp_path / "x.png", "--output_path", tmp_path / "out")
    assert (
        result.returncode in (1, 2)
        and "error:" in result.stderr
        and "Traceback" not in result.stderr
    ), result.stderr


def test_export_and_inspect(tmp_path):
    one, two = made(seed=1), made(rank=mixed_rank, seed=2)
    one.save(tmp_path / "one")
    two.save(tmp_path / "two", "peft")
    command = [
        "export",
        "--content_B_LoRA",
        tmp_path / "one",
        "--style_B_LoRA",
        tmp_path / "two",
        "--style_alpha",
        "-0.5",
        "--format",
        "sgm",
        "--output_path",
        tmp_path / "both.safetensors",
    ]
    result = run(*command)
    assert result.returncode == 0, result.stderr
    both = BLoRA.load(tmp_path / "both.safetensors")
    assert both.content.fingerprint == one.content.fingerprint
    assert all(
        (both.layers[layer][1] == -0.5 * b).all() for layer, (_, b) in two.style.layers.items()
    )
    again = run(*command)
    assert again.returncode == 1
    assert "exists already" in again.stderr
    shown = run("inspect", tmp_path / "both.safetensors")
    assert shown.returncode == 0
    assert "kohya with SDXL's own block names" in shown.stdout
    assert "rank 2, 6" in shown.stdout
    assert json.loads(one.metadata["training"])["instance_prompt"] in shown.stdout
    for arguments, message in (
        (("inspect", tmp_path / "missing"), "There is no file"),
        (("export", "--output_path", tmp_path / "x.safetensors"), "Name a content half"),
    ):
        result = run(*arguments)
        assert (
            result.returncode == 1 and message in result.stderr and "Traceback" not in result.stderr
        ), result.stderr
