"""The command line as a user meets it: odd pictures in, clear errors, nothing lost, nothing overwritten."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from drawings import draw


def run(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "blora_nb", *map(str, arguments)], capture_output=True, text=True, timeout=300, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    drawing = draw("heart", "stripes", 7, 300).convert("RGBA")
    drawing.putalpha(Image.linear_gradient("L").resize((300, 300)).point(lambda v: 255 if v > 3 else 0))
    canvas = Image.new("RGBA", (777, 300), (0, 0, 0, 0))  # not square, transparent round about
    canvas.paste(drawing, (238, 0))
    exif = Image.Exif()
    exif[0x0112] = 3
    canvas.save(folder / "a picture.png", exif=exif)
    result = run("train", "--instance_data_dir", folder / "a picture.png", "--output_dir", folder / "out", "--max_train_steps", 4, "--rank", 4)
    assert result.returncode == 0, result.stderr
    return folder


def test_train_then_generate(trained, tmp_path):
    assert (trained / "out" / "pytorch_lora_weights.safetensors").exists()
    command = ["generate", "--prompt", "A <c>/[s] in style", "--output_path", tmp_path / "new" / "folder", "--content_B_LoRA", trained / "out", "--style_B_LoRA", trained / "out", "--num_images_per_prompt", 2, "--num_inference_steps", 2]
    for expected in (2, 4):  # the second time beside the first
        result = run(*command)
        assert result.returncode == 0, result.stderr
        files = sorted((tmp_path / "new" / "folder").iterdir())
        assert len(files) == expected and all(Image.open(f).size == (96, 96) for f in files)
    settings = json.loads(Image.open(files[0]).text["blora_nb"])
    assert settings["prompt"] == "A <c>/[s] in style" and settings["seed"] == 0


def test_nothing_is_overwritten_or_lost(trained):
    file = trained / "out" / "pytorch_lora_weights.safetensors"
    before = file.read_bytes()
    result = run("train", "--instance_data_dir", trained / "a picture.png", "--output_dir", trained / "out")
    assert result.returncode == 1 and "exists already" in result.stderr and file.read_bytes() == before


def test_faults_are_one_clear_line(trained, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (tmp_path / "file").touch()
    picture = trained / "a picture.png"
    cases = [
        (("train", "--instance_data_dir", tmp_path / "broken.png", "--output_dir", tmp_path / "o"), "broken.png cannot be read"),
        (("train", "--instance_data_dir", tmp_path / "nowhere", "--output_dir", tmp_path / "o"), "no file or folder"),
        (("train", "--instance_data_dir", picture, "--output_dir", tmp_path / "file" / "below"), "Cannot write to the folder"),
        (("generate", "--prompt", "A", "--output_path", tmp_path / "file" / "below"), "Cannot write to the folder"),
        (("generate", "--prompt", "A", "--output_path", tmp_path / "o", "--content_B_LoRA", tmp_path / "broken.png"), "not a complete safetensors file"),
    ]
    for arguments, message in cases:
        result = run(*arguments)
        assert result.returncode == 1 and message in result.stderr and "Traceback" not in result.stderr, result.stderr


def test_check_says_what_it_found():
    result = run("check")
    assert result.returncode == 0 and "[ OK ] teaching model" in result.stdout
