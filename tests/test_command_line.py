"""The command line as a user meets it: clear errors, nothing lost, nothing overwritten."""

import argparse
import contextlib
import dataclasses
import io
import json
import shlex
import signal
import subprocess
import sys

import pytest
from PIL import Image

from blora_nb.assets import TINY_SDXL
from blora_nb.cli.options import add_settings, given
from blora_nb.cli.others_flags import NEEDLESS, REFUSED_FLAGS, add_others_flags
from blora_nb.course.drawings import draw
from blora_nb.lora import BLoRA
from blora_nb.settings import TrainingSettings
from helpers import refused, run, run_here, succeeded


def odd_picture():
    """Not square, transparent round about, and turned by its EXIF data."""
    drawing = draw("heart", "stripes", 7, 300).convert("RGBA")
    opaque = Image.linear_gradient("L").resize((300, 300)).point(lambda v: 255 if v > 3 else 0)
    drawing.putalpha(opaque)
    canvas = Image.new("RGBA", (777, 300), (0, 0, 0, 0))
    canvas.paste(drawing, (238, 0))
    exif = Image.Exif()
    exif[0x0112] = 3
    return canvas, exif


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    picture, exif = odd_picture()
    picture.save(folder / "a picture.png", exif=exif)
    command = ["train", "--instance_data_dir", folder / "a picture.png"]
    command += ["--output_dir", folder / "out", "--max_train_steps", 4, "--rank", 4]
    succeeded(run_here(*command))
    return folder


@pytest.fixture
def words(trained, tmp_path):
    """A function from a command with placeholders to its arguments."""
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (tmp_path / "w.pt").write_bytes(b"PK\x03\x04 pickled" + bytes(100))
    (tmp_path / "file").touch()
    places = {"tmp": tmp_path, "out": trained / "out", "picture": trained / "a picture.png"}
    return lambda command: [word.format(**places) for word in shlex.split(command)]


@pytest.mark.slow
def test_train_then_generate_in_processes_of_their_own(trained, tmp_path):
    command = ["train", "--instance_data_dir", trained / "a picture.png", "--output_dir", "out"]
    succeeded(run(*command, "--max_train_steps", 2, "--rank", 4, cwd=tmp_path))
    command = ["generate", "--prompt", "A", "--output_path", "made", "--content_B_LoRA", "out"]
    succeeded(run(*command, "--num_inference_steps", 2, "--seeds", 5, cwd=tmp_path))
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["A_seed5.png"]


def test_generate_writes_beside_what_is_there(trained, tmp_path):
    out = tmp_path / "new" / "folder"
    command = ["generate", "--prompt", "A <c>/[s] in style", "--output_path", out]
    command += ["--content_B_LoRA", trained / "out", "--style_B_LoRA", trained / "out"]
    command += ["--num_images_per_prompt", 2, "--num_inference_steps", 2]
    succeeded(run_here(*command))
    first = sorted(out.iterdir())
    assert len(first) == 2
    succeeded(run_here(*command))
    files = sorted(out.iterdir())
    assert len(files) == 4
    assert set(first) < set(files)
    assert all(Image.open(file).size == (96, 96) for file in files)
    settings = json.loads(Image.open(files[0]).text["blora_nb"])
    assert settings["prompt"] == "A <c>/[s] in style"
    assert settings["seed"] == 0


def test_nothing_is_overwritten_or_lost(trained, words):
    file = trained / "out" / "pytorch_lora_weights.safetensors"
    before = file.read_bytes()
    command = "train --instance_data_dir {picture} --output_dir {out}"
    refused(run_here(*words(command)), "exists already")
    assert file.read_bytes() == before


TRAIN = "train --instance_data_dir {picture} --output_dir {tmp}/t "
GENERATE = "generate --prompt A --output_path {tmp}/o "
HALF = "--style_B_LoRA {out} "
FAULTS = [
    ("train --instance_data_dir {tmp}/broken.png --output_dir {tmp}/o", "cannot be read"),
    ("train --instance_data_dir {tmp}/nowhere --output_dir {tmp}/o", "no file or folder"),
    (
        "train --instance_data_dir {picture} --output_dir {tmp}/file/below",
        "Cannot write to the folder",
    ),
    ("generate --prompt A --output_path {tmp}/file/below", "Cannot write to the folder"),
    (GENERATE + "--content_B_LoRA {tmp}/broken.png", "not a complete safetensors file"),
]


@pytest.mark.parametrize(("command", "message"), FAULTS, ids=[words for _, words in FAULTS])
def test_faults_are_one_clear_line(words, command, message):
    refused(run_here(*words(command)), message)


SENSELESS = [
    (GENERATE + HALF + "--style_alpha nan", "style_alpha must be an ordinary number"),
    (GENERATE + "--content_alpha 0.5", "a half that is not there"),
    (GENERATE + "--content_B_LoRA ''", "is empty"),
    (GENERATE + f"--seeds {2**70}", "2^64"),
    (GENERATE + "--device gpu", "name cuda, mps or cpu"),
    (GENERATE + "--controlnet tiny", "--outline_of"),
    (GENERATE + "--controlnet {tmp}/none --outline_of {picture}", "there is no folder"),
    (GENERATE + "--few_step_lora {tmp}/w.pt", "can run code when they are opened"),
    (GENERATE + "--few_step_lora {tmp}/none.safetensors", "There is no file or folder"),
    (GENERATE + "--pretrained_model_name_or_path {tmp}/none", "there is no folder"),
    (GENERATE + "--pretrained_model_name_or_path {tmp}/w.pt", "is a file; a folder"),
    (GENERATE + "--dtype float32 --mixed_precision fp16", "contradict"),
    (TRAIN + "--class_prompt 'A dog'", "only used with"),
    (TRAIN + "--class_data_dir dogs", "only used with"),
    (TRAIN + "--learning_rate inf", "an ordinary number"),
    (TRAIN + "--lr_scheduler linear --lr_warmup_steps 150", "would never reach"),
    (TRAIN + "--together --captions_file {tmp}/none", "cannot be read (No such file"),
    (TRAIN + "--instance_prompt 'A \udce9' --max_train_steps 1", "not valid UTF-8"),
    ("generate --prompt 'A \udcff' --output_path {tmp}/o", "not valid UTF-8"),
    (GENERATE + "--strength 0.3", "changes nothing without --image"),
    (GENERATE + "--seeds 1 --num_images_per_prompt 3", "leave --num_images_per_prompt out"),
    (GENERATE + "--few_step_lora {out}", "so it is a B-LoRA"),
    (GENERATE + "--content_B_LoRA {picture}", "it is a picture (PNG)"),
    (TRAIN + "--num_validation_images 2", "changes nothing without --validation_prompt"),
    (TRAIN + "--instance_prompt ' '", "instance_prompt is empty"),
    (TRAIN + "--x0_loss_from 900", "after the last one"),
    (TRAIN + "--adam_beta1 1.5", "adam_beta1"),
    (TRAIN + "--resolution 100", "take 96"),
    (f"export {HALF} --style_alpha 0 --output_path {{tmp}}/q.safetensors", "All alphas are 0"),
]


@pytest.mark.parametrize(("command", "message"), SENSELESS, ids=[words for _, words in SENSELESS])
def test_what_makes_no_sense_is_said_and_not_done(words, tmp_path, command, message):
    done = run_here(*words(command))
    assert done.returncode in (1, 2), done.stdout + done.stderr
    assert message in done.stderr
    assert list(tmp_path.rglob("*.png")) == [tmp_path / "broken.png"]
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_small_negative_alpha_and_the_base_of_the_environment(words, tmp_path):
    command = GENERATE + HALF + "--style_alpha -1e-3 --num_inference_steps 1"
    base = {"BLORA_BASE": str(TINY_SDXL)}
    succeeded(run_here(*words(command), "--num_images_per_prompt", 1, env=base))
    settings = json.loads(Image.open(next((tmp_path / "o").iterdir())).text["blora_nb"])
    assert settings["style_alpha"] == -0.001
    assert settings["pretrained_model_name_or_path"] == str(TINY_SDXL)
    assert "content_alpha" not in settings


def test_a_picture_made_again_with_other_seeds(words, tmp_path):
    first = "generate --prompt 'A [c]' --content_B_LoRA {out} --num_inference_steps 1 --seeds 5"
    again = "generate --like {tmp}/A_c_seed5.png --num_images_per_prompt 2"
    succeeded(run_here(*words(first), "--output_path", tmp_path))
    succeeded(run_here(*words(again), "--output_path", tmp_path / "more"))
    made = sorted(path.name for path in (tmp_path / "more").iterdir())
    assert made == ["A_c_seed0.png", "A_c_seed1.png"]


@pytest.mark.slow
def test_ctrl_c_is_answered_from_the_start(tmp_path):
    """Also while PyTorch is imported."""
    command = [sys.executable, "-X", "importtime", "-m", "blora_nb"]
    command += ["generate", "--prompt", "A", "--output_path", tmp_path / "o"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    # the names of modules, as they are imported
    while " torch" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "stopped;" in errors
    assert "Traceback" not in errors


def test_check_says_what_it_found():
    assert "[ OK ] teaching model" in succeeded(run("check")).stdout


@pytest.mark.slow
def test_the_originals_command_line_works(words, tmp_path):
    """Its README's flags as they are typed, with fewer steps and the teaching model's size."""
    out = tmp_path / "out"
    flags = """
        --instance_prompt=A[v] --resolution=96 --rank=4 --train_batch_size=1 --learning_rate=5e-5
        --lr_scheduler=constant --lr_warmup_steps=0 --max_train_steps=4 --checkpointing_steps=2
        --seed=0 --gradient_checkpointing --mixed_precision=no --snr_gamma=5 --center_crop
    """
    command = ["train", *words("--instance_data_dir {picture}"), "--output_dir", out]
    validation = ["--validation_prompt", "A [v]", "--num_validation_images", 1]
    done = succeeded(run_here(*command, *flags.split(), *validation))
    assert "memory: " in done.stdout
    settings = json.loads(BLoRA.load(out).metadata["training"])
    assert settings["learning_rate"] == 5e-5
    assert settings["gradient_checkpointing"] == "full"
    assert settings["snr_gamma"] == 5
    assert settings["instance_prompt"] == "A[v]"
    # to choose by; a checkpoint is a B-LoRA like any other
    for step in (2, 4):
        assert Image.open(out / f"checkpoint-{step}" / "A_v_seed0.png").size == (96, 96)
        assert BLoRA.load(out / f"checkpoint-{step}").rank == 4


def training_parser():
    parser = argparse.ArgumentParser()
    add_settings(parser)
    add_others_flags(parser)
    return parser


@pytest.mark.parametrize("flag", REFUSED_FLAGS)
def test_flags_that_damage_the_separation_are_refused_with_the_reason(capsys, flag):
    with pytest.raises(SystemExit):
        training_parser().parse_args([flag])
    assert f"{flag} is refused: {REFUSED_FLAGS[flag]}" in capsys.readouterr().err


def test_a_refused_flag_ends_the_command_before_anything_is_done(tmp_path):
    command = ["train", "--instance_data_dir", "x", "--output_dir", tmp_path / "o"]
    refused(run_here(*command, "--train_text_encoder"), "no longer separate", code=2)
    assert not (tmp_path / "o").exists()


def test_flags_of_the_original_are_settings_here():
    parser = training_parser()
    theirs = given(parser.parse_args(["--center_crop", "--rank", "8", "--gradient_checkpointing"]))
    ours = given(parser.parse_args(["--rank=8", "--gradient_checkpointing", "full"]))
    assert theirs | {"rank": 8} == ours


# of the original's script, and of diffusers' advanced script besides
ORIGINAL = """
    pretrained_model_name_or_path pretrained_vae_model_name_or_path revision dataset_name
    dataset_config_name instance_data_dir cache_dir image_column caption_column repeats
    class_data_dir instance_prompt class_prompt validation_prompt num_validation_images
    validation_epochs with_prior_preservation prior_loss_weight num_class_images output_dir seed
    resolution crops_coords_top_left_h crops_coords_top_left_w center_crop train_text_encoder
    train_batch_size sample_batch_size num_train_epochs max_train_steps checkpointing_steps
    checkpoints_total_limit resume_from_checkpoint gradient_accumulation_steps
    gradient_checkpointing learning_rate text_encoder_lr scale_lr lr_scheduler snr_gamma
    lr_warmup_steps lr_num_cycles lr_power dataloader_num_workers optimizer use_8bit_adam
    adam_beta1 adam_beta2 prodigy_beta3 prodigy_decouple adam_weight_decay
    adam_weight_decay_text_encoder adam_epsilon prodigy_use_bias_correction
    prodigy_safeguard_warmup max_grad_norm push_to_hub hub_token hub_model_id logging_dir
    allow_tf32 report_to mixed_precision prior_generation_precision local_rank
    enable_xformers_memory_efficient_attention rank
"""
ADVANCED = """
    variant train_text_encoder_ti token_abstraction num_new_tokens_per_abstraction
    do_edm_style_training random_flip train_text_encoder_frac train_text_encoder_ti_frac
    clip_skip noise_offset use_dora lora_unet_blocks use_blora cache_latents
    image_interpolation_mode lora_dropout
"""


def test_flags_of_the_original_and_of_diffusers_script_are_taken():
    """Unless they are refused with a reason or said to change nothing: never just unknown."""
    help_text = run_here("train", "--help").stdout.split()
    flags = [f"--{name}" for name in (ORIGINAL + ADVANCED).split()]
    taken = [flag for flag in flags if flag not in REFUSED_FLAGS | NEEDLESS]
    assert len(taken) > 35
    assert [flag for flag in taken if flag not in help_text] == []


@pytest.mark.parametrize("value", [[], ["1"]])
@pytest.mark.parametrize("flag", NEEDLESS)
def test_a_flag_that_changes_nothing_is_said_to(flag, value):
    with contextlib.redirect_stderr(io.StringIO()) as notes:
        training_parser().parse_args([flag, *value])
    assert f"note: {flag} changes nothing: {NEEDLESS[flag]}." in notes.getvalue()


def test_every_setting_is_an_option_with_a_sentence():
    parser = argparse.ArgumentParser()
    add_settings(parser)
    text = " ".join(parser.format_help().split())
    for field in dataclasses.fields(TrainingSettings):
        assert f"--{field.name}" in text
        assert len(field.metadata["help"]) > 10


def test_help_in_a_notebook_has_the_sentence_of_every_setting():
    text = " ".join(TrainingSettings.__doc__.split())
    for field in dataclasses.fields(TrainingSettings):
        assert f"{field.name}: {field.metadata['help']}." in text


def test_settings_show_what_was_changed_and_what_matters_most():
    assert repr(TrainingSettings()).count("=") == 10
    assert repr(TrainingSettings(snr_gamma=5.0)).endswith("snr_gamma=5.0)")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr_scheduler", "sudden"),
        ("rank", 0),
        ("snr_gamma", -1.0),
        ("gradient_checkpointing", "some"),
        ("resolution", 100),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(name, value):
    with pytest.raises(ValueError, match=name):
        TrainingSettings(**{name: value})


def test_generate_takes_size_seeds_and_format(words, tmp_path):
    more = """
        --seeds 3 9 5 --num_inference_steps 2 --guidance_scale 2 --negative_prompt dull
        --height 64 --width 128 --device cpu --dtype bfloat16 --batch_size 2 --scheduler dpm++
        --vae_tiling
    """
    command = "generate --prompt 'A [c]' --content_B_LoRA {out} --style_B_LoRA {out} --output_path"
    pictures = tmp_path / "pictures"
    succeeded(run_here(*words(command), pictures, *more.split()))
    made = sorted(path.name for path in pictures.iterdir())
    assert made == ["A_c_seed3.png", "A_c_seed5.png", "A_c_seed9.png"]
    image = Image.open(pictures / "A_c_seed9.png")
    assert image.size == (128, 64)
    assert json.loads(image.text["blora_nb"])["seed"] == 9
