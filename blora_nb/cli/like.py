"""generate --like: the settings of a picture as the defaults of the options that are not typed."""

import argparse
from typing import Any

from blora_nb.blocks import HALVES
from blora_nb.cli.options import GENERATE, LAYOUT_PICTURE, Option, seed
from blora_nb.errors import shown

# the device is this computer's: a picture made on a GPU can be made again on a laptop
NOT_TAKEN = ("like", "output_path", "seeds", "num_images_per_prompt", "device")
FOREIGN = "It was not written by this command."
# what may have been used without a file of its own, and the options that can name it
UNNAMED = {
    "image": ("image",),
    "control_image": ("control_image", "outline_of"),
    "controlnet": ("controlnet",),
}


def defaults_from_picture(record: dict[str, Any], typed: argparse.Namespace) -> dict[str, Any]:
    """The values of options that a picture was made with, checked like typed ones.

    Args:
        record: from `read_settings`. typed: the parsed options, without the picture's.

    Raises:
        ValueError: a value is none that the option takes.
    """
    left_out = {*NOT_TAKEN}
    left_out |= {f"{half}_weights" for half in HALVES if getattr(typed, f"{half}_B_LoRA")}
    if any(getattr(typed, name) for name in LAYOUT_PICTURE):
        left_out |= {*LAYOUT_PICTURE}
    if typed.mixed_precision:
        left_out.add("dtype")
    defaults: dict[str, Any] = {}
    for name, option in GENERATE.items():
        value = record.get(name)
        if value is None or name in left_out:
            continue
        if option.get("action") == "store_true":
            defaults[name] = value is True
        elif "nargs" in option:
            parts = value if isinstance(value, list) else [value]
            defaults[name] = [checked(name, option, part) for part in parts]
        else:
            defaults[name] = checked(name, option, value)
    if typed.num_images_per_prompt is None:
        batch = record.get("batch_seeds") or [record.get("seed", 0)]
        if not isinstance(batch, list):
            raise ValueError(
                f"The picture names {shown(batch)} as the seeds of its batch, which is not a list. "
                f"{FOREIGN}"
            )
        defaults["seeds"] = [checked("seed", {"type": seed}, number) for number in batch]
        defaults["batch_size"] = len(batch)
    return defaults


def checked(name: str, option: Option, value: Any) -> Any:
    """A value out of a picture, converted and checked as argparse does with what is typed."""
    convert = option.get("type", str)
    try:
        converted = convert(str(value))
    except argparse.ArgumentTypeError as error:
        fault = str(error)
    except ValueError:
        fault = "is not a number" if convert is float else "is not a whole number"
    else:
        if "choices" not in option or converted in option["choices"]:
            return converted
        fault = f"is not one of {', '.join(option['choices'])}"
    raise ValueError(f"The picture names {shown(value)} as its {name}, which {fault}. {FOREIGN}")


def what_to_name(record: dict[str, Any], args: argparse.Namespace) -> str | None:
    """What a picture was made with that was in no file and no option names; None if nothing."""
    if record and "base_model" not in record:
        return (
            f"{args.like} does not say which model and B-LoRA drew it, as the validation and class "
            "pictures of a training do not: draw it with --prompt and the files you name"
        )
    if "prompt_per_block" in record:
        return (
            f"{args.like} was drawn with prompts of their own for some blocks: draw it again in "
            "Python, inside blora_nb.prompt_per_block"
        )
    unnamed = f"of {args.like} was not in a file when the picture was made; name it with"
    for what, flags in UNNAMED.items():
        used = what in record or f"{what}_sha256" in record
        if used and not any(getattr(args, flag) for flag in flags):
            return f"the {what} {unnamed} --{flags[-1]}"
    for half in HALVES:
        fingerprint = record.get(f"{half}_fingerprint")
        if f"{half}_fingerprint" in record and not getattr(args, f"{half}_B_LoRA"):
            return (
                f"the {half} half {unnamed} --{half}_B_LoRA (fingerprint {shown(fingerprint, 12)})"
            )
    return None
