"""The options of the command line, and what they take from a picture that is to be made again."""

import argparse
import re
from dataclasses import fields

from blora_nb.blocks import HALVES
from blora_nb.defaults import QUANTIZATIONS, SCHEDULERS
from blora_nb.errors import shown
from blora_nb.files.formats import FORMATS
from blora_nb.settings import SUITED, TrainingSettings, value_type

TRAIN = """Train one B-LoRA from each picture. The flags have the names of the authors' script.

examples:
  python -m blora_nb train --instance_data_dir cat.png --output_dir outputs/cat
  python -m blora_nb train --instance_data_dir class/ --output_dir outputs/class --resume_from_checkpoint latest
  accelerate launch -m blora_nb train --instance_data_dir class/ --output_dir outputs/class     (spread over GPUs)
  accelerate launch --multi_gpu --num_processes 2 -m blora_nb train …                           (without GPUs: over two processor cores; accelerate wants the flag there too)
  python -m blora_nb train --instance_data_dir dog/ --output_dir outputs/dog --together --instance_prompt "A [v] dog"

Ctrl-C ends the training at the end of a step and leaves a checkpoint."""
GENERATE = """Make pictures with the content half of one B-LoRA and the style half of another, with one of them and words for the rest, or with neither.

examples:
  python -m blora_nb generate --prompt "A [c] in [s] style" --content_B_LoRA outputs/cat --style_B_LoRA outputs/neon --output_path outputs/pictures
  python -m blora_nb generate --prompt "A [c] in gold style" --content_B_LoRA outputs/cat --seeds 3 7 --output_path outputs/pictures
  python -m blora_nb generate --prompt "A fish in [s] style" --style_B_LoRA outputs/neon --style_alpha 0.8 --output_path outputs/pictures
  python -m blora_nb generate --like outputs/pictures/A_c_in_gold_style_seed3.png --output_path again"""
DTYPES = ("float32", "float16", "bfloat16")
MIXED_PRECISION = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Names the default of each option that has one, and leaves the examples as they are."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def not_empty(text):
    """A path or an id, for argparse: anything but nothing, which a shell makes of a variable that is not set."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; name a file or a folder")
    return text


def seed(text):
    """A whole number that PyTorch takes for a seed, for argparse."""
    if not -(2**63) <= (number := int(text)) < 2**64:
        raise argparse.ArgumentTypeError(f"must be between -2^63 and 2^64, which {number} is not")
    return number


def count(text):
    """A whole number greater than 0, for argparse."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def parse():
    parser = argparse.ArgumentParser(
        prog="python -m blora_nb", description="Train and use B-LoRAs from the command line."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="show what is installed and what it will run on")
    plain = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    train = commands.add_parser(
        "train",
        help="train one B-LoRA from each picture",
        usage="%(prog)s --instance_data_dir PATH --output_dir FOLDER [options]",
        description=TRAIN,
        **plain,
    )
    generate = commands.add_parser(
        "generate",
        help="make pictures with one or two B-LoRA halves",
        usage="%(prog)s --prompt TEXT --output_path FOLDER [options]",
        description=GENERATE,
        formatter_class=Help,
    )
    inspect = commands.add_parser("inspect", help="say what a B-LoRA file is and how to use it")
    export = commands.add_parser(
        "export",
        help="write a B-LoRA, one half, or a mixture for another program",
        formatter_class=Help,
    )
    add_train(train)
    add_generate(generate)
    for command in (train, generate):
        add_base_model(command)
    inspect.add_argument(
        "source", type=not_empty, help="file, folder or id on the Hugging Face hub"
    )
    add_halves(export, "is written", "strength, linear and signed, multiplied into the weights")
    export.add_argument(
        "--dtype",
        default="float32",
        choices=DTYPES,
        help="of the numbers in the file; float16 and bfloat16 make it half as large",
    )
    export.add_argument(
        "--format",
        default="sgm",
        choices=FORMATS,
        help="sgm: ComfyUI and A1111; kohya: A1111 and others; peft: a folder for PEFT; diffusers",
    )
    export.add_argument(
        "--output_path",
        required=True,
        type=not_empty,
        metavar="PATH",
        help="file (.safetensors) or folder; nothing is overwritten",
    )
    for command in (generate, export):
        command._negative_number_matcher = re.compile(
            r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE
        )  # argparse takes -1e-3 for an option
    args = with_settings_of_a_picture(parser, generate)
    if (
        args.command in ("train", "generate")
        and None not in (args.dtype, args.mixed_precision)
        and args.dtype != MIXED_PRECISION[args.mixed_precision]
    ):
        parser.error(
            f"--dtype {args.dtype} and --mixed_precision {args.mixed_precision} contradict each other; give one of them"
        )
    for half in HALVES if args.command in ("generate", "export") else ():
        if getattr(args, f"{half}_alpha") != 1 and not getattr(args, f"{half}_B_LoRA"):
            parser.error(
                f"--{half}_alpha is the strength of a half that is not there; name it with --{half}_B_LoRA"
            )
    for option, of in (
        (("strength", "image"), ("controlnet_conditioning_scale", "controlnet"))
        if args.command == "generate"
        else ()
    ):
        if getattr(args, option) != generate.get_default(option) and not getattr(args, of):
            parser.error(f"--{option} changes nothing without --{of}")
    return args


def add_halves(command, what, alpha):
    """The options that name the B-LoRAs of each half, one or several to be mixed, and their strength."""
    halves = command.add_argument_group("halves")
    for half in HALVES:
        halves.add_argument(
            f"--{half}_B_LoRA",
            nargs="+",
            type=not_empty,
            metavar="SOURCE",
            help=f"file, folder or hub id whose {half} half {what}; several are mixed",
        )
        halves.add_argument(f"--{half}_alpha", type=float, default=1.0, metavar="X", help=alpha)
        halves.add_argument(
            f"--{half}_weights",
            nargs="+",
            type=float,
            metavar="X",
            help=f"of each {half} half where there are several, linear and signed; by default 1 each",
        )


def add_train(train):
    """The options of `train`."""
    from blora_nb.cli.options import add_settings
    from blora_nb.cli.others_flags import add_others_flags

    files = train.add_argument_group("pictures in, weights out")
    files.add_argument(
        "--instance_data_dir",
        required=True,
        type=not_empty,
        metavar="PATH",
        help="a picture, or a folder of pictures (one B-LoRA is trained from each)",
    )
    files.add_argument(
        "--output_dir",
        required=True,
        type=not_empty,
        metavar="FOLDER",
        help="for the weights and checkpoints, made if needed; nothing in it is overwritten",
    )
    files.add_argument(
        "--together",
        action="store_true",
        help='one B-LoRA from all pictures of the folder, as the original does; for recontextualization with --instance_prompt "A [v] dog"',
    )
    files.add_argument(
        "--captions_file",
        type=not_empty,
        metavar="FILE",
        help='a prompt for each picture of --together: lines like {"file_name": "dog1.jpg", "text": "A [v] dog in the snow"}',
    )
    files.add_argument(
        "--content_B_LoRA",
        type=not_empty,
        metavar="PATH",
        help="keep this B-LoRA's content half and train a fresh style half beside it, the second step of ConsisLoRA's style training (arXiv 2503.10614); for a folder of pictures: the folder their first training left",
    )
    files.add_argument(
        "--resume_from_checkpoint",
        type=not_empty,
        metavar="WHICH",
        help='"latest" keeps what is finished and goes on where a run was stopped (on a CPU bit for bit); or a checkpoint by name',
    )
    files.add_argument(
        "--validation_prompt",
        metavar="TEXT",
        help="make pictures of this prompt at each checkpoint, always with the same seeds, to choose a checkpoint by",
    )
    files.add_argument(
        "--num_validation_images", type=count, default=4, metavar="N", help="how many (default: 4)"
    )
    add_settings(train)
    add_others_flags(train)


def add_generate(generate):
    """The options of `generate`."""
    suited = "by default what suits the base model"
    picture = generate.add_argument_group("pictures")
    picture.add_argument("--prompt", metavar="TEXT", help="needed unless --like is given")
    picture.add_argument(
        "--output_path",
        required=True,
        type=not_empty,
        metavar="FOLDER",
        help="for the pictures, made if needed; nothing in it is overwritten",
    )
    picture.add_argument(
        "--like",
        type=not_empty,
        metavar="PICTURE.png",
        help="make a picture of this command again: its settings are the defaults, what is typed takes precedence",
    )
    picture.add_argument(
        "--num_images_per_prompt",
        type=count,
        metavar="N",
        help="how many pictures, with the seeds 0, 1, 2, …; by default 4",
    )
    picture.add_argument("--seeds", type=seed, nargs="+", metavar="N", help="these seeds instead")
    picture.add_argument("--negative_prompt", metavar="TEXT", help="what is not wanted")
    picture.add_argument("--height", type=count, metavar="N", help=f"in pixels; {suited}")
    picture.add_argument("--width", type=count, metavar="N", help=f"in pixels; {suited}")
    add_halves(generate, "is used", "strength, linear and signed; 0 is off")
    sampling = generate.add_argument_group("sampling")
    sampling.add_argument("--num_inference_steps", type=count, metavar="N", help=suited)
    sampling.add_argument(
        "--guidance_scale",
        type=float,
        metavar="X",
        help=f"how closely the prompt is followed; {suited}",
    )
    sampling.add_argument(
        "--scheduler", choices=tuple(SCHEDULERS), help="another sampler than the base model's own"
    )
    sampling.add_argument(
        "--few_step_lora",
        type=not_empty,
        metavar="SOURCE",
        help="id or file of an LCM or Lightning LoRA of the base, merged into it; then 4 to 8 steps and a guidance scale of 1 to 2 are enough",
    )
    sampling.add_argument(
        "--asymmetric_guidance",
        action="store_true",
        help="no LoRA in the unconditional pass, so that guidance pushes towards what the LoRA adds (CRAFT-LoRA, arXiv 2602.18936)",
    )
    sampling.add_argument(
        "--content_until",
        type=float,
        default=1.0,
        metavar="X",
        help="use the content half only up to this share of the steps",
    )
    sampling.add_argument(
        "--style_from",
        type=float,
        default=0.0,
        metavar="X",
        help="use the style half only from this share of the steps on",
    )
    layout = generate.add_argument_group("keep a layout")
    layout.add_argument(
        "--image",
        type=not_empty,
        metavar="PICTURE",
        help="start from this picture instead of pure noise (img2img)",
    )
    layout.add_argument(
        "--strength",
        type=float,
        default=0.6,
        metavar="X",
        help="with --image: share of the steps that are made; the lower, the more of the picture stays",
    )
    layout.add_argument(
        "--controlnet",
        type=not_empty,
        metavar="SOURCE",
        help='follow a drawn layout: "tiny" for the teaching model, or the id or folder of a ControlNet for SDXL',
    )
    drawn = layout.add_mutually_exclusive_group()
    drawn.add_argument(
        "--outline_of",
        type=not_empty,
        metavar="PICTURE",
        help="the layout: the outlines of this picture, as the teaching model's ControlNet wants them",
    )
    drawn.add_argument(
        "--control_image",
        type=not_empty,
        metavar="PICTURE",
        help="the layout as this ControlNet wants it (edges, depth, …; its card says which)",
    )
    layout.add_argument(
        "--controlnet_conditioning_scale",
        type=float,
        default=1.0,
        metavar="X",
        help="how closely the layout is followed",
    )
    memory = generate.add_argument_group("memory and speed")
    memory.add_argument(
        "--batch_size",
        type=count,
        metavar="N",
        help="pictures made at once; by default one on a CPU, as many as fit on a GPU",
    )
    memory.add_argument(
        "--vae_tiling",
        action="store_true",
        help="decode large pictures piece by piece, to save memory",
    )


def add_base_model(command):
    """The options that say which model, where, and in which numbers."""
    base = command.add_argument_group("base model")
    base.add_argument(
        "--pretrained_model_name_or_path",
        type=not_empty,
        metavar="SOURCE",
        help='"tiny" (the teaching model), "sdxl", or an SDXL-shaped id or folder; by default what the environment variable BLORA_BASE names, else tiny',
    )
    base.add_argument(
        "--revision",
        type=not_empty,
        metavar="NAME",
        help="branch, tag or commit of a base model on the Hugging Face hub",
    )
    base.add_argument(
        "--variant",
        type=not_empty,
        metavar="NAME",
        help='which files of the base: "fp16" for those that end in .fp16.safetensors; by default that for sdxl',
    )
    base.add_argument(
        "--cache_dir", type=not_empty, metavar="FOLDER", help="for downloads from the hub"
    )
    base.add_argument(
        "--pretrained_vae_model_name_or_path",
        type=not_empty,
        metavar="SOURCE",
        help="another VAE; by default SDXL in float16 gets one that does not overflow",
    )
    base.add_argument(
        "--device",
        type=not_empty,
        metavar="NAME",
        help="cuda, mps or cpu; by default the best that works",
    )
    base.add_argument(
        "--dtype",
        choices=DTYPES,
        help="dtype of the frozen base; by default what the device computes best in (the LoRA is always float32)",
    )
    base.add_argument(
        "--mixed_precision", choices=tuple(MIXED_PRECISION), help="the original's name for --dtype"
    )
    base.add_argument(
        "--quantization",
        choices=("none", *QUANTIZATIONS),
        help="keep the frozen U-Net in 8 or 4 bits (bitsandbytes); by default 4 bits (nf4) where memory asks for it",
    )


def with_settings_of_a_picture(parser, generate):
    """The arguments as typed; those of `generate` that are not typed come from the picture named with --like."""
    args = parser.parse_args()
    args.then = {}
    if args.command == "generate" and args.like:
        from blora_nb.files.images import read_settings

        then = read_settings(args.like)
        typed_halves = {half for half in HALVES if getattr(args, f"{half}_B_LoRA")}
        for action in generate._actions:
            value, half = then.get(action.dest), action.dest.partition("_")[0]
            if (
                value is None
                or action.dest in ("help", "like", "output_path", "seeds")
                or (action.dest.endswith("_weights") and half in typed_halves)
                or (action.dest == "dtype" and args.mixed_precision)
            ):
                continue
            if action.choices and value not in action.choices:
                raise ValueError(
                    f"The picture names {shown(value)} as its {action.dest}, which is none of {', '.join(action.choices)}. It was not written by this command."
                )
            # as text, so that argparse checks it like what is typed; a switch has no text
            generate.set_defaults(
                **{
                    action.dest: checked_values(generate, action, value)
                    if action.nargs == "+"
                    else value is True
                    if action.nargs == 0
                    else str(value)
                }
            )
        batch = then.get("batch_seeds") or [then.get("seed", 0)]
        if not isinstance(batch, list):
            raise ValueError(
                f"The picture names {shown(batch)} as the seeds of its batch, which is no list. It was not written by this command."
            )
        if args.num_images_per_prompt is None:
            generate.set_defaults(
                seeds=[whole_number(seed) for seed in batch], batch_size=len(batch)
            )
        args = parser.parse_args()
        args.then = then
        for what, flags in (
            ("image", ("image",)),
            ("control_image", ("control_image", "outline_of")),
            ("controlnet", ("controlnet",)),
        ):
            if (f"{what}_sha256" in then or what in then) and not any(
                getattr(args, flag) for flag in flags
            ):
                generate.error(
                    f"the {what} of {args.like} was not in a file when the picture was made; name it with --{flags[-1]}"
                )
        for half in HALVES:
            if f"{half}_fingerprint" in then and not getattr(args, f"{half}_B_LoRA"):
                generate.error(
                    f"the {half} half of {args.like} was not in a file when the picture was made; name it with --{half}_B_LoRA (fingerprint {shown(then[f'{half}_fingerprint'], 12)})"
                )
    if args.command == "generate" and args.prompt is None:
        generate.error("name a --prompt, or a picture with --like")
    if args.command == "generate" and args.seeds is None:
        args.seeds = range(args.num_images_per_prompt or 4)
    return args


def checked_values(command, action, value):
    """A list out of a picture's settings, or the one thing it is, each part checked like what is typed."""
    try:
        return [
            command._get_value(action, str(part))
            for part in (value if isinstance(value, list) else [value])
        ]
    except argparse.ArgumentError as error:
        raise ValueError(
            f"The settings of the picture: {error}. It was not written by this command."
        ) from None


def whole_number(value):
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(
            f"The picture names {value!r} as its seed, which is no whole number. It was not written by this command."
        )
    try:
        return seed(str(value))
    except argparse.ArgumentTypeError as error:
        raise ValueError(
            f"The picture's seed {error}. It was not written by this command."
        ) from None


def add_settings(parser, settings=TrainingSettings):
    """One option for each field of a settings class, in groups. What is not given stays None and leaves the default."""
    groups = {}
    for f in fields(settings):
        title = f.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        group = groups[title]
        default = "what suits the base model" if f.name in SUITED else f.default
        text = f.metadata["help"] + (
            "" if default is None or default is False else f" (default: {default})"
        )
        if value_type(f) is bool:
            group.add_argument(f"--{f.name}", action="store_true", default=None, help=text)
        elif "bare" in f.metadata:
            group.add_argument(
                f"--{f.name}",
                nargs="?",
                const=f.metadata["bare"],
                choices=f.metadata["choices"],
                help=text,
            )
        elif "choices" in f.metadata:
            group.add_argument(f"--{f.name}", choices=f.metadata["choices"], help=text)
        else:
            group.add_argument(
                f"--{f.name}",
                type=value_type(f),
                metavar={int: "N", float: "X", str: "TEXT"}[value_type(f)],
                help=text,
            )
    return groups


def given(args, settings=TrainingSettings):
    """The settings among parsed arguments, as changes for `TrainingSettings.for_pipeline`."""
    return {f.name: getattr(args, f.name) for f in fields(settings)}
