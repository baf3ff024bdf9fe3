"""python -m blora_nb check | train | generate | inspect | export"""

import argparse
import sys
import warnings
from pathlib import Path

from .formats import FORMATS


def count(text):
    """A whole number greater than 0, for argparse."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def parse():
    parser = argparse.ArgumentParser(prog="python -m blora_nb", description="Train and use B-LoRAs from the command line.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="show what is installed and what it will run on")

    train = commands.add_parser("train", help="train one B-LoRA from each picture", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    train.add_argument("--instance_data_dir", required=True, help="a picture, or a folder of pictures (one B-LoRA is trained from each)")
    train.add_argument("--output_dir", required=True, help="folder for the weights, made if needed; nothing in it is overwritten")
    train.add_argument("--instance_prompt", default="A [v]", help="the prompt that is to mean the picture")
    suited = "by default what suits the base model"
    train.add_argument("--resolution", type=count, help=f"side of the square the picture is cropped to, in pixels; {suited}")
    train.add_argument("--rank", type=count, help=f"rank of the LoRA matrices; {suited}")
    train.add_argument("--max_train_steps", type=count, help=f"training steps; {suited}")
    train.add_argument("--train_batch_size", type=count, help=f"noisy versions of the picture in a step; {suited}")
    train.add_argument("--learning_rate", type=float, help=suited)
    train.add_argument("--seed", type=int, default=0, help="of the LoRA's first values, the noise and the timesteps")

    generate = commands.add_parser("generate", help="make pictures with one or two B-LoRA halves", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    generate.add_argument("--prompt", help="needed unless --like is given")
    generate.add_argument("--like", metavar="PICTURE.png", help="make a picture of this command again: its settings are the defaults, what is typed goes before them")
    generate.add_argument("--output_path", required=True, help="folder for the pictures, made if needed; nothing in it is overwritten")
    generate.add_argument("--content_B_LoRA", help="file or folder whose content half is used")
    generate.add_argument("--style_B_LoRA", help="file or folder whose style half is used")
    generate.add_argument("--content_alpha", type=float, default=1.0, help="strength of the content half, linear and signed")
    generate.add_argument("--style_alpha", type=float, default=1.0, help="strength of the style half, linear and signed")
    generate.add_argument("--num_images_per_prompt", type=count, default=4, help="how many pictures, with the seeds 0, 1, 2, …")
    generate.add_argument("--seeds", type=int, nargs="+", help="these seeds instead")
    generate.add_argument("--num_inference_steps", type=count, help=suited)
    generate.add_argument("--guidance_scale", type=float, help=suited)
    generate.add_argument("--negative_prompt")
    for command in (train, generate):
        command.add_argument("--pretrained_model_name_or_path", default="tiny", help='"tiny" (the teaching model), "sdxl", or an SDXL-shaped id or folder')
        command.add_argument("--device", help="cuda, mps or cpu; by default the best that works")

    inspect = commands.add_parser("inspect", help="say what a B-LoRA file is and how to use it")
    inspect.add_argument("source", help="file, folder or id on the Hugging Face hub")
    export = commands.add_parser("export", help="write a B-LoRA, one half, or a mixture for another program", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for half in ("content", "style"):
        export.add_argument(f"--{half}_B_LoRA", help=f"file, folder or hub id whose {half} half is written; without it there is none in the file")
        export.add_argument(f"--{half}_alpha", type=float, default=1.0, help="strength, linear and signed, multiplied into the weights")
    export.add_argument("--format", default="sgm", choices=FORMATS, help="sgm: ComfyUI and A1111; kohya: A1111 and others; peft: a folder for PEFT; diffusers")
    export.add_argument("--output_path", required=True, help="file (.safetensors) or folder; nothing is overwritten")
    return with_settings_of_a_picture(parser, generate)


def with_settings_of_a_picture(parser, generate):
    """The arguments as typed; those of `generate` that are not typed come from the picture named with --like."""
    args = parser.parse_args()
    if args.command == "generate" and args.like:
        from .images import read_settings

        settings = read_settings(args.like)
        for action in generate._actions:
            value = settings.get(action.dest)
            if value is not None and action.dest not in ("help", "like", "output_path", "seeds"):
                # as text, so that argparse checks it like what is typed; a switch has no text
                generate.set_defaults(**{action.dest: value is True if action.nargs == 0 else str(value)})
        generate.set_defaults(seeds=[whole_number(settings.get("seed", 0))])
        args = parser.parse_args()
    if args.command == "generate" and args.prompt is None:
        generate.error("name a --prompt, or a picture with --like")
    return args


def whole_number(value):
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"The picture names {value!r} as its seed, which is no whole number. It was not written by this command.")
    return value


def run_train(args):
    from .adapters import FILE_NAME
    from .images import find_images, read_image, writable_folder
    from .models import load_pipeline
    from .training import train

    pictures = [(path, read_image(path)) for path in find_images(args.instance_data_dir)]  # a broken picture shows before the work
    folders = [Path(args.output_dir) / path.stem if len(pictures) > 1 else Path(args.output_dir) for path, _ in pictures]
    if len(set(folders)) < len(folders):
        raise ValueError("Two pictures have the same name but for the ending; their B-LoRAs would get the same folder. Rename one.")
    for folder in folders:
        if (folder / FILE_NAME).exists():
            raise FileExistsError(f"{folder / FILE_NAME} exists already. Choose another --output_dir, or remove it first.")
        writable_folder(folder)
    pipe = load_pipeline(args.pretrained_model_name_or_path, args.device)
    names = ("instance_prompt", "resolution", "rank", "max_train_steps", "train_batch_size", "learning_rate", "seed")
    for (path, picture), folder in zip(pictures, folders):
        print(f"{path} -> {folder}")
        print("written:", train(pipe, picture, **{name: getattr(args, name) for name in names}).save(folder / FILE_NAME))


def run_generate(args):
    from .adapters import BLoRA
    from .cards import differences, picture_facts
    from .generation import generate
    from .images import free_path, safe_name, save_image, writable_folder
    from .models import defaults_for, load_pipeline

    content, style = (BLoRA.load(path) if path else None for path in (args.content_B_LoRA, args.style_B_LoRA))
    writable_folder(args.output_path)
    pipe = load_pipeline(args.pretrained_model_name_or_path, args.device)
    args.num_inference_steps = args.num_inference_steps or defaults_for(pipe).num_inference_steps
    args.guidance_scale = defaults_for(pipe).guidance_scale if args.guidance_scale is None else args.guidance_scale
    made_with = {**picture_facts(pipe, content, style), "device": pipe.device.type}
    for line in differences(args.like, made_with):
        print(f"note: {line}", file=sys.stderr)
    for seed in args.seeds if args.seeds is not None else range(args.num_images_per_prompt):
        picture = generate(pipe, args.prompt, content, style, args.content_alpha, args.style_alpha, seed, args.num_inference_steps, args.guidance_scale, args.negative_prompt)[0]  # fmt: skip
        settings = {name: value for name, value in vars(args).items() if name not in ("command", "like", "output_path", "seeds", "num_images_per_prompt")}
        path = free_path(args.output_path, f"{safe_name(args.prompt)}_seed{seed}", ".png")
        print("written:", save_image(picture, path, {**settings, **made_with, "seed": seed}))


def run_inspect(args):
    from .adapters import BLoRA
    from .cards import inspect

    print(inspect(BLoRA.load(args.source), args.source))


def run_export(args):
    from .adapters import combine

    blora = combine(args.content_B_LoRA, args.style_B_LoRA, args.content_alpha, args.style_alpha)
    print("written:", blora.save(args.output_path, args.format))


def main():
    warnings.formatwarning = lambda message, category, *_: f"{'note' if category.__module__.startswith('blora_nb') else category.__name__}: {message}\n"
    try:
        args = parse()
        if args.command == "check":
            from .runtime import print_check

            return 0 if print_check() else 1
        {"train": run_train, "generate": run_generate, "inspect": run_inspect, "export": run_export}[args.command](args)
    except (ValueError, OSError, RuntimeError) as error:  # our own errors are among these, each with its remedy
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; what is listed as written above is complete", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
