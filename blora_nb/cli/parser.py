"""The parser of the command line, and the checks of options against each other."""

import argparse
import re

from blora_nb.blocks import HALVES
from blora_nb.cli import options
from blora_nb.cli.like import defaults_from_picture, what_to_name
from blora_nb.cli.others_flags import add_others_flags

TRAIN_HELP = """\
Train one B-LoRA from each picture. The flags have the names of the authors' script.

examples:
  blora train --instance_data_dir cat.png --output_dir outputs/cat
  blora train --instance_data_dir class/ --output_dir outputs/class \\
      --resume_from_checkpoint latest
  blora train --instance_data_dir dog/ --output_dir outputs/dog --together \\
      --instance_prompt "A [v] dog"

spread over GPUs, or over two processor cores (accelerate wants --multi_gpu there, too):
  accelerate launch -m blora_nb train --instance_data_dir class/ --output_dir outputs/class
  accelerate launch --multi_gpu --num_processes 2 -m blora_nb train …

Ctrl-C ends the training at the end of a step and leaves a checkpoint."""
GENERATE_HELP = """\
Make pictures with the content half of one B-LoRA and the style half of another, with one of them
and words for the rest, or with neither.

examples:
  blora generate --prompt "A [c] in [s] style" --content_B_LoRA outputs/cat \\
      --style_B_LoRA outputs/neon --output_path outputs/pictures
  blora generate --prompt "A [c] in gold style" --content_B_LoRA outputs/cat \\
      --seeds 3 7 --output_path outputs/pictures
  blora generate --prompt "A fish in [s] style" --style_B_LoRA outputs/neon \\
      --style_alpha 0.8 --output_path outputs/pictures
  blora generate --like outputs/pictures/A_c_in_gold_style_seed3.png \\
      --output_path again"""

# argparse takes -1e-3 for an option
NEGATIVE_NUMBER = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE)
# options that do nothing without another one
NEEDS = {"strength": "image", "controlnet_conditioning_scale": "controlnet"}


class HelpWithDefaults(
    argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter
):
    """Names the default of each option that has one, and leaves the examples as they are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def parse() -> argparse.Namespace:
    """The options that were typed.

    With --like, `record` holds the settings of that picture, and they are the defaults of what was
    not typed; without, it is empty. `seeds_of_picture` says whether its seeds were taken, too.

    Raises:
        SystemExit: after --help, and where an option is wrong or contradicts another.
        ImageError, ValueError: the picture of --like holds no settings, or odd ones.
    """
    parser = argparse.ArgumentParser(
        prog="blora", description="Train and use B-LoRAs from the command line."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="show what is installed and what it will run on")
    examples = commands.add_parser("examples", help="write the example pictures into a folder")
    examples.add_argument("folder", **options.path("folder", "where to; nothing is overwritten"))
    add_train(commands)
    generate = add_generate(commands)
    inspect = commands.add_parser("inspect", help="say what a B-LoRA file is and how to use it")
    source = options.path("source", "file, folder or id on the Hugging Face hub")
    inspect.add_argument("source", **source)
    add_export(commands)

    args = parser.parse_args()
    args.record, args.seeds_of_picture = {}, False
    if args.command == "generate" and args.like:
        from blora_nb.files.saved_images import read_settings

        record = read_settings(args.like)
        seeds_of_picture = args.seeds is None and args.num_images_per_prompt is None
        generate.set_defaults(**defaults_from_picture(record, args))
        args = parser.parse_args()
        args.record, args.seeds_of_picture = record, seeds_of_picture
    if args.command == "generate":
        check_generate(generate, args)
    if args.command == "train" and args.num_validation_images and not args.validation_prompt:
        parser.error("--num_validation_images changes nothing without --validation_prompt")
    if args.command in ("train", "generate"):
        check_dtype(parser, args)
    if args.command in ("generate", "export"):
        check_alphas(parser, args)
    return args


def add_train(commands: argparse._SubParsersAction) -> None:
    train = commands.add_parser(
        "train",
        help="train one B-LoRA from each picture",
        usage="%(prog)s --instance_data_dir PATH --output_dir FOLDER [options]",
        description=TRAIN_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_group(train, "pictures in, weights out", options.TRAIN)
    options.add_settings(train)
    add_others_flags(train)
    add_group(train, "base model", options.BASE_MODEL)


def add_generate(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    generate = commands.add_parser(
        "generate",
        help="make pictures with one or two B-LoRA halves",
        usage="%(prog)s --prompt TEXT --output_path FOLDER [options]",
        description=GENERATE_HELP,
        formatter_class=HelpWithDefaults,
    )
    generate._negative_number_matcher = NEGATIVE_NUMBER
    add_group(generate, "pictures", options.PICTURES)
    add_group(generate, "halves", options.GENERATE_HALVES)
    add_group(generate, "sampling", options.SAMPLING)
    layout = add_group(generate, "keep a layout", options.LAYOUT)
    options.add_options(layout.add_mutually_exclusive_group(), options.LAYOUT_PICTURE)
    add_group(generate, "memory and speed", options.MEMORY)
    add_group(generate, "base model", options.BASE_MODEL)
    return generate


def add_export(commands: argparse._SubParsersAction) -> None:
    export = commands.add_parser(
        "export",
        help="write a B-LoRA, one half, or a mixture for another program",
        formatter_class=HelpWithDefaults,
    )
    export._negative_number_matcher = NEGATIVE_NUMBER
    add_group(export, "halves", options.EXPORT_HALVES)
    options.add_options(export, options.EXPORT)


def add_group(
    command: argparse.ArgumentParser, title: str, table: options.Options
) -> argparse._ArgumentGroup:
    group = command.add_argument_group(title)
    options.add_options(group, table)
    return group


def check_generate(generate: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with an error where something is missing, or changes nothing; fill in the seeds."""
    missing = what_to_name(args.record, args)
    if missing:
        generate.error(missing)
    if args.prompt is None:
        generate.error("name a --prompt, or a picture with --like")
    for name, needed in NEEDS.items():
        if getattr(args, name) != generate.get_default(name) and not getattr(args, needed):
            generate.error(f"--{name} changes nothing without --{needed}")
    if args.seeds is not None and args.num_images_per_prompt is not None:
        generate.error("--seeds says how many pictures; leave --num_images_per_prompt out")
    if args.seeds is None:
        args.seeds = range(args.num_images_per_prompt or 4)


def check_dtype(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with an error where the dtype is named twice, and not the same."""
    if args.dtype is None or args.mixed_precision is None:
        return
    if args.dtype != options.MIXED_PRECISION[args.mixed_precision]:
        parser.error(
            f"--dtype {args.dtype} and --mixed_precision {args.mixed_precision} contradict each "
            "other; give one of them"
        )


def check_alphas(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with an error where an alpha belongs to a half that is not named."""
    for half in HALVES:
        if getattr(args, f"{half}_alpha") != 1 and not getattr(args, f"{half}_B_LoRA"):
            parser.error(
                f"--{half}_alpha is the strength of a half that is not there; name it with "
                f"--{half}_B_LoRA"
            )
