"""What every option is called, what it takes and what it does: a table for each group of --help.

A table maps the name of an option to the arguments of argparse's `add_argument`.
"""

import argparse
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from blora_nb.blocks import HALVES
from blora_nb.defaults import QUANTIZATIONS, SCHEDULERS
from blora_nb.files.names import WRITTEN
from blora_nb.settings import SUITED, TrainingSettings, is_seed, value_type

DTYPES = ("float32", "float16", "bfloat16")
MIXED_PRECISION = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}
VALIDATION_IMAGES = 4
SUITS = "by default what suits the base model"

Option = dict[str, Any]
Options = dict[str, Option]


def not_empty(text: str) -> str:
    """A path or an id. A shell passes an empty text for a variable that is not set."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; name a file or a folder")
    return text


def seed(text: str) -> int:
    """A whole number that PyTorch accepts as a seed."""
    number = int(text)
    if not is_seed(number):
        raise argparse.ArgumentTypeError(f"must be between -2^63 and 2^64, which {number} is not")
    return number


def count(text: str) -> int:
    """A whole number greater than 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def path(metavar: str, help: str, **more: Any) -> Option:
    """An option that takes a path, an id or a name."""
    return {"type": not_empty, "metavar": metavar, "help": help, **more}


def text(help: str) -> Option:
    return {"metavar": "TEXT", "help": help}


def amount(help: str, **more: Any) -> Option:
    return {"type": count, "metavar": "N", "help": help, **more}


def number(help: str, **more: Any) -> Option:
    return {"type": float, "metavar": "X", "help": help, **more}


def choice(choices: Iterable[str], help: str, **more: Any) -> Option:
    return {"choices": tuple(choices), "help": help, **more}


def switch(help: str) -> Option:
    return {"action": "store_true", "help": help}


def halves(use: str, alpha: str) -> Options:
    """The B-LoRAs of each half, one or several to be mixed, and their strength."""
    options = {}
    for half in HALVES:
        sources = f"file, folder or hub id whose {half} half {use}; several are mixed"
        weights = (
            f"weight of each {half} half if there are several, linear and signed; by default 1 each"
        )
        options[f"{half}_B_LoRA"] = path("SOURCE", sources, nargs="+")
        options[f"{half}_alpha"] = number(alpha, default=1.0)
        options[f"{half}_weights"] = number(weights, nargs="+")
    return options


TRAIN: Options = {
    "instance_data_dir": path(
        "PATH",
        "a picture, or a folder of pictures (one B-LoRA is trained from each)",
        required=True,
    ),
    "output_dir": path(
        "FOLDER",
        "for the weights and checkpoints, made if needed; nothing in it is overwritten",
        required=True,
    ),
    "together": switch(
        "one B-LoRA from all pictures of the folder, as the original does; for recontextualization "
        'with --instance_prompt "A [v] dog"'
    ),
    "captions_file": path(
        "FILE",
        "a prompt for each picture of --together: lines like "
        '{"file_name": "dog1.jpg", "text": "A [v] dog in the snow"}',
    ),
    "content_B_LoRA": path(
        "PATH",
        "keep this B-LoRA's content half and train a fresh style half beside it, the second step "
        "of ConsisLoRA's style training (arXiv 2503.10614); for a folder of pictures: the folder "
        "that their first training left",
    ),
    "resume_from_checkpoint": path(
        "WHICH",
        '"latest" keeps what is finished and goes on where a run was stopped (on a CPU bit for '
        "bit); or a checkpoint by name",
    ),
    "validation_prompt": text(
        "make pictures of this prompt at each checkpoint, always with the same seeds, to choose a "
        "checkpoint by"
    ),
    "num_validation_images": amount(f"how many (default: {VALIDATION_IMAGES})"),
}

PICTURES: Options = {
    "prompt": text("needed unless --like is given"),
    "output_path": path(
        "FOLDER", "for the pictures, made if needed; nothing in it is overwritten", required=True
    ),
    "like": path(
        "PICTURE.png",
        "make a picture of this command again: its settings are the defaults, what is typed takes "
        "precedence",
    ),
    "num_images_per_prompt": amount("how many pictures, with the seeds 0, 1, 2, …; by default 4"),
    "seeds": {"type": seed, "nargs": "+", "metavar": "N", "help": "these seeds instead"},
    "negative_prompt": text("what is not wanted"),
    "height": amount(f"in pixels; {SUITS}"),
    "width": amount(f"in pixels; {SUITS}"),
}

SAMPLING: Options = {
    "num_inference_steps": amount(SUITS),
    "guidance_scale": number(f"how closely the prompt is followed; {SUITS}"),
    "scheduler": choice(SCHEDULERS, "another sampler than the base model's own"),
    "few_step_lora": path(
        "SOURCE",
        "id or file of an LCM or Lightning LoRA of the base, merged into it; then 4 to 8 steps and "
        "a guidance scale of 1 to 2 are enough",
    ),
}

LAYOUT: Options = {
    "image": path("PICTURE", "start from this picture instead of pure noise (img2img)"),
    "strength": number(
        "with --image: share of the steps that are made; the lower, the more of the picture stays",
        default=0.6,
    ),
    "controlnet": path(
        "SOURCE",
        "follow a drawn layout: the id or folder of a ControlNet for the base model (tiny: that of "
        "the teaching model; name no object in the prompt and no content half with it)",
    ),
    "controlnet_conditioning_scale": number("how closely the layout is followed", default=1.0),
}

# at most one of them may be given
LAYOUT_PICTURE: Options = {
    "outline_of": path("PICTURE", "the layout: the outlines of this picture, white on black"),
    "control_image": path(
        "PICTURE", "the layout as this ControlNet wants it (edges, depth, …; its card says which)"
    ),
}

MEMORY: Options = {
    "batch_size": amount("pictures made at once; by default one on a CPU, as many as fit on a GPU"),
    "vae_tiling": switch("decode large pictures piece by piece, to save memory"),
}

BASE_MODEL: Options = {
    "pretrained_model_name_or_path": path(
        "SOURCE",
        '"tiny" (the teaching model), "sdxl", or an SDXL-shaped id or folder; by default what the '
        "environment variable BLORA_BASE names, else tiny",
    ),
    "revision": path("NAME", "branch, tag or commit of a base model on the Hugging Face hub"),
    "variant": path(
        "NAME",
        'which files of the base: "fp16" for those that end in .fp16.safetensors; the default '
        "for sdxl",
    ),
    "cache_dir": path("FOLDER", "for downloads of base models and VAEs from the hub"),
    "pretrained_vae_model_name_or_path": path(
        "SOURCE", "another VAE; by default SDXL in float16 gets one that does not overflow"
    ),
    "device": path("NAME", "cuda, mps or cpu; by default the best that works"),
    "dtype": choice(
        DTYPES,
        "dtype of the frozen base; by default what the device computes best in (the LoRA is always "
        "float32)",
    ),
    "mixed_precision": choice(MIXED_PRECISION, "the original's name for --dtype"),
    "quantization": choice(
        ("none", *QUANTIZATIONS),
        "keep the frozen U-Net in 8 or 4 bits (bitsandbytes); by default 4 bits (nf4) where memory "
        "asks for it",
    ),
}

GENERATE_HALVES = halves("is used", "strength, linear and signed; 0 is off")
EXPORT_HALVES = halves("is written", "strength, linear and signed, multiplied into the weights")

EXPORT: Options = {
    "dtype": choice(
        DTYPES,
        "of the numbers in the file; float16 and bfloat16 make it half as large",
        default="float32",
    ),
    "format": choice(
        tuple(WRITTEN),
        "which programs read it: "
        + "; ".join(f"{name}: {naming.readers}" for name, naming in WRITTEN.items()),
        default="sgm",
    ),
    "output_path": path(
        "PATH", "file (.safetensors) or folder; nothing is overwritten", required=True
    ),
}

GENERATE: Options = {
    **PICTURES,
    **GENERATE_HALVES,
    **SAMPLING,
    **LAYOUT,
    **LAYOUT_PICTURE,
    **MEMORY,
    **BASE_MODEL,
}


def add_options(target: argparse._ActionsContainer, options: Options) -> None:
    """Add a table of options to a parser or a group."""
    for name, arguments in options.items():
        target.add_argument(f"--{name}", **arguments)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add an option for each field of `TrainingSettings`, in groups.

    What is not given stays None, and so leaves the default.
    """
    groups: dict[str, argparse._ArgumentGroup] = {}
    for field in fields(TrainingSettings):
        about, kind = field.metadata, value_type(field)
        default = "what suits the base model" if field.name in SUITED else field.default
        arguments: Option = {"help": about["help"]}
        if default is not None and default is not False:
            arguments["help"] += f" (default: {default})"
        if kind is bool:
            arguments |= {"action": "store_true", "default": None}
        elif "choices" in about:
            arguments["choices"] = about["choices"]
        else:
            arguments |= {"type": kind, "metavar": {int: "N", float: "X", str: "TEXT"}[kind]}
        if "bare" in about:  # the value of an option that is given without one
            arguments |= {"nargs": "?", "const": about["bare"]}
        title = about["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        add_options(groups[title], {field.name: arguments})


def given(args: argparse.Namespace) -> dict[str, Any]:
    """The settings among parsed arguments, as changes for `TrainingSettings.for_pipeline`."""
    return {field.name: getattr(args, field.name) for field in fields(TrainingSettings)}
