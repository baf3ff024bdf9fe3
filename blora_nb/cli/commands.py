"""The command line: check, examples, train, generate, inspect, export.

PyTorch is imported by the command that needs it, not here: so `--help` answers at once, and Ctrl-C
is answered even while PyTorch is being imported.
"""

import sys
import warnings
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline


def main() -> int:
    """Run the command that was typed; returns its exit code: 0, 1 after an error, 130 after Ctrl-C.

    Raises:
        SystemExit: after --help (code 0), and where the options are wrong (code 2).
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # file names need not be UTF-8
    try:
        with warnings_as_lines():
            from blora_nb.cli.parser import parse

            args = parse()
            return COMMANDS[args.command](args) or 0
    # our own errors are among these, each with its remedy
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"stopped; what is listed as written above is complete. {stop}", file=sys.stderr)
        return 130


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Inside, a warning is one line; one of ours is printed once, even if it is given many times.

    The same prompt, for example, may be used for many pictures.
    """
    printed: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *_: Any) -> None:
        from tqdm import tqdm

        ours = category.__module__.startswith("blora_nb")
        line = f"note: {message}" if ours else f"{category.__name__}: {message}"
        if not (ours and line in printed):
            printed.add(line)
            # on a line of its own, also beside a progress bar
            tqdm.write(line, file=sys.stderr)

    before = warnings.showwarning
    warnings.showwarning = show  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.showwarning = before


def check(args: Namespace) -> int:
    from blora_nb.cli.check import print_check

    return 0 if print_check() else 1


def train(args: Namespace) -> None:
    from blora_nb.cli.finished import check_finished, check_output
    from blora_nb.cli.jobs import MANIFEST, plan
    from blora_nb.cli.many_pictures import make_class_pictures, train_all, write_manifest
    from blora_nb.cli.options import VALIDATION_IMAGES, given
    from blora_nb.defaults import TEACHING_MODEL_LEARNS, is_teaching_model
    from blora_nb.evaluation.validation import validation_pictures
    from blora_nb.guards.bases import check_base
    from blora_nb.running.distributed import join_processes, split_jobs
    from blora_nb.running.memory import memory_report
    from blora_nb.settings import TrainingSettings
    from blora_nb.training import check_start

    sources = (args.instance_data_dir, args.output_dir)
    jobs = plan(*sources, args.together, args.captions_file, args.content_B_LoRA)
    device, is_main, gather = join_processes(args.device)
    mine = split_jobs(lambda: check_output(jobs, args.resume_from_checkpoint))
    finished = [job for job in jobs if job.finished]  # no process has begun yet
    pipe = load(args, device)
    check_base(pipe)
    several = any(len(job.pictures) > 1 for job in jobs)
    settings = TrainingSettings.for_pipeline(pipe, several, **given(args))
    check_start(pipe, settings, several)
    if is_main:
        one_prompt = not any(job.has_captions for job in jobs)
        print(memory_report(pipe, settings, one_prompt=one_prompt), flush=True)
        if is_teaching_model(pipe):
            print(TEACHING_MODEL_LEARNS, flush=True)
        if settings.with_prior_preservation:
            make_class_pictures(pipe, settings)
    gather([])  # the other processes wait for the class pictures
    validate = None
    if args.validation_prompt:
        count = args.num_validation_images or VALIDATION_IMAGES
        validate = validation_pictures(pipe, args.validation_prompt, count)
    failed: list = []
    try:
        if is_main:
            failed += check_finished(pipe, finished, settings)
        resume = args.resume_from_checkpoint
        train_all(pipe, mine, settings, resume, validate, is_main, failed)
        failed = gather(failed)
        if is_main and validate:
            write_sheets([job.folder for job in jobs if job.finished])
    finally:
        if is_main and (len(jobs) > 1 or (Path(args.output_dir) / MANIFEST).exists()):
            print("written:", write_manifest(jobs, args.output_dir, failed))
    if is_main and failed:
        raise RuntimeError(
            f"{len(failed)} of {len(jobs)} B-LoRAs could not be trained; the reasons are above."
        )


def generate(args: Namespace) -> None:
    from tqdm import tqdm

    from blora_nb.defaults import native_resolution
    from blora_nb.errors import shown
    from blora_nb.files.paths import writable_folder
    from blora_nb.files.saved_images import save_picture
    from blora_nb.generation import generate_each
    from blora_nb.guards.bases import check_base
    from blora_nb.pipeline import merge_few_step_lora, tile_vae, use_scheduler
    from blora_nb.running.records import differences
    from blora_nb.sampling import Sampling
    from blora_nb.structure import outline

    content, style = read_halves(args)
    writable_folder(args.output_path)
    base = args.pretrained_model_name_or_path
    if base and base == args.record.get("pretrained_model_name_or_path") not in ("tiny", "sdxl"):
        print(f"note: the base model is that of the picture: {shown(base, 300)}", file=sys.stderr)
    pipe = load(args)
    check_base(pipe)
    if args.few_step_lora:
        merge_few_step_lora(pipe, args.few_step_lora)
    # a picture that was made with such a LoRA says itself which scheduler it had
    suits_few_steps = args.few_step_lora and not args.record.get("few_step_lora")
    if args.scheduler or suits_few_steps:
        use_scheduler(pipe, args.scheduler or "lcm")
    if args.vae_tiling:
        tile_vae(pipe)
    control_image = args.control_image
    if args.outline_of:
        native = native_resolution(pipe)
        control_image = outline(args.outline_of, (args.width or native, args.height or native))
    # a picture of a batch is drawn together with the others, and only it is written
    wanted = args.record.get("seed") if args.seeds_of_picture else None
    wanted = wanted if wanted in args.seeds else None
    names = {field.name for field in fields(Sampling)} - {"control_image"}
    names |= {"negative_prompt", "content_alpha", "style_alpha"}
    sampling = {name: getattr(args, name) for name in names}
    sampling |= {"seeds": args.seeds, "control_image": control_image}
    # closed before anything else is printed, and its progress bar with it
    with closing(generate_each(pipe, args.prompt, content, style, **sampling)) as drawn:
        for number, picture in enumerate(drawn):
            made_with = picture.info["blora_nb"]
            if args.like and number == 0:
                for line in differences(args.like, made_with):
                    tqdm.write(f"note: {line}", file=sys.stderr)
            if wanted in (None, made_with["seed"]):
                tqdm.write(f"written: {save_picture(picture, args.output_path)}")
            if wanted == made_with["seed"]:
                break


def inspect(args: Namespace) -> None:
    from blora_nb.files.descriptions import describe_in_full
    from blora_nb.lora import BLoRA

    print(describe_in_full(BLoRA.load(args.source), args.source))


def export(args: Namespace) -> None:
    import torch

    from blora_nb.lora import combine

    content, style = read_halves(args)
    blora = combine(content, style, args.content_alpha, args.style_alpha)
    print("written:", blora.save(args.output_path, args.format, getattr(torch, args.dtype)))


def examples(args: Namespace) -> None:
    from blora_nb.course.examples import example_names, write_examples

    written = write_examples(args.folder)
    for path in written:
        print("written:", path)
    if len(written) < len(example_names()):
        print(f"the others were in {args.folder} already, and stay as they are")


COMMANDS = {
    "check": check,
    "examples": examples,
    "train": train,
    "generate": generate,
    "inspect": inspect,
    "export": export,
}


def load(args: Namespace, device: str | None = None) -> "StableDiffusionXLPipeline":
    """The pipeline that the options name."""
    import torch

    from blora_nb.cli.options import MIXED_PRECISION
    from blora_nb.pipeline import load_pipeline

    dtype = args.dtype or MIXED_PRECISION.get(args.mixed_precision)
    return load_pipeline(
        args.pretrained_model_name_or_path,
        device or args.device,
        getattr(torch, dtype) if dtype else None,
        args.quantization,
        args.pretrained_vae_model_name_or_path,
        revision=args.revision,
        variant=args.variant,
        cache_dir=args.cache_dir,
    )


def read_halves(args: Namespace) -> list:
    """The content and the style that the options name, as `generate` takes them; reads every file.

    Raises:
        BLoRAError: a file is no B-LoRA. ValueError: not as many weights as B-LoRAs.
    """
    from blora_nb.blocks import HALVES
    from blora_nb.lora import BLoRA

    halves: list = []
    for half in HALVES:
        sources = getattr(args, f"{half}_B_LoRA") or []
        weights = getattr(args, f"{half}_weights")
        if weights and len(weights) != len(sources):
            raise ValueError(
                f"--{half}_weights needs --{half}_B_LoRA with as many files; "
                f"there are {len(weights)} weights for {len(sources)} B-LoRAs."
            )
        bloras = [BLoRA.load(source) for source in sources]
        if weights or len(bloras) > 1:
            halves.append(list(zip(bloras, weights or [1.0] * len(bloras))))
        else:
            halves.append(bloras[0] if bloras else None)
    return halves


def write_sheets(folders: list) -> None:
    """In each folder of a training, one picture of all validation pictures, if there is none."""
    from blora_nb.evaluation.validation import SHEET
    from blora_nb.figures.checkpoints import write_validation_sheet

    for folder in folders:
        if (folder / SHEET).exists():
            continue
        try:
            sheet = write_validation_sheet(folder)
        except (ImportError, OSError, ValueError) as error:
            print(f"note: no sheet of validation pictures: {error}", file=sys.stderr)
        else:
            print("written:", sheet, "(a row for each checkpoint; use one by its folder)")
