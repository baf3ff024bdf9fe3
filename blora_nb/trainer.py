"""Train a B-LoRA from beginning to end: pictures in, B-LoRA out, whatever happens in between.

The method itself is in `training`. Here its steps are taken one after another: what keeps a long training alive is in `watch` and
`checkpoints`, what makes it fit into a small GPU in `memory`, `execution` and `text_cache`, what makes it fast in
`lean_attention` and `lean_lora`.
"""

import hashlib
import json
import warnings
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError

from blora_nb.errors import ImageError, TrainingError
from blora_nb.files.images import (
    centre_square,
    find_images,
    free_path,
    read_with_remarks,
    remarks_on_square,
    tell,
)
from blora_nb.files.metadata import model_hash, training_metadata
from blora_nb.files.safe_files import FILE_NAME
from blora_nb.guards.bases import check_base
from blora_nb.guards.changed_pipelines import changes, check_unchanged, inner, uncompiled
from blora_nb.lora import applied, combine, mix, remove, tell_of_others
from blora_nb.registry import options_of, pipeline_lock
from blora_nb.running import checkpoints
from blora_nb.running.batches import Batches
from blora_nb.running.execution import all_back, compiled, gradient_checkpointing, offloaded
from blora_nb.running.lean_attention import lean_attention
from blora_nb.running.lean_lora import lean_lora
from blora_nb.running.memory import choose_checkpointing, free_memory, unet_can_stay
from blora_nb.running.out_of_memory import (
    explain_out_of_memory,
    is_out_of_memory,
    release_memory_on_oom,
    release_tensors,
)
from blora_nb.running.text_cache import cached_text
from blora_nb.running.watch import Report, Watch, stop_at_the_end_of_a_step
from blora_nb.settings import TrainingSettings, native_resolution
from blora_nb.training import (
    ADAPTER,
    attach_lora,
    attach_style_beside,
    collect,
    encode_image,
    make_optimizer,
    micro_conditioning,
    take_step,
)


def train(
    pipe,
    image,
    settings=None,
    progress=True,
    output_dir=None,
    resume_from_checkpoint=None,
    on_checkpoint=None,
    content=None,
    **changes,
):
    """Train one B-LoRA from one picture, or one from several.

    Args:
        pipe: from `load_pipeline`. Any LoRA on it is taken off; afterwards it is the plain model again.
        image: a path or PIL image of any size, of which the middle square is used; or a list of them; or a dict of
            paths to the prompt of each.
        settings: a `TrainingSettings`; by default those that suit the pipeline, with `changes` made to them
            (`rank=8`, `max_train_steps=300`, …; None leaves a setting as it is).
        progress: True for a progress bar with the loss, or a function called with (step, steps, loss).
        output_dir: folder for checkpoints; without it there are none. The B-LoRA itself is yours to save.
        resume_from_checkpoint: "latest" or a checkpoint's name: go on from there, on a CPU bit for bit.
        on_checkpoint: called with (pipe, folder) after each checkpoint, and again for the one that is gone on from, the unfinished
            B-LoRA being on the pipeline; it draws with `generation.sample` (`generate` would take that off).
        content: a B-LoRA of the same picture, or its file, whose content half is kept as it is: only a fresh style half is
            trained beside it (the two-step style training of ConsisLoRA, arXiv 2503.10614).

    Returns:
        A `BLoRA`; its `losses` lists the loss of each step.

    Raises:
        ImageError: the picture cannot be read. ValueError: a setting or argument makes no sense.
        FileExistsError: output_dir holds an earlier training, and going on with it was not asked for.
        CheckpointError: the one to go on from is broken or belongs to another training.
        TrainingError: the loss or gradient is no longer a number, or memory is short.
        KeyboardInterrupt: after Ctrl-C, at the end of the step and with a checkpoint written where there is an `output_dir`.
    """
    with pipeline_lock(pipe), uncompiled(pipe):
        check_unchanged(pipe, training=True)
        check_base(pipe)
        asked = {name: value for name, value in changes.items() if value is not None}
        if settings:
            settings = replace(settings, **asked)
        else:
            settings = TrainingSettings.for_pipeline(pipe, **asked)
        if output_dir is None and (resume_from_checkpoint or on_checkpoint):
            raise ValueError(
                "Checkpoints are in a folder: resume_from_checkpoint and on_checkpoint need an "
                "output_dir."
            )
        native = native_resolution(pipe)
        if not native / 2 <= settings.resolution <= 2 * native:
            warnings.warn(
                f"The base model draws {native} px and resolution is {settings.resolution}. "
                "TrainingSettings.for_pipeline(pipe, …) has the values that suit it.",
                stacklevel=2,
            )
        prompts = list(image.values()) if isinstance(image, dict) else None
        pictures = list(image) if isinstance(image, (list, tuple, dict)) else [image]
        if not pictures:
            raise ImageError("There is no picture to learn from: the list is empty.")
        checkpoint = prepare_output(output_dir, resume_from_checkpoint)
        content = content and mix("content", content)
        told = (progress, output_dir, on_checkpoint)
        moving = [pipe.vae, pipe.text_encoder, pipe.text_encoder_2]
        if not getattr(pipe.unet, "is_quantized", False):
            moving.append(pipe.unet)
        with all_back(*moving):
            try:
                return learn(pipe, pictures, prompts, settings, content, checkpoint, *told)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                release_tensors(error)
                written = checkpoints.checkpoints(output_dir) if output_dir else []
                last = next(reversed(written), None)
                why = explain_out_of_memory(pipe, settings, error, last)
                raise TrainingError(why) from None
            finally:
                remove(pipe)


def learn(
    pipe, pictures, prompts, settings, content, checkpoint, progress, output_dir, on_checkpoint
):
    """The B-LoRA of the pictures. A function of its own, so that nothing holds what it took on the device when the models come back."""
    squares = squares_of(pictures, settings)
    class_squares = squares_of(class_pictures(settings), settings)
    metadata = training_metadata(pipe, settings, pictures[0] if len(pictures) == 1 else None)
    if changed := changes(pipe):
        metadata["changes_of_the_base"] = json.dumps(changed)
    tell_of_others(pipe)
    learned = what_is_learned(pipe, squares, prompts, class_squares, content)
    metadata["learned"] = json.dumps(learned)
    with (
        offloaded(
            *([] if unet_can_stay(pipe, settings) else [pipe.unet]),
            pipe.text_encoder,
            pipe.text_encoder_2,
        ),
        release_memory_on_oom(),
    ):
        moments = encode_images(pipe, squares)
        prior = encode_images(pipe, class_squares) if class_squares else None
    del squares, class_squares
    remove(pipe)
    batches = batches_of(pipe, moments, settings, prompts, prior)
    parameters = (
        attach_style_beside(pipe, content, settings)
        if content
        else attach_lora(pipe.unet, settings.rank, settings.seed)
    )
    state = start_state(pipe.unet, parameters, settings, learned)
    if checkpoint:
        checkpoints.resume(checkpoint, state, settings)
    losses = fit(pipe, batches, state, settings, progress, output_dir, on_checkpoint)
    blora = collect(pipe.unet, settings)
    metadata = blora.metadata | metadata
    if content:
        blora, metadata["content_fingerprint"] = combine(content, blora), content.fingerprint
    blora.metadata, blora.losses = metadata, losses
    return blora


def run_steps(pipe, parameters, moments, settings, progress=True):
    """All steps on the latents of one picture, for any parameters: what `train` does between putting LoRA on and collecting it, without checkpoints. Returns the loss of each step.

    Args:
        parameters: from `training.attach_lora`. moments: from `training.encode_image`.
        progress: True for a progress bar with the loss, or a function called with (step, steps, loss).
    """
    return fit(
        pipe,
        batches_of(pipe, moments, settings),
        start_state(pipe.unet, parameters, settings),
        settings,
        progress,
    )


def fit(pipe, batches, state, settings, progress=True, output_dir=None, on_checkpoint=None):
    """The training loop: the steps from where `state` is to `settings.max_train_steps`. Returns the loss of each.

    Args:
        batches: a `Batches`. state: a `TrainingState`, fresh or resumed. The others: see `train`.
    """
    from diffusers import DDPMScheduler

    steps, batch_size = settings.max_train_steps, batches.size * (2 if batches.prior else 1)
    time_ids = micro_conditioning(
        settings.resolution, batch_size, pipe.device, batches.prompt_embeds.dtype
    )
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    with ExitStack() as stack:
        models_back = stack.enter_context(
            offloaded(pipe.vae, pipe.text_encoder, pipe.text_encoder_2)
        )
        text_back = stack.enter_context(
            cached_text(
                pipe.unet,
                batches.prompt_embeds[:1].expand(batches.size, -1, -1),
                batches.one_prompt,
            )
        )
        stack.enter_context(
            gradient_checkpointing(
                pipe.unet, choose_checkpointing(pipe, settings, free_memory(pipe.unet.device))
            )
        )
        stack.enter_context(lean_attention(pipe.unet))
        pefts_own = stack.enter_context(lean_lora(pipe.unet))
        stack.enter_context(compiled(pipe.unet, settings.compile))
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings(
            "ignore", "Detected call of `lr_scheduler"
        )  # in float16 the first steps may be left out while the scale adapts
        stop = stack.enter_context(stop_at_the_end_of_a_step())
        report = stack.enter_context(
            Report(
                Watch(
                    list(state.parameters.values()),
                    state.losses,
                    settings.learning_rate,
                    state.scaler.is_enabled(),
                ),
                steps,
                progress,
            )
        )
        stack.enter_context(release_memory_on_oom())

        def checkpoint():
            report.look()
            path = try_checkpoint(pipe.unet, state, settings, output_dir)
            if path and not stop.asked:
                show(path)
            return path

        def show(path):
            if not on_checkpoint:
                return
            try:
                with models_back(), text_back(), pefts_own():
                    on_checkpoint(pipe, path)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                release_tensors(error)
                warnings.warn(
                    f"There was no room for what is made at checkpoints ({str(error).splitlines()[0]}). {path} is complete, and the training goes on.",
                    stacklevel=2,
                )
            if ADAPTER not in applied(pipe):
                raise TrainingError(
                    f"The function called at checkpoints took the B-LoRA in training off the pipeline. Let it draw with generation.sample instead of generate. {path} is complete."
                )

        try:
            if state.resumed_from:
                show(state.resumed_from)  # what was made there may have been interrupted
            for step in range(state.step + 1, steps + 1):
                if step == settings.x0_loss_from:
                    report.look()
                report.watch.judged = settings.x0_loss_from is None or step < settings.x0_loss_from
                known = report.watch.saw(
                    *take_step(pipe, scheduler, batches, time_ids, state, settings, step)
                )
                path = (
                    checkpoint()
                    if output_dir and (settings.checkpoint_at(step) or stop.asked)
                    else None
                )
                report.tell(known)
                if stop.asked:
                    raise KeyboardInterrupt(
                        f"Stopped after step {step}."
                        + (
                            f' Go on with resume_from_checkpoint="latest" (in {output_dir}).'
                            if path
                            else ""
                        )
                    )
            report.look()
        except TrainingError as error:
            if error.step is not None:
                keep_last_good(error, pipe.unet, settings, output_dir)
            raise
    return state.losses


def start_state(unet, parameters, settings, learned=None):
    """The `TrainingState` before the first step, of LoRA's `parameters` on a U-Net.

    Args:
        learned: from `what_is_learned`; a checkpoint of anything else is not gone on from.
    """
    from diffusers.optimization import get_scheduler

    optimizer = make_optimizer(parameters, settings)
    lr_scheduler = get_scheduler(
        settings.lr_scheduler,
        optimizer,
        num_warmup_steps=settings.lr_warmup_steps,
        num_training_steps=settings.max_train_steps,
        num_cycles=settings.lr_num_cycles,
        power=settings.lr_power,
    )
    # in float16 the gradients of the activations are too small for the format; scaled up they survive
    scaler = torch.amp.GradScaler(unet.device.type, enabled=unet.dtype == torch.float16)
    generator = torch.Generator().manual_seed(settings.seed)
    return checkpoints.TrainingState(
        named(unet), optimizer, lr_scheduler, scaler, generator, [], learned
    )


def named(unet):
    """The LoRA's tensors by their names in a `BLoRA`."""
    trained = {name: p for name, p in inner(unet).named_parameters() if p.requires_grad}
    return {f"unet.{name.replace(f'.{ADAPTER}.', '.')}": p for name, p in trained.items()}


def batches_of(pipe, moments, settings, prompts=None, prior=None):
    """The `Batches` of a training.

    Args:
        moments: from `encode_images`. prompts: one for each picture; by default `settings.instance_prompt` for all.
        prior: moments of class pictures, for prior preservation.
    """
    size = settings.train_batch_size
    class_batches = prior and Batches(pipe, prior, [settings.class_prompt], size, settings.seed + 1)
    return Batches(
        pipe, moments, prompts or [settings.instance_prompt], size, settings.seed, class_batches
    )


def try_checkpoint(unet, state, settings, output_dir):
    """A checkpoint's path; None where the disk is full, with a warning: hours of work go on, and the end may find room again."""
    try:
        return checkpoints.write_checkpoint(
            output_dir, collect(unet, settings), state, settings, settings.checkpoints_total_limit
        )
    except checkpoints.CheckpointError as error:
        warnings.warn(
            f"{error} The training goes on without it; make room in the folder.", stacklevel=3
        )
        return None


def keep_last_good(error, unet, settings, output_dir):
    """Hang the last good weights, which are on the U-Net again, on the error, and write them where there is a folder."""
    if error.step == 0:
        error.args = (f"{error} Nothing had been learned yet.",)
        return
    error.blora = collect(unet, settings)
    if output_dir:
        try:
            where = f"They are in {error.blora.save(free_path(output_dir, f'last_good-{error.step}', '.safetensors'))}."
        except (OSError, SafetensorError) as trouble:
            where = f"They could not be written to {output_dir} ({trouble}); from Python they are the error's `blora`."
        error.args = (f"{error} {where}",)


def prepare_output(output_dir, resume_from_checkpoint):
    """The checkpoint to go on from, or None. Raises FileExistsError where a new training would mix with an old one."""
    if output_dir is None:
        return None
    if (Path(output_dir) / FILE_NAME).exists():
        raise FileExistsError(
            f"{Path(output_dir) / FILE_NAME} exists already. Choose another output_dir, or remove it first."
        )
    if resume_from_checkpoint:
        return checkpoints.find_checkpoint(output_dir, resume_from_checkpoint)
    checkpoints.check_unused(output_dir)
    return None


def class_pictures(settings):
    """The class pictures of a training with prior preservation; none of one without."""
    return find_images(settings.class_data_dir) if settings.with_prior_preservation else []


def squares_of(pictures, settings, silent=False):
    """What is learned of the pictures: their middle squares, of `settings.resolution` pixels.

    What a person should know of them is given as an `ImageWarning`, unless `silent`.
    """
    squares = []
    for picture in pictures:
        image, remarks = read_with_remarks(picture)
        name = "The picture" if isinstance(picture, Image.Image) else str(picture)
        if not silent:
            tell(remarks + remarks_on_square(image, settings.resolution, name))
        squares.append(centre_square(image, settings.resolution))
    return squares


def encode_images(pipe, squares):
    """`encode_image` of several square pictures of one size: mean and standard deviation, [pictures, channels, h, w] each."""
    return tuple(
        torch.cat(part)
        for part in zip(*(encode_image(pipe, square, square.width) for square in squares))
    )


def what_is_learned(pipe, squares, prompts=None, class_squares=(), content=None):
    """What a checkpoint, and what is finished, belongs to.

    Hashes of the pixels, the prompts and the base model, and the dtype that is computed in.
    """
    base = model_hash(pipe)
    changed = [json.dumps(changes(pipe)).encode()] if changes(pipe) else []
    digest = lambda parts: hashlib.sha256(
        b"".join(hashlib.sha256(part).digest() for part in parts)
    ).hexdigest()
    others = [
        p.detach().cpu().float().numpy().tobytes()
        for model in (pipe.vae, pipe.text_encoder, pipe.text_encoder_2)
        for p in model.parameters()
        if p.ndim == 1
    ]  # enough to tell two apart
    return {
        "dtype": f"{str(pipe.unet.dtype).removeprefix('torch.')} {options_of(pipe).get('quantization', 'none')}",
        "picture": digest(square.tobytes() for square in squares),
        "caption": digest([json.dumps(prompts).encode()]),
        "set of class pictures": digest(square.tobytes() for square in class_squares),
        "content half": content and content.fingerprint,
        "base model": digest([str(base[1] or base[0]).encode(), *changed, *others]),
    }
