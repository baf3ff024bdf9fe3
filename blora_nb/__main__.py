"""python -m blora_nb check | train | generate | inspect | export"""

import sys
import warnings


def halves_of(args):
    """The content and the style that the options name, as `generate` takes them; every file is read."""
    from blora_nb.blocks import HALVES
    from blora_nb.lora import BLoRA

    given = []
    for half in HALVES:
        sources, weights = getattr(args, f"{half}_B_LoRA") or [], getattr(args, f"{half}_weights")
        if weights and len(weights) != len(sources):
            raise ValueError(
                f"--{half}_weights needs --{half}_B_LoRA with as many files; there are {len(weights)} weights for {len(sources)} B-LoRAs."
            )
        read = [BLoRA.load(source) for source in sources]
        given.append(
            list(zip(read, weights or [1.0] * len(read)))
            if weights or len(read) > 1
            else (read[0] if read else None)
        )
    return given


def load(args, device=None):
    """The pipeline that the options name."""
    import torch

    from blora_nb.cli.options import MIXED_PRECISION
    from blora_nb.pipeline import load_pipeline

    dtype = args.dtype or MIXED_PRECISION.get(args.mixed_precision)
    return load_pipeline(
        args.pretrained_model_name_or_path,
        device or args.device,
        dtype and getattr(torch, dtype),
        args.quantization,
        args.pretrained_vae_model_name_or_path,
        revision=args.revision,
        variant=args.variant,
        cache_dir=args.cache_dir,
    )


def run_train(args):
    from blora_nb.cli.many_pictures import (
        check_finished,
        check_output,
        make_class_pictures,
        plan,
        train_all,
        write_manifest,
    )
    from blora_nb.cli.options import given
    from blora_nb.figures import write_validation_sheet
    from blora_nb.guards.bases import check_base
    from blora_nb.running.distributed import launched, share
    from blora_nb.running.memory import report
    from blora_nb.settings import TrainingSettings
    from blora_nb.validation import SHEET, validation_pictures

    jobs = plan(
        args.instance_data_dir,
        args.output_dir,
        args.together,
        args.captions_file,
        args.content_B_LoRA,
    )
    device, main, gather = launched(args.device)
    mine = share(lambda: check_output(jobs, args.resume_from_checkpoint))
    finished = [job for job in jobs if job.finished]  # no process has begun yet
    pipe = load(args, device)
    check_base(pipe)
    settings = TrainingSettings.for_pipeline(pipe, **given(args))
    if main:
        print(
            report(
                pipe,
                settings,
                one_prompt=not any(caption for job in jobs for caption in job.pictures.values()),
            ),
            flush=True,
        )
    if settings.with_prior_preservation and main:
        make_class_pictures(pipe, settings)
    gather([])  # the other processes wait for the class pictures
    validate = args.validation_prompt and validation_pictures(
        pipe, args.validation_prompt, args.num_validation_images
    )
    failed = []
    try:
        if main:
            failed += check_finished(pipe, finished, settings)
        failed += gather(
            train_all(pipe, mine, settings, args.resume_from_checkpoint, validate, progress=main)
        )
        for job in jobs if validate and main else ():
            if job.finished and not (job.folder / SHEET).exists():
                try:
                    print(
                        "written:",
                        write_validation_sheet(job.folder),
                        "(a row for each checkpoint; use one by its folder)",
                    )
                except (OSError, ValueError) as error:
                    print(f"note: no sheet of validation pictures: {error}", file=sys.stderr)
    finally:
        if main and len(jobs) > 1:
            print("written:", write_manifest(jobs, args.output_dir, failed))
    if failed and main:
        raise RuntimeError(
            f"{len(failed)} of {len(jobs)} B-LoRAs could not be trained; why stands above."
        )


def run_generate(args):
    from blora_nb.defaults import native_resolution
    from blora_nb.files.images import save_picture, writable_folder
    from blora_nb.generation import generate_each
    from blora_nb.guards.bases import check_base
    from blora_nb.pipeline import merge_few_step_lora, tile_vae, use_scheduler
    from blora_nb.running.records import differences
    from blora_nb.structure import outline

    content, style = halves_of(args)
    writable_folder(args.output_path)
    pipe = load(args)
    check_base(pipe)
    if args.few_step_lora:
        merge_few_step_lora(pipe, args.few_step_lora)
    if args.scheduler or args.few_step_lora:
        use_scheduler(pipe, args.scheduler or "lcm")
    if args.vae_tiling:
        tile_vae(pipe)
    control_image = (
        outline(
            args.outline_of,
            min(args.height or native_resolution(pipe), args.width or native_resolution(pipe)),
        )
        if args.outline_of
        else args.control_image
    )
    names = (
        "image",
        "strength",
        "controlnet",
        "controlnet_conditioning_scale",
        "num_inference_steps",
        "guidance_scale",
        "negative_prompt",
        "height",
        "width",
        "batch_size",
        "asymmetric_guidance",
        "content_until",
        "style_from",
        "content_alpha",
        "style_alpha",
    )
    only = (
        args.then.get("seed") if args.seeds == args.then.get("batch_seeds") else None
    )  # the others of its batch are drawn with it
    for number, picture in enumerate(
        generate_each(
            pipe,
            args.prompt,
            content,
            style,
            seeds=args.seeds,
            control_image=control_image,
            **{name: getattr(args, name) for name in names},
        )
    ):
        made_with = picture.info["blora_nb"]
        for line in differences(args.like, made_with) if args.like and number == 0 else ():
            print(f"note: {line}", file=sys.stderr)
        if only is None or made_with["seed"] == only:
            print("written:", save_picture(picture, args.output_path))
            if only is not None:
                break


def run_inspect(args):
    from blora_nb.files.cards import inspect
    from blora_nb.lora import BLoRA

    print(inspect(BLoRA.load(args.source), args.source))


def run_export(args):
    import torch

    from blora_nb.lora import combine

    blora = combine(*halves_of(args), args.content_alpha, args.style_alpha)
    print("written:", blora.save(args.output_path, args.format, getattr(torch, args.dtype)))


def main():
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # file names need not be UTF-8
    told: set[str] = set()

    def line_once(message, category, *_):
        """A warning as one line; nothing the second time, as of a prompt for many pictures."""
        ours = category.__module__.startswith("blora_nb")
        line = f"{'note' if ours else category.__name__}: {message}\n"
        if ours and line in told:
            return ""
        told.add(line)
        return line

    warnings.formatwarning = line_once
    try:
        from blora_nb.cli.options import parse

        args = parse()
        if args.command == "check":
            from blora_nb.cli.check import print_check

            return 0 if print_check() else 1
        {
            "train": run_train,
            "generate": run_generate,
            "inspect": run_inspect,
            "export": run_export,
        }[args.command](args)
    except (
        ValueError,
        OSError,
        RuntimeError,
        MemoryError,
    ) as error:  # our own errors are among these, each with its remedy
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"stopped; what is listed as written above is complete. {stop}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
