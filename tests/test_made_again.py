"""Pictures that can be made again from themselves, and the commands that describe and convert files, as a user types them."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from blora_nb import BLoRA
from blora_nb.images import ImageError, read_settings, save_image
from test_formats import made, mixed_rank


def run(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "blora_nb", *map(str, arguments)], capture_output=True, text=True, timeout=300, **options)


def pixels(path):
    return np.asarray(Image.open(path)).tobytes()


def test_a_picture_is_made_again_bit_by_bit(tmp_path):
    one, two = (made(rank=mixed_rank, seed=s) for s in (1, 2))
    BLoRA({k: t * 0.2 for k, t in one.state_dict.items()}).save(tmp_path / "one.safetensors")
    BLoRA({k: t * 0.2 for k, t in two.state_dict.items()}).save(tmp_path / "two.safetensors", "sgm")
    typed = ["--content_B_LoRA", "one.safetensors", "--style_B_LoRA", "two.safetensors", "--style_alpha", "-0.75", "--num_inference_steps", 3, "--guidance_scale", 2.5, "--negative_prompt", "a <dog> ü"]
    first = run("generate", "--prompt", "A [c]/in ü style", "--output_path", "first", *typed, "--seeds", -1, 7, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    pictures = sorted((tmp_path / "first").iterdir())
    assert len(pictures) == 2
    settings = read_settings(pictures[0])
    assert settings["style_alpha"] == -0.75 and settings["content_fingerprint"] == BLoRA.load(tmp_path / "one.safetensors").content.fingerprint
    assert settings["style_fingerprint"] == BLoRA.load(tmp_path / "two.safetensors").style.fingerprint and len(settings["base_model_sha256"]) == 64 and "torch" in settings["versions"]
    again = run("generate", "--like", pictures[0], "--output_path", "again", cwd=tmp_path)
    assert again.returncode == 0 and "note:" not in again.stderr, again.stderr
    (made_again,) = (tmp_path / "again").iterdir()
    assert pixels(made_again) == pixels(pictures[0]) != pixels(pictures[1]) and read_settings(made_again) == settings

    # what is typed goes before; what has changed since is said
    (tmp_path / "two.safetensors").unlink()
    one.save(tmp_path / "two.safetensors")
    other = run("generate", "--like", pictures[0], "--output_path", "other", "--style_alpha", "0.25", cwd=tmp_path)
    assert other.returncode == 0 and "note: style_fingerprint was" in other.stderr, other.stderr
    (changed,) = (tmp_path / "other").iterdir()
    assert read_settings(changed)["style_alpha"] == 0.25 and read_settings(changed)["seed"] == settings["seed"] and pixels(changed) != pixels(pictures[0])
    (tmp_path / "two.safetensors").unlink()
    lost = run("generate", "--like", pictures[0], "--output_path", "lost", cwd=tmp_path)
    assert lost.returncode == 1 and "There is no file two.safetensors" in lost.stderr


def test_pictures_without_or_with_odd_settings_are_refused(tmp_path):
    picture = Image.new("RGB", (4, 4))
    picture.save(tmp_path / "plain.png")
    picture.save(tmp_path / "photo.jpg")
    for name, text in (("list", "[1]"), ("deep", "[" * 100_000), ("cut", '{"seed"')):
        info = PngImagePlugin.PngInfo()
        info.add_text("blora_nb", text)
        picture.save(tmp_path / f"{name}.png", pnginfo=info)
    for name, message in (("plain.png", "no settings inside"), ("photo.jpg", "no settings inside"), ("list.png", "JSON object"), ("deep.png", "JSON object"), ("cut.png", "JSON object"), ("none.png", "no picture")):
        with pytest.raises(ImageError, match=message):
            read_settings(tmp_path / name)


@pytest.mark.parametrize("settings", [{"prompt": "A", "seed": "x"}, {"prompt": "A", "seed": 0, "num_inference_steps": "many"}, {"prompt": "A", "seed": 0, "num_inference_steps": [3]}, {"seed": 0}, {"prompt": "A", "seed": 0, "device": "cuda:99"}])
def test_settings_that_make_no_sense_are_one_clear_line(tmp_path, settings):
    save_image(Image.new("RGB", (4, 4)), tmp_path / "x.png", settings)
    result = run("generate", "--like", tmp_path / "x.png", "--output_path", tmp_path / "out")
    assert result.returncode in (1, 2) and "error:" in result.stderr and "Traceback" not in result.stderr, result.stderr


def test_export_and_inspect(tmp_path):
    one, two = made(seed=1), made(rank=mixed_rank, seed=2)
    one.save(tmp_path / "one")
    two.save(tmp_path / "two", "peft")
    command = ["export", "--content_B_LoRA", tmp_path / "one", "--style_B_LoRA", tmp_path / "two", "--style_alpha", "-0.5", "--format", "sgm", "--output_path", tmp_path / "both.safetensors"]
    result = run(*command)
    assert result.returncode == 0, result.stderr
    both = BLoRA.load(tmp_path / "both.safetensors")
    assert both.content.fingerprint == one.content.fingerprint
    assert all((both.layers[layer][1] == -0.5 * b).all() for layer, (_, b) in two.style.layers.items())
    again = run(*command)
    assert again.returncode == 1 and "exists already" in again.stderr
    shown = run("inspect", tmp_path / "both.safetensors")
    assert shown.returncode == 0 and "kohya with SDXL's own block names" in shown.stdout and "rank 2, 6" in shown.stdout and json.loads(one.metadata["training"])["instance_prompt"] in shown.stdout
    for arguments, message in ((("inspect", tmp_path / "missing"), "There is no file"), (("export", "--output_path", tmp_path / "x.safetensors"), "Name a content half")):
        result = run(*arguments)
        assert result.returncode == 1 and message in result.stderr and "Traceback" not in result.stderr, result.stderr
