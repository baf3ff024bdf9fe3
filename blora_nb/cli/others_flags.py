"""The flags of other training scripts: which are refused and why, and which change nothing here."""

import argparse
import sys
from dataclasses import fields
from typing import Any

from blora_nb.settings import TrainingSettings

REASONS = (
    (
        "--train_text_encoder --text_encoder_lr --adam_weight_decay_text_encoder "
        "--train_text_encoder_frac --train_text_encoder_ti --train_text_encoder_ti_frac "
        "--token_abstraction --num_new_tokens_per_abstraction --clip_skip",
        "only the two blocks of the U-Net are trained: a text encoder that learns the picture "
        "tells it to every block, and content and style are no longer separate",
    ),
    (
        "--dataset_name --dataset_config_name --image_column --caption_column",
        "pictures are read from a folder: use --instance_data_dir, with --together and "
        "--captions_file for captions",
    ),
    (
        "--push_to_hub --hub_token --hub_model_id --report_to",
        "nothing is sent anywhere; losses, settings and versions are written beside the weights",
    ),
    (
        "--optimizer --prodigy_beta3 --prodigy_decouple --prodigy_use_bias_correction "
        "--prodigy_safeguard_warmup",
        "AdamW (or its 8-bit form, --use_8bit_adam) is what B-LoRA was published with; Prodigy is "
        "not offered",
    ),
    (
        "--crops_coords_top_left_h --crops_coords_top_left_w",
        "SDXL is told a crop at (0, 0), as it is when pictures are generated, and the middle "
        "square is used",
    ),
    (
        "--use_dora --lora_dropout --noise_offset --do_edm_style_training",
        "it makes other files than B-LoRA's plain LoRA, or another loss; it is not offered",
    ),
    (
        "--lora_unet_blocks",
        "B-LoRA is trained on the content and the style block; others are compared in the "
        "notebooks",
    ),
    ("--random_flip", "a mirrored picture is another content; the B-LoRA would learn both"),
    (
        "--num_train_epochs",
        "the length of a training is --max_train_steps; with one picture an epoch is one step",
    ),
    (
        "--validation_epochs",
        "validation pictures are made at each checkpoint: --checkpointing_steps",
    ),
    ("--prior_generation_precision", "class pictures are made in the dtype of the base: --dtype"),
    (
        "--scale_lr",
        "say the learning rate you want with --learning_rate; it is not multiplied behind your "
        "back",
    ),
)
REFUSED_FLAGS = {flag: reason for flags, reason in REASONS for flag in flags.split()}

# values of refused flags that ask for what is done anyway
DONE_ANYWAY = {
    "--optimizer": {"adamw"},
    "--crops_coords_top_left_h": {"0", "0.0"},
    "--crops_coords_top_left_w": {"0", "0.0"},
    "--lora_dropout": {"0", "0.0"},
    "--noise_offset": {"0", "0.0"},
}

# flags of the original and of diffusers' scripts that change nothing here, and why
NEEDLESS = {
    "--center_crop": "the middle square is always used",
    "--enable_xformers_memory_efficient_attention": "PyTorch's own attention saves the memory",
    "--allow_tf32": "the base model is in 16 bits on a GPU",
    "--use_blora": "nothing else is trained here",
    "--cache_latents": "the picture is always encoded once",
    "--repeats": "the length of a training is --max_train_steps",
    "--dataloader_num_workers": "the picture is read and encoded once, before the training",
    "--image_interpolation_mode": "pictures are resized with Lanczos's filter",
    "--logging_dir": "the losses are in the checkpoints",
    "--local_rank": "accelerate tells each process its number",
}


class Answer(argparse.Action):
    """Refuse a flag with the reason, or say that it changes nothing and go on."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, value: Any, flag: str | None = None
    ) -> None:
        if flag in NEEDLESS:
            print(f"note: {flag} changes nothing: {NEEDLESS[flag]}.", file=sys.stderr)
        elif flag in REFUSED_FLAGS and str(value).lower() not in DONE_ANYWAY.get(flag, ()):
            parser.error(f"{flag} is refused: {REFUSED_FLAGS[flag]}.")


def add_others_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the authors' script and of diffusers' scripts, left out of --help."""
    # some of them have a value, some none; a setting of ours may have taken a name since
    ours = {f"--{field.name}" for field in fields(TrainingSettings)}
    for flag in (REFUSED_FLAGS | NEEDLESS).keys() - ours:
        parser.add_argument(flag, nargs="?", action=Answer, help=argparse.SUPPRESS)
