"""The command line as a user meets it: odd pictures in, clear errors, nothing lost, nothing overwritten."""

import argparse
import contextlib
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import warnings

import pytest
from PIL import Image

from blora_nb.assets import TINY_SDXL
from blora_nb.cli.options import add_settings, given
from blora_nb.cli.others_flags import NEEDLESS, REFUSED, WITHOUT_VALUE, add_others_flags
from blora_nb.lora import BLoRA
from blora_nb.settings import TrainingSettings
from drawings import draw


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "blora_nb", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


def in_process(arguments):
    """As `run`, where nothing is done and so nothing has to be kept apart; without the seconds that a new Python takes."""
    from unittest import mock

    from blora_nb.cli.commands import main

    with (
        mock.patch.object(sys, "argv", ["python -m blora_nb", *map(str, arguments)]),
        warnings.catch_warnings(),
    ):
        kept = warnings.formatwarning
        try:
            return main()
        finally:
            warnings.formatwarning = kept


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    drawing = draw("heart", "stripes", 7, 300).convert("RGBA")
    drawing.putalpha(
        Image.linear_gradient("L").resize((300, 300)).point(lambda v: 255 if v > 3 else 0)
    )
    canvas = Image.new("RGBA", (777, 300), (0, 0, 0, 0))  # not square, transparent round about
    canvas.paste(drawing, (238, 0))
    exif = Image.Exif()
    exif[0x0112] = 3
    canvas.save(folder / "a picture.png", exif=exif)
    result = run(
        "train",
        "--instance_data_dir",
        folder / "a picture.png",
        "--output_dir",
        folder / "out",
        "--max_train_steps",
        4,
        "--rank",
        4,
    )
    assert result.returncode == 0, result.stderr
    return folder


def test_train_then_generate(trained, tmp_path):
    assert (trained / "out" / "pytorch_lora_weights.safetensors").exists()
    command = [
        "generate",
        "--prompt",
        "A <c>/[s] in style",
        "--output_path",
        tmp_path / "new" / "folder",
        "--content_B_LoRA",
        trained / "out",
        "--style_B_LoRA",
        trained / "out",
        "--num_images_per_prompt",
        2,
        "--num_inference_steps",
        2,
    ]
    for expected in (2, 4):  # the second time beside the first
        result = run(*command)
        assert result.returncode == 0, result.stderr
        files = sorted((tmp_path / "new" / "folder").iterdir())
        assert len(files) == expected
        assert all(Image.open(f).size == (96, 96) for f in files)
    settings = json.loads(Image.open(files[0]).text["blora_nb"])
    assert settings["prompt"] == "A <c>/[s] in style"
    assert settings["seed"] == 0


def test_nothing_is_overwritten_or_lost(trained):
    file = trained / "out" / "pytorch_lora_weights.safetensors"
    before = file.read_bytes()
    result = run(
        "train", "--instance_data_dir", trained / "a picture.png", "--output_dir", trained / "out"
    )
    assert result.returncode == 1
    assert "exists already" in result.stderr
    assert file.read_bytes() == before


def test_faults_are_one_clear_line(trained, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (tmp_path / "file").touch()
    picture = trained / "a picture.png"
    cases = [
        (
            (
                "train",
                "--instance_data_dir",
                tmp_path / "broken.png",
                "--output_dir",
                tmp_path / "o",
            ),
            "broken.png cannot be read",
        ),
        (
            ("train", "--instance_data_dir", tmp_path / "nowhere", "--output_dir", tmp_path / "o"),
            "no file or folder",
        ),
        (
            ("train", "--instance_data_dir", picture, "--output_dir", tmp_path / "file" / "below"),
            "Cannot write to the folder",
        ),
        (
            ("generate", "--prompt", "A", "--output_path", tmp_path / "file" / "below"),
            "Cannot write to the folder",
        ),
        (
            (
                "generate",
                "--prompt",
                "A",
                "--output_path",
                tmp_path / "o",
                "--content_B_LoRA",
                tmp_path / "broken.png",
            ),
            "not a complete safetensors file",
        ),
    ]
    for arguments, message in cases:
        result = run(*arguments)
        assert (
            result.returncode == 1 and message in result.stderr and "Traceback" not in result.stderr
        ), result.stderr


def test_what_makes_no_sense_is_said_and_not_done(trained, tmp_path):
    half, out, picture = (
        ["--style_B_LoRA", trained / "out"],
        ["--output_path", tmp_path / "o"],
        ["--instance_data_dir", trained / "a picture.png", "--output_dir", tmp_path / "t"],
    )
    (tmp_path / "w.pt").write_bytes(b"PK\x03\x04 pickled" + bytes(100))
    generate = ["generate", "--prompt", "A", *out]
    cases = [
        ([*generate, *half, "--style_alpha", "nan"], "style_alpha must be an ordinary number"),
        ([*generate, *half, "--style_from", "2"], "style_from is a share"),
        ([*generate, "--content_alpha", "0.5"], "a half that is not there"),
        ([*generate, "--content_B_LoRA", ""], "is empty"),
        ([*generate, "--seeds", str(2**70)], "2^64"),
        ([*generate, "--device", "gpu"], "name cuda, mps or cpu"),
        ([*generate, "--controlnet", "tiny"], "--outline_of"),
        (
            [
                *generate,
                "--controlnet",
                tmp_path / "none",
                "--outline_of",
                trained / "a picture.png",
            ],
            "there is no folder",
        ),
        ([*generate, "--few_step_lora", tmp_path / "w.pt"], "can run code when they are opened"),
        (
            [*generate, "--few_step_lora", tmp_path / "none.safetensors"],
            "There is no file or folder",
        ),
        ([*generate, "--pretrained_model_name_or_path", tmp_path / "none"], "there is no folder"),
        ([*generate, "--pretrained_model_name_or_path", tmp_path / "w.pt"], "is a file; a folder"),
        ([*generate, "--dtype", "float32", "--mixed_precision", "fp16"], "contradict"),
        (["train", *picture, "--class_prompt", "A dog"], "only used with"),
        (["train", *picture, "--class_data_dir", "dogs"], "only used with"),
        (["train", *picture, "--learning_rate", "inf"], "an ordinary number"),
        (
            ["train", *picture, "--lr_scheduler", "linear", "--lr_warmup_steps", "150"],
            "would never reach",
        ),
        (
            ["train", *picture, "--together", "--captions_file", tmp_path / "none"],
            "cannot be read (No such file",
        ),
        (
            ["train", *picture, "--instance_prompt", "A \udce9", "--max_train_steps", "1"],
            "no UTF-8",
        ),
        ([*generate[:2], "A \udcff", *out], "no UTF-8"),
        ([*generate, "--strength", "0.3"], "changes nothing without --image"),
        (["train", *picture, "--x0_loss_from", "900"], "after the last one"),
        (["train", *picture, "--adam_beta1", "1.5"], "adam_beta1"),
        (["train", *picture, "--resolution", "100"], "take 96"),
        (
            ["export", *half, "--style_alpha", "0", "--output_path", tmp_path / "q.safetensors"],
            "All alphas are 0",
        ),
    ]
    for arguments, message in cases:
        with (
            contextlib.redirect_stderr(io.StringIO()) as errors,
            contextlib.redirect_stdout(io.StringIO()),
        ):
            try:
                code = in_process(arguments)
            except SystemExit as stop:
                code = stop.code
        assert code in (1, 2) and message in errors.getvalue(), (arguments, errors.getvalue())
    assert not list(tmp_path.rglob("*.png"))
    assert not (tmp_path / "q.safetensors").exists()
    done = run(
        *generate,
        *half,
        "--style_alpha",
        "-1e-3",
        "--num_inference_steps",
        1,
        "--num_images_per_prompt",
        1,
        env={**os.environ, "BLORA_BASE": str(TINY_SDXL)},
    )
    assert done.returncode == 0, done.stderr
    settings = json.loads(Image.open(next((tmp_path / "o").iterdir())).text["blora_nb"])
    assert settings["style_alpha"] == -0.001
    assert settings["pretrained_model_name_or_path"] == str(TINY_SDXL)
    assert "content_alpha" not in settings


def test_a_picture_made_again_with_other_seeds(trained, tmp_path):
    first = run(
        "generate",
        "--prompt",
        "A [c]",
        "--content_B_LoRA",
        trained / "out",
        "--num_inference_steps",
        1,
        "--seeds",
        5,
        "--output_path",
        tmp_path,
    )
    again = run(
        "generate",
        "--like",
        tmp_path / "A_c_seed5.png",
        "--num_images_per_prompt",
        2,
        "--output_path",
        tmp_path / "more",
    )
    assert first.returncode == again.returncode == 0
    assert sorted(p.name for p in (tmp_path / "more").iterdir()) == [
        "A_c_seed0.png",
        "A_c_seed1.png",
    ]


def test_ctrl_c_is_answered_from_the_start(trained, tmp_path):
    """Also while PyTorch is imported."""
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "blora_nb",
        "generate",
        "--prompt",
        "A",
        "--output_path",
        tmp_path / "o",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while " torch" not in process.stderr.readline():  # the names of modules, as they are imported
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "stopped;" in errors
    assert "Traceback" not in errors


def test_check_says_what_it_found():
    result = run("check")
    assert result.returncode == 0
    assert "[ OK ] teaching model" in result.stdout


def test_the_originals_command_line_works(trained, tmp_path):
    """Its README's flags, typed as they are, with a smaller number of steps and the teaching model's size."""
    out = tmp_path / "out"
    flags = "--instance_prompt=A[v] --resolution=96 --rank=4 --train_batch_size=1 --learning_rate=5e-5 --lr_scheduler=constant --lr_warmup_steps=0 --max_train_steps=4 --checkpointing_steps=2 --seed=0 --gradient_checkpointing --mixed_precision=no --snr_gamma=5 --center_crop"
    result = run(
        "train",
        "--instance_data_dir",
        trained / "a picture.png",
        "--output_dir",
        out,
        *flags.split(),
        "--validation_prompt",
        "A [v]",
        "--num_validation_images",
        1,
    )
    assert result.returncode == 0 and "memory: " in result.stdout, result.stderr
    settings = json.loads(BLoRA.load(out).metadata["training"])
    assert (
        settings["learning_rate"],
        settings["gradient_checkpointing"],
        settings["snr_gamma"],
        settings["instance_prompt"],
    ) == (5e-5, "full", 5, "A[v]")
    for step in (2, 4):  # to choose by; a checkpoint is a B-LoRA like any other
        assert Image.open(out / f"checkpoint-{step}" / "A_v_seed0.png").size == (96, 96)
        assert BLoRA.load(out / f"checkpoint-{step}").rank == 4


def test_flags_that_damage_the_separation_are_refused_with_the_reason(tmp_path):
    parser = argparse.ArgumentParser()
    add_settings(parser)
    add_others_flags(parser)
    for flag in REFUSED:
        with pytest.raises(SystemExit), contextlib.redirect_stderr(io.StringIO()) as errors:
            parser.parse_args([flag])
        assert f"{flag} is refused: {REFUSED[flag]}" in errors.getvalue()
    assert given(
        parser.parse_args(["--center_crop", "--rank", "8", "--gradient_checkpointing"])
    ) | {"rank": 8} == given(parser.parse_args(["--rank=8", "--gradient_checkpointing", "full"]))
    result = run(
        "train", "--instance_data_dir", "x", "--output_dir", tmp_path / "o", "--train_text_encoder"
    )
    assert result.returncode == 2
    assert "no longer separate" in result.stderr
    assert not (tmp_path / "o").exists()


ORIGINAL = [
    "pretrained_model_name_or_path",
    "pretrained_vae_model_name_or_path",
    "revision",
    "dataset_name",
    "dataset_config_name",
    "instance_data_dir",
    "cache_dir",
    "image_column",
    "caption_column",
    "repeats",
    "class_data_dir",
    "instance_prompt",
    "class_prompt",
    "validation_prompt",
    "num_validation_images",
    "validation_epochs",
    "with_prior_preservation",
    "prior_loss_weight",
    "num_class_images",
    "output_dir",
    "seed",
    "resolution",
    "crops_coords_top_left_h",
    "crops_coords_top_left_w",
    "center_crop",
    "train_text_encoder",
    "train_batch_size",
    "sample_batch_size",
    "num_train_epochs",
    "max_train_steps",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "resume_from_checkpoint",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "learning_rate",
    "text_encoder_lr",
    "scale_lr",
    "lr_scheduler",
    "snr_gamma",
    "lr_warmup_steps",
    "lr_num_cycles",
    "lr_power",
    "dataloader_num_workers",
    "optimizer",
    "use_8bit_adam",
    "adam_beta1",
    "adam_beta2",
    "prodigy_beta3",
    "prodigy_decouple",
    "adam_weight_decay",
    "adam_weight_decay_text_encoder",
    "adam_epsilon",
    "prodigy_use_bias_correction",
    "prodigy_safeguard_warmup",
    "max_grad_norm",
    "push_to_hub",
    "hub_token",
    "hub_model_id",
    "logging_dir",
    "allow_tf32",
    "report_to",
    "mixed_precision",
    "prior_generation_precision",
    "local_rank",
    "enable_xformers_memory_efficient_attention",
    "rank",
]
ADVANCED = [
    "variant",
    "train_text_encoder_ti",
    "token_abstraction",
    "num_new_tokens_per_abstraction",
    "do_edm_style_training",
    "random_flip",
    "train_text_encoder_frac",
    "train_text_encoder_ti_frac",
    "clip_skip",
    "noise_offset",
    "use_dora",
    "lora_unet_blocks",
    "use_blora",
    "cache_latents",
    "image_interpolation_mode",
    "lora_dropout",
]


def test_every_flag_of_the_original_and_of_diffusers_script_gets_an_answer():
    """Taken, refused with a reason, or said to change nothing: never just unknown."""
    help_text, parser = run("train", "--help").stdout, argparse.ArgumentParser()
    add_settings(parser)
    add_others_flags(parser)
    own = [
        flag
        for flag in (f"--{name}" for name in ORIGINAL + ADVANCED)
        if flag not in REFUSED | NEEDLESS
    ]
    assert len(own) > 35 and all(
        f"{flag} " in help_text or f"{flag}\n" in help_text for flag in own
    ), [f for f in own if f not in help_text]
    with contextlib.redirect_stderr(io.StringIO()) as notes:
        parser.parse_args(
            [
                text
                for flag in NEEDLESS
                for text in ([flag] if flag in WITHOUT_VALUE else [flag, "1"])
            ]
        )
    assert all(
        f"note: {flag} changes nothing: {why}." in notes.getvalue()
        for flag, why in NEEDLESS.items()
    )


def test_every_setting_is_an_option_with_a_sentence():
    parser = argparse.ArgumentParser()
    add_settings(parser)
    text = " ".join(parser.format_help().split())
    for field in dataclasses.fields(TrainingSettings):
        assert f"--{field.name}" in text
        assert len(TrainingSettings.explain(field.name)) > 10
    assert repr(TrainingSettings()).count("=") == 9
    assert repr(TrainingSettings(snr_gamma=5.0)).endswith("snr_gamma=5.0)")
    for wrong in (
        {"lr_scheduler": "sudden"},
        {"rank": 0},
        {"snr_gamma": -1.0},
        {"gradient_checkpointing": "some"},
        {"resolution": 100},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            TrainingSettings(**wrong)


def test_generate_takes_size_seeds_and_format(trained, tmp_path):
    more = "--seeds 3 9 5 --num_inference_steps 2 --guidance_scale 2 --negative_prompt dull --height 64 --width 128 --device cpu --dtype bfloat16 --batch_size 2 --scheduler dpm++ --vae_tiling --asymmetric_guidance --content_until 0.5 --style_from 0.5"
    result = run(
        "generate",
        "--prompt",
        "A [c]",
        "--output_path",
        tmp_path,
        "--content_B_LoRA",
        trained / "out",
        "--style_B_LoRA",
        trained / "out",
        *more.split(),
    )
    assert result.returncode == 0, result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "A_c_seed3.png",
        "A_c_seed5.png",
        "A_c_seed9.png",
    ]
    image = Image.open(tmp_path / "A_c_seed9.png")
    assert image.size == (128, 64)
    assert json.loads(image.text["blora_nb"])["seed"] == 9
