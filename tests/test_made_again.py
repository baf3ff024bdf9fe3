"""Pictures made again from themselves; the commands that describe and convert files."""

import json

import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

from blora_nb.errors import BLoRAError, ImageError
from blora_nb.files.saved_images import read_settings, save_image, save_picture
from blora_nb.generation import generate
from blora_nb.inspection import prompt_per_block
from blora_nb.lora import BLoRA, combine
from helpers import pixels, refused, run, run_here, succeeded
from test_formats import made, mixed_rank


def weak(seed, rank=lambda layer: 4):
    """A B-LoRA that changes a picture without destroying it."""
    blora = made(rank=rank, seed=seed)
    return BLoRA({name: t * 0.2 for name, t in blora.state_dict.items()})


@pytest.fixture(scope="module")
def typed(tmp_path_factory):
    """A folder with two B-LoRAs and two pictures that the command line made with them."""
    folder = tmp_path_factory.mktemp("typed")
    weak(1, mixed_rank).save(folder / "one.safetensors")
    weak(2, mixed_rank).save(folder / "two.safetensors", "sgm")
    command = ["generate", "--prompt", "A [c]/in ü style", "--output_path", "first"]
    command += ["--content_B_LoRA", "one.safetensors", "--style_B_LoRA", "two.safetensors"]
    command += ["--style_alpha", "-0.75", "--num_inference_steps", 3, "--guidance_scale", 2.5]
    command += ["--negative_prompt", "a <dog> ü", "--seeds", -1, 7]
    succeeded(run_here(*command, cwd=folder))
    assert len(list((folder / "first").iterdir())) == 2
    return folder


def first_pictures(folder):
    return sorted((folder / "first").iterdir())


def test_a_picture_knows_how_it_was_made(typed):
    settings = read_settings(first_pictures(typed)[0])
    one, two = (BLoRA.load(typed / f"{name}.safetensors") for name in ("one", "two"))
    assert settings["style_alpha"] == -0.75
    assert settings["content_fingerprint"] == one.content.fingerprint
    assert settings["style_fingerprint"] == two.style.fingerprint
    assert len(settings["base_model_sha256"]) == 64
    assert "torch" in settings["versions"]


@pytest.mark.slow
def test_a_picture_is_made_again_bit_by_bit(typed, tmp_path):
    """In a process of its own, which has nothing but the file."""
    picture, another = first_pictures(typed)
    again = succeeded(run("generate", "--like", picture, "--output_path", tmp_path, cwd=typed))
    assert "note:" not in again.stderr
    (made_again,) = tmp_path.iterdir()
    assert pixels(made_again) == pixels(picture) != pixels(another)
    assert read_settings(made_again) == read_settings(picture)


def test_what_is_typed_goes_before_and_what_has_changed_since_is_said(typed, tmp_path):
    picture = first_pictures(typed)[0]
    weak(1, mixed_rank).save(tmp_path / "one.safetensors")
    weak(1, mixed_rank).save(tmp_path / "two.safetensors")
    command = ["generate", "--like", picture, "--output_path", "other", "--style_alpha", "0.25"]
    other = succeeded(run_here(*command, cwd=tmp_path))
    assert "note: style_fingerprint was" in other.stderr
    (changed,) = (tmp_path / "other").iterdir()
    assert read_settings(changed)["style_alpha"] == 0.25
    assert read_settings(changed)["seed"] == read_settings(picture)["seed"]
    assert pixels(changed) != pixels(picture)


def test_a_half_that_is_gone_is_named(typed, tmp_path):
    weak(1, mixed_rank).save(tmp_path / "one.safetensors")
    command = ["generate", "--like", first_pictures(typed)[0], "--output_path", "lost"]
    lost = run_here(*command, cwd=tmp_path)
    refused(lost, "There is no file or folder two.safetensors")


def test_pictures_of_batches_and_mixtures_made_in_python_are_made_again(pipe, tmp_path):
    """What the command line needs stands on the picture: files, weights, seeds of its batch."""
    for name, seed in (("one", 1), ("two", 2), ("three", 3)):
        weak(seed).save(tmp_path / name)
    two, three = (str(tmp_path / name) for name in ("two", "three"))
    images = generate(
        pipe,
        "A [c]",
        BLoRA.load(tmp_path / "one"),
        [(two, 0.5), (BLoRA.load(three), -0.3)],
        seeds=[4, 9, 2],
        batch_size=2,
        num_inference_steps=3,
        progress=False,
    )
    paths = [save_picture(image, tmp_path / "out") for image in images]
    assert [p.name for p in paths] == ["A_c_seed4.png", "A_c_seed9.png", "A_c_seed2.png"]
    # the second of a batch of two, and one alone
    for path in paths[1:]:
        command = ["generate", "--like", path, "--output_path", tmp_path / path.stem]
        assert "note:" not in succeeded(run_here(*command)).stderr
        (file,) = (tmp_path / path.stem).iterdir()
        assert pixels(file) == pixels(path)
        assert read_settings(file) == read_settings(path)


def test_seeds_that_are_typed_are_all_drawn_also_those_of_the_pictures_batch(pipe, tmp_path):
    options = {"seeds": [4, 9], "batch_size": 2, "num_inference_steps": 2, "progress": False}
    picture, _ = generate(pipe, "A fish", **options)
    path = save_picture(picture, tmp_path)
    command = ["generate", "--like", path, "--seeds", 4, 9, "--output_path", tmp_path / "again"]
    succeeded(run_here(*command))
    assert len(list((tmp_path / "again").iterdir())) == 2


def test_a_picture_made_with_weights_in_no_file_needs_their_file(pipe, tmp_path):
    weights = weak(5)
    (nameless,) = generate(pipe, "A [c]", weights, num_inference_steps=2, progress=False)
    picture = save_picture(nameless, tmp_path)
    like = ["generate", "--like", picture, "--output_path", tmp_path / "named"]
    refused(run_here(*like), "was not in a file", "--content_B_LoRA", code=2)
    weights.save(tmp_path / "five")
    named = succeeded(run_here(*like, "--content_B_LoRA", tmp_path / "five"))
    assert "note:" not in named.stderr
    assert pixels(next((tmp_path / "named").iterdir())) == pixels(picture)


def test_a_picture_of_another_origin_is_not_saved_as_ours(tmp_path):
    with pytest.raises(ImageError, match="does not know"):
        save_picture(Image.new("RGB", (4, 4)), tmp_path)


def test_several_halves_are_mixed_on_the_command_line(tmp_path):
    for name, seed in (("one", 1), ("two", 2)):
        made(rank=mixed_rank, seed=seed).save(tmp_path / name)
    command = ["export", "--style_B_LoRA", tmp_path / "one", tmp_path / "two"]
    command += ["--style_weights", "0.75", "-0.5", "--style_alpha", 2]
    file = tmp_path / "mixed.safetensors"
    succeeded(run_here(*command, "--format", "diffusers", "--output_path", file))
    from_python = combine(style=[(tmp_path / "one", 0.75), (tmp_path / "two", -0.5)], style_alpha=2)
    assert BLoRA.load(file).fingerprint == from_python.fingerprint


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (["--style_weights", "1"], "1 weights for 2 B-LoRAs"),
        (["--content_weights", "1"], "1 weights for 0"),
    ],
)
def test_as_many_weights_as_halves_are_needed(tmp_path, weights, message):
    for name in ("one", "two"):
        made().save(tmp_path / name)
    command = ["generate", "--prompt", "A", "--output_path", tmp_path / "out"]
    command += ["--style_B_LoRA", tmp_path / "one", tmp_path / "two"]
    refused(run_here(*command, *weights), message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_files_are_half_as_large(tmp_path, dtype):
    one = made(seed=1)
    exact, half = tmp_path / "exact.safetensors", tmp_path / "half.safetensors"
    one.save(exact)
    command = ["export", "--content_B_LoRA", exact, "--style_B_LoRA", exact, "--dtype", dtype]
    succeeded(run_here(*command, "--format", "diffusers", "--output_path", half))
    assert half.stat().st_size < 0.6 * exact.stat().st_size
    for name, t in BLoRA.load(half).state_dict.items():
        assert t.dtype == torch.float32
        assert torch.equal(t, one.state_dict[name].to(getattr(torch, dtype)).float())


def test_half_precision_is_never_infinite(tmp_path):
    large = BLoRA({name: t * 1e6 for name, t in made(seed=1).state_dict.items()})
    with pytest.raises(BLoRAError, match="too large for float16.*bfloat16"):
        large.save(tmp_path / "new" / "large.safetensors", dtype=torch.float16)
    assert not (tmp_path / "new").exists()


def few_step_lora(seed):
    layer = "unet.down_blocks.2.attentions.0.transformer_blocks.0.attn1.to_q"
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{layer}.lora_A.weight": torch.randn(4, 144, generator=generator),
        f"{layer}.lora_B.weight": torch.randn(144, 4, generator=generator),
    }


def test_another_few_step_lora_is_noticed(tmp_path):
    save_file(few_step_lora(1), tmp_path / "few.safetensors")
    command = ["generate", "--prompt", "A", "--few_step_lora", "few.safetensors"]
    command += ["--output_path", "out", "--seeds", 1, "--num_inference_steps", 2]
    succeeded(run_here(*command, cwd=tmp_path))
    like = ["generate", "--like", "out/A_seed1.png", "--output_path"]
    again = succeeded(run_here(*like, "again", cwd=tmp_path))
    assert "note:" not in again.stderr
    assert pixels(tmp_path / "again" / "A_seed1.png") == pixels(tmp_path / "out" / "A_seed1.png")
    save_file(few_step_lora(2), tmp_path / "few.safetensors")
    other = succeeded(run_here(*like, "other", cwd=tmp_path))
    assert "note: few_step_sha256 was" in other.stderr


def test_of_a_batch_with_the_same_seed_twice_one_picture_is_made_again(tmp_path):
    command = ["generate", "--prompt", "A", "--output_path", "twice", "--seeds", 1, 1]
    command += ["--batch_size", 2, "--num_inference_steps", 2]
    succeeded(run_here(*command, cwd=tmp_path))
    like = ["generate", "--like", "twice/A_seed1.png", "--output_path", "once"]
    succeeded(run_here(*like, cwd=tmp_path))
    assert len(list((tmp_path / "twice").iterdir())) == 2
    assert len(list((tmp_path / "once").iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("plain.png", None, "no settings inside"),
        ("photo.jpg", None, "no settings inside"),
        ("list.png", "[1]", "JSON object"),
        ("deep.png", "[" * 100_000, "JSON object"),
        ("cut.png", '{"seed"', "JSON object"),
    ],
    ids=["no text", "JPEG", "list", "deep", "cut"],
)
def test_pictures_without_or_with_odd_settings_are_refused(tmp_path, name, text, message):
    options = {}
    if text:
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_text("blora_nb", text)
    Image.new("RGB", (4, 4)).save(tmp_path / name, **options)
    with pytest.raises(ImageError, match=message):
        read_settings(tmp_path / name)


def test_another_sampler_and_prompts_of_blocks_are_in_the_record(fresh, tmp_path):
    from diffusers import EulerAncestralDiscreteScheduler

    short = {"num_inference_steps": 2, "progress": False}
    plain = generate(fresh, "A cat", **short)[0]
    block = "up_blocks.0.attentions.0"
    with prompt_per_block(fresh, {block: "A star"}):
        inside = generate(fresh, "A cat", **short)[0]
    after = generate(fresh, "A cat", **short)[0]
    assert inside.info["blora_nb"]["prompt_per_block"] == {block: "A star"}
    assert after.info["blora_nb"] == plain.info["blora_nb"]
    fresh.scheduler = EulerAncestralDiscreteScheduler.from_config(fresh.scheduler.config)
    other = generate(fresh, "A cat", **short)[0]
    assert other.info["blora_nb"]["sampler"].startswith("EulerAncestralDiscreteScheduler ")
    command = ["generate", "--output_path", tmp_path / "again", "--like"]
    again = succeeded(run_here(*command, save_picture(other, tmp_path)))
    assert "note: sampler was EulerAncestralDiscreteScheduler" in again.stderr
    refused(run_here(*command, save_picture(inside, tmp_path)), "prompt_per_block", code=2)


def test_a_picture_made_on_a_gpu_is_made_again_without_one(pipe, tmp_path):
    picture = generate(pipe, "A cat", num_inference_steps=2, progress=False)[0]
    picture.info["blora_nb"]["device"] = "cuda"
    command = ["generate", "--like", save_picture(picture, tmp_path), "--output_path", tmp_path]
    again = succeeded(run_here(*command))
    assert "note: device was cuda and is cpu" in again.stderr


def test_a_validation_picture_does_not_say_what_drew_it(tmp_path):
    save_image(Image.new("RGB", (4, 4)), tmp_path / "x.png", {"prompt": "A [v]", "seed": 0})
    done = run_here("generate", "--like", tmp_path / "x.png", "--output_path", tmp_path / "out")
    refused(done, "does not say which model and B-LoRA drew it", code=2)


def test_a_picture_that_was_opened_again_is_saved_with_its_settings(pipe, tmp_path):
    drawn = generate(pipe, "A cat", num_inference_steps=1, progress=False)[0]
    with Image.open(save_picture(drawn, tmp_path)) as opened:
        copy = save_picture(opened, tmp_path)
    assert copy.name == "A_cat_seed0-2.png"
    assert read_settings(copy) == drawn.info["blora_nb"]


def test_settings_of_no_picture_are_refused(tmp_path):
    with pytest.raises(ImageError, match="no picture"):
        read_settings(tmp_path / "none.png")


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
    done = run_here("generate", "--like", tmp_path / "x.png", "--output_path", tmp_path / "out")
    assert done.returncode in (1, 2)
    assert "error:" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_export_and_inspect(tmp_path):
    one, two = made(seed=1), made(rank=mixed_rank, seed=2)
    one.save(tmp_path / "one")
    two.save(tmp_path / "two", "peft")
    file = tmp_path / "both.safetensors"
    command = ["export", "--content_B_LoRA", tmp_path / "one", "--style_B_LoRA", tmp_path / "two"]
    command += ["--style_alpha", "-0.5", "--format", "sgm", "--output_path", file]
    succeeded(run(*command))
    both = BLoRA.load(file)
    assert both.content.fingerprint == one.content.fingerprint
    for layer, (_, up) in two.style.layers.items():
        assert torch.equal(both.layers[layer][1], -0.5 * up)
    refused(run_here(*command), "exists already")
    shown = succeeded(run_here("inspect", file)).stdout
    assert "kohya with SDXL's own block names" in shown
    assert "rank 2, 6" in shown
    assert json.loads(one.metadata["training"])["instance_prompt"] in shown


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["inspect", "missing"], "There is no file"),
        (["export", "--output_path", "x.safetensors"], "Name a content half"),
    ],
)
def test_what_cannot_be_described_or_converted_is_one_clear_line(tmp_path, command, message):
    refused(run_here(*command, cwd=tmp_path), message)
