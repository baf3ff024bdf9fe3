"""B-LoRA's training: one picture in, one B-LoRA out.

`train` is the whole of it, `train_steps` the loop, and what the loop calls follows below it. Each
piece is a function of its own, so that what another implementation drew (latents, noise,
timesteps, first weights) can be replayed through `blora_loss` and `make_optimizer` and compared
number by number. What keeps a training small, fast and alive is in `running`.

Source: arXiv 2403.14572, section 4.2, and the authors' training script.
"""

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from blora_nb.batches import Batches
from blora_nb.blocks import STYLE_BLOCK, target_modules
from blora_nb.defaults import can_start_instantly, native_resolution
from blora_nb.errors import ImageError, TrainingError, TrainingWarning, check_names
from blora_nb.files.images import centre_square, to_tensor
from blora_nb.files.metadata import training_metadata
from blora_nb.guards.bases import check_base
from blora_nb.guards.changed_pipelines import changes, check_unchanged, uncompiled
from blora_nb.instant import instant_change, start_from
from blora_nb.lora import (
    IN_TRAINING,
    BLoRA,
    apply,
    collect,
    combine,
    mix,
    remove,
    trained_parameters,
    warn_of_other_adapters,
)
from blora_nb.pipeline import encode_prompt
from blora_nb.recipes import sample_weights
from blora_nb.registry import pipeline_lock
from blora_nb.running.checkpoints import TrainingState, checkpoint_to_resume, resume
from blora_nb.running.folder_lock import only_training_in
from blora_nb.running.memory import unet_can_stay
from blora_nb.running.monitor import Monitor, OnCheckpoint, Reporting, TrainingProgress
from blora_nb.running.optimized_unet import optimized_unet
from blora_nb.running.out_of_memory import MemoryReleased, explain_out_of_memory_training
from blora_nb.running.placement import all_back, offloaded
from blora_nb.running.training_pictures import class_pictures, squares_of, what_is_learned
from blora_nb.settings import TrainingSettings

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
    from diffusers.schedulers import DDPMScheduler

    Picture = str | Path | Image.Image
    Moments = tuple[Tensor, Tensor]


def train(
    pipe: "StableDiffusionXLPipeline",
    image: "Picture | Sequence[Picture] | dict[Path, str | None]",
    settings: TrainingSettings | None = None,
    progress: TrainingProgress = True,
    output_dir: str | Path | None = None,
    resume_from_checkpoint: str | None = None,
    on_checkpoint: OnCheckpoint | None = None,
    content: BLoRA | str | Path | None = None,
    **changed_settings: Any,
) -> BLoRA:
    """Train one B-LoRA from one picture, or one from several.

    Args:
        pipe: from `load_pipeline`. Any LoRA on it is taken off; afterwards it is the plain model.
        image: a path or PIL image of any size, of which the middle square is used; or a list of
            them; or a dict of paths to the prompt of each.
        settings: a `TrainingSettings`; by default those that suit the pipeline, with
            `changed_settings` (`rank=8`, `max_train_steps=300`, …; None leaves one as it is).
        progress: True for a progress bar with the loss, or a function called with (step, steps,
            loss).
        output_dir: folder for checkpoints; without it there are none. The B-LoRA itself is yours
            to save.
        resume_from_checkpoint: "latest" or a checkpoint's name: go on from there, on a CPU bit for
            bit.
        on_checkpoint: called with (pipe, folder) after each checkpoint, and for the one that is
            resumed, while the unfinished B-LoRA is on the pipeline. It draws with
            `generation.sample` (`generate` would take the B-LoRA off).
        content: a B-LoRA of the same picture, or its file, whose content half is kept as it is:
            only a fresh style half is trained beside it (the two-step style training of
            ConsisLoRA, arXiv 2503.10614). Checkpoints then hold the style half only.

    Returns:
        A `BLoRA`; its `losses` lists the loss of each step.

    Raises:
        ImageError: the picture cannot be read.
        ValueError: a setting or argument makes no sense.
        FileExistsError: output_dir holds an earlier training, and resuming was not asked for; or
            another training is writing there.
        CheckpointError: the one to resume is broken or belongs to another training.
        TrainingError: the loss or gradient is no longer a number, the loss has risen tenfold,
            memory is short, or `on_checkpoint` took the B-LoRA off.
        KeyboardInterrupt: after Ctrl-C, at the end of the step, with a checkpoint written where
            there is an `output_dir`.
    """
    with pipeline_lock(pipe), uncompiled(pipe):
        check_unchanged(pipe, training=True)
        check_base(pipe)
        pictures, prompts = _pictures_and_prompts(image)
        settings = _settings_for(pipe, settings, changed_settings, several=len(pictures) > 1)
        if output_dir is None and (resume_from_checkpoint or on_checkpoint):
            raise ValueError(
                "Checkpoints are in a folder: resume_from_checkpoint and on_checkpoint need an "
                "output_dir."
            )
        kept = None if content is None else mix("content", content)
        reporting = Reporting(progress, output_dir, on_checkpoint)
        models = [pipe.vae, pipe.text_encoder, pipe.text_encoder_2]
        if not getattr(pipe.unet, "is_quantized", False):
            models.append(pipe.unet)
        with only_training_in(output_dir), all_back(*models):
            checkpoint = checkpoint_to_resume(output_dir, resume_from_checkpoint)
            try:
                # what an error keeps alive would stand in the way of the models that move back
                with MemoryReleased():
                    return _train_on(pipe, pictures, prompts, settings, kept, checkpoint, reporting)
            except MemoryError as error:
                why = explain_out_of_memory_training(pipe, settings, output_dir, error)
                raise TrainingError(why) from None
            finally:
                remove(pipe)


def _settings_for(
    pipe: "StableDiffusionXLPipeline",
    settings: TrainingSettings | None,
    changed_settings: dict[str, Any],
    several: bool,
) -> TrainingSettings:
    """The settings of a training; a resolution that the base model does not draw is warned of."""
    known = [field.name for field in fields(TrainingSettings)]
    check_names(changed_settings, known, "setting", "help(TrainingSettings)")
    changed = {name: value for name, value in changed_settings.items() if value is not None}
    if settings is None:
        settings = TrainingSettings.for_pipeline(pipe, several=several, **changed)
    else:
        settings = replace(settings, **changed)
    check_start(pipe, settings, several)
    native = native_resolution(pipe)
    if not native / 2 <= settings.resolution <= 2 * native:
        warnings.warn(
            f"The base model draws {native} px and resolution is {settings.resolution}. "
            "TrainingSettings.for_pipeline(pipe, …) has the values that suit it.",
            TrainingWarning,
            stacklevel=3,
        )
    return settings


def check_start(
    pipe: "StableDiffusionXLPipeline", settings: TrainingSettings, several: bool
) -> None:
    """Raise a ValueError where a training cannot start from an instant B-LoRA."""
    if settings.init_lora_weights == "instant" and (several or not can_start_instantly(pipe)):
        raise ValueError(
            "init_lora_weights instant is for one picture on the teaching model, not quantized. "
            'Take TrainingSettings.for_pipeline(pipe, init_lora_weights="gaussian"), which also '
            "has the steps and the learning rate for it."
        )


def _pictures_and_prompts(
    image: "Picture | Sequence[Picture] | dict[Path, str | None]",
) -> "tuple[list[Picture], list[str | None] | None]":
    """The pictures to learn from, and the prompt of each where each has its own."""
    prompts = list(image.values()) if isinstance(image, dict) else None
    if isinstance(image, (str, Path, Image.Image)):
        image = [image]
    pictures = list(image)
    if not pictures:
        raise ImageError("There is no picture to learn from: the list is empty.")
    return pictures, prompts


def _train_on(
    pipe: "StableDiffusionXLPipeline",
    pictures: "list[Picture]",
    prompts: list[str | None] | None,
    settings: TrainingSettings,
    content: BLoRA | None,
    checkpoint: Path | None,
    reporting: Reporting,
) -> BLoRA:
    """The B-LoRA of the pictures.

    A function of its own, so that nothing holds what it took on the device when the models move
    back.
    """
    squares = squares_of(pictures, settings.resolution)
    class_squares = squares_of(class_pictures(settings), settings.resolution, silent=True)
    learned = what_is_learned(pipe, squares, prompts, class_squares, content)
    picture = pictures[0] if len(pictures) == 1 else None
    captions = [prompt or settings.instance_prompt for prompt in prompts] if prompts else None
    metadata = training_metadata(pipe, settings, picture, captions)
    metadata["learned"] = json.dumps(learned)
    changed = changes(pipe)
    if changed:
        metadata["changes_of_the_base"] = json.dumps(changed)
    warn_of_other_adapters(pipe)

    aside = [pipe.text_encoder, pipe.text_encoder_2]
    if not unet_can_stay(pipe, settings):
        aside.append(pipe.unet)
    with offloaded(*aside), MemoryReleased():
        moments = encode_images(pipe, squares)
        class_moments = encode_images(pipe, class_squares) if class_squares else None
    remove(pipe)
    batches = make_batches(pipe, moments, settings, prompts, class_moments)
    if content is None:
        attach_lora(pipe.unet, settings.rank, settings.seed)
    else:
        attach_style_beside(pipe, content, settings)
    if settings.init_lora_weights == "instant":
        prompt = (prompts and prompts[0]) or settings.instance_prompt
        start_from(pipe.unet, instant_change(pipe, squares[0], prompt))
    state = start_state(pipe.unet, settings, learned)
    state.metadata = metadata
    if checkpoint:
        resume(checkpoint, state, settings)

    losses = fit(pipe, batches, state, settings, reporting)
    blora = collect(pipe.unet, settings, metadata)
    if content is not None:
        blora = combine(content, blora)
        metadata["content_fingerprint"] = content.fingerprint
    blora.metadata, blora.losses = metadata, losses
    return blora


# ------------------------------------------------------------------------------------- the loop


def train_steps(
    pipe: "StableDiffusionXLPipeline",
    batches: Batches,
    state: TrainingState,
    settings: TrainingSettings,
    monitor: Monitor,
) -> None:
    """The training loop: the steps from where `state` is to `settings.max_train_steps`."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    scaling_factor = pipe.vae.config.scaling_factor
    parameters = list(state.parameters.values())
    accumulate = settings.gradient_accumulation_steps
    # `pipe.device` may be that of a model which waits in the CPU's memory
    device = pipe.unet.device
    size, dtype = batches.total_size, batches.prompt_embeds.dtype
    time_ids = micro_conditioning(settings.resolution, size, device, dtype)
    monitor.on_train_start()
    for step in range(state.step + 1, settings.max_train_steps + 1):
        total = torch.zeros((), device=device)
        for part in range(accumulate):
            *moments, prompt_embeds, pooled = batches.batch((step - 1) * accumulate + part)
            drawn = draw_step(moments, scheduler, scaling_factor, size, state.generator)
            latents, noise, timesteps = drawn
            weights = sample_weights(settings, scheduler, timesteps, step)
            prompt = (prompt_embeds, pooled, time_ids)
            loss = blora_loss(pipe.unet, scheduler, latents, noise, timesteps, *prompt, weights)
            loss = loss / accumulate
            # in float16 the gradients of the activations are too small for the format; the scaler
            # multiplies the loss here, and divides the gradients again before the step
            state.scaler.scale(loss).backward()
            total = total + loss.detach()
            del loss  # it holds on to the graph, which must be gone when models move
        state.scaler.unscale_(state.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.lr_scheduler.step()
        state.optimizer.zero_grad()
        monitor.on_step_end(step, total, norm)
    monitor.on_train_end()


def fit(
    pipe: "StableDiffusionXLPipeline",
    batches: Batches,
    state: TrainingState,
    settings: TrainingSettings,
    reporting: Reporting,
) -> list[float]:
    """The loop with all that makes it small, fast and safe. Returns the loss of each step."""
    with optimized_unet(pipe, batches, settings) as suspended:
        monitor = Monitor(pipe, state, settings, suspended, reporting)
        with monitor, MemoryReleased():
            train_steps(pipe, batches, state, settings, monitor)
    return state.losses


def run_steps(
    pipe: "StableDiffusionXLPipeline",
    moments: "Moments",
    settings: TrainingSettings,
    progress: TrainingProgress = True,
) -> list[float]:
    """All steps on the latents of one picture.

    What `train` does between `attach_lora` and `collect`. It starts from what is on the U-Net, so
    settings for it say init_lora_weights="gaussian".

    Args:
        moments: from `encode_image`.
        progress: as in `train`.

    Returns:
        The loss of each step.
    """
    batches = make_batches(pipe, moments, settings)
    state = start_state(pipe.unet, settings)
    return fit(pipe, batches, state, settings, Reporting(progress))


# -------------------------------------------------------------------------------- what is trained


def attach_lora(
    unet: "UNet2DConditionModel", rank: int, seed: int = 0, blocks: Sequence[str] = ()
) -> list[Tensor]:
    """Put fresh LoRA layers on the two B-LoRA blocks, and return their parameters, in float32.

    lora_A [rank, in] is drawn from a normal distribution of standard deviation 1/rank, lora_B
    [out, rank] is zero, and lora_alpha = rank makes the scale 1: the training starts from the
    unchanged model.

    Args:
        blocks: names of other transformer blocks to put them on.
    """
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        init_lora_weights="gaussian",
        target_modules=target_modules(*blocks),
    )
    # without the list of devices it warns where there are several
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        unet.add_adapter(config, adapter_name=IN_TRAINING)
    cast_training_params(unet, torch.float32)
    return [p for p in unet.parameters() if p.requires_grad]


def attach_style_beside(
    pipe: "StableDiffusionXLPipeline", content: BLoRA, settings: TrainingSettings
) -> None:
    """Put a known content half on the model, frozen, and fresh LoRA on the style block only.

    The second step of ConsisLoRA's style training (arXiv 2503.10614): what the content half
    explains already, the style half need not learn.
    """
    apply(pipe, content=content)
    with warnings.catch_warnings():
        # two adapters are what we want
        warnings.filterwarnings("ignore", "Already found a `peft_config`")
        attach_lora(pipe.unet, settings.rank, settings.seed, [STYLE_BLOCK])
    pipe.unet.set_adapters(["content", IN_TRAINING])
    for name, parameter in pipe.unet.named_parameters():
        parameter.requires_grad_(f".{IN_TRAINING}." in name)


def make_optimizer(parameters: list[Tensor], settings: TrainingSettings) -> torch.optim.Optimizer:
    """AdamW, or its 8-bit form.

    On a GPU in one fused kernel, elsewhere over all tensors at once, which gives the bits of a
    plain loop.
    """
    options: dict[str, Any] = {
        "lr": settings.learning_rate,
        "betas": (settings.adam_beta1, settings.adam_beta2),
        "weight_decay": settings.adam_weight_decay,
        "eps": settings.adam_epsilon,
    }
    if settings.use_8bit_adam:
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            raise TrainingError(
                "8-bit Adam needs the package bitsandbytes: pip install bitsandbytes"
            ) from None
        return AdamW8bit(parameters, **options)
    if parameters[0].is_cuda:
        return torch.optim.AdamW(parameters, fused=True, **options)
    return torch.optim.AdamW(parameters, foreach=True, **options)


def start_state(
    unet: "UNet2DConditionModel",
    settings: TrainingSettings,
    learned: dict[str, str | None] | None = None,
) -> TrainingState:
    """The `TrainingState` before the first step of the LoRA that has been attached to a U-Net.

    Args:
        learned: from `what_is_learned`; a checkpoint of anything else is not resumed.
    """
    from diffusers.optimization import get_scheduler

    parameters = trained_parameters(unet)
    optimizer = make_optimizer(list(parameters.values()), settings)
    lr_scheduler = get_scheduler(
        settings.lr_scheduler,
        optimizer,
        num_warmup_steps=settings.lr_warmup_steps,
        num_training_steps=settings.max_train_steps,
        num_cycles=settings.lr_num_cycles,
        power=settings.lr_power,
    )
    scaler = torch.amp.GradScaler(unet.device.type, enabled=unet.dtype == torch.float16)
    generator = torch.Generator().manual_seed(settings.seed)
    return TrainingState(parameters, optimizer, lr_scheduler, scaler, generator, [], learned)


# ------------------------------------------------------------------------------ what is learned


@contextmanager
def exact_vae(vae: "AutoencoderKL") -> Iterator[None]:
    """Inside, a VAE computes in float32 and in one piece; tiles would differ a little."""
    dtype, tiled = vae.dtype, getattr(vae, "use_tiling", False)
    try:
        # diffusers' own `to` warns
        torch.nn.Module.to(vae, torch.float32)
        vae.use_tiling = False
        yield
    finally:
        torch.nn.Module.to(vae, dtype)
        vae.use_tiling = tiled


@torch.no_grad()
def encode_image(
    pipe: "StableDiffusionXLPipeline", image: Image.Image, resolution: int
) -> "Moments":
    """Mean and standard deviation of a picture's latents.

    The VAE runs once, computing in float32 as in the original (with its weights as they were
    loaded). The training draws a new sample from mean and standard deviation at every step, as
    the original does by encoding the picture again each time.

    Returns:
        Two float32 tensors [1, channels, side, side]; a side is resolution/8 (teaching model: /4).
    """
    pixels = to_tensor(centre_square(image, resolution)).to(pipe.vae.device)
    with exact_vae(pipe.vae):
        posterior = pipe.vae.encode(pixels).latent_dist
    return posterior.mean.float(), posterior.std.float()


def encode_images(pipe: "StableDiffusionXLPipeline", squares: list[Image.Image]) -> "Moments":
    """`encode_image` of several square pictures of one size, [pictures, channels, h, w] each."""
    moments = [encode_image(pipe, square, square.width) for square in squares]
    means, stds = zip(*moments, strict=True)
    return torch.cat(means), torch.cat(stds)


def make_batches(
    pipe: "StableDiffusionXLPipeline",
    moments: "Moments",
    settings: TrainingSettings,
    prompts: Sequence[str | None] | None = None,
    class_moments: "Moments | None" = None,
) -> Batches:
    """The `Batches` of a training.

    Args:
        moments: from `encode_images`.
        prompts: one for each picture; by default `settings.instance_prompt` for all.
        class_moments: of class pictures, for prior preservation.
    """
    size, seed = settings.train_batch_size, settings.seed
    class_batches = None
    if class_moments is not None:
        class_prompt = [encode_prompt(pipe, settings.class_prompt or "")]
        class_batches = Batches(class_moments, class_prompt, size, seed + 1)
    embeds = [
        encode_prompt(pipe, prompt or settings.instance_prompt) for prompt in prompts or [None]
    ]
    return Batches(moments, embeds, size, seed, class_batches)


# ------------------------------------------------------------------------------------- one step


def draw_step(
    moments: Sequence[Tensor],
    scheduler: "DDPMScheduler",
    scaling_factor: float,
    batch_size: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """What one step draws, in the original's order.

    Args:
        moments: mean and standard deviation of the latents, [1 or batch, channels, h, w].

    Returns:
        latents and noise [batch, channels, h, w], timesteps [batch].
    """
    mean, std = moments
    shape = (batch_size, *mean.shape[1:])

    def normal() -> Tensor:
        return to_device_async(torch.randn(shape, generator=generator), mean.device)

    latents = (mean + std * normal()) * scaling_factor
    noise = normal()
    last = scheduler.config.num_train_timesteps
    timesteps = torch.randint(0, last, (batch_size,), generator=generator)
    return latents, noise, to_device_async(timesteps, mean.device)


def to_device_async(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the computer's memory on a device.

    From pinned memory a GPU fetches it when it gets there; otherwise the computer would wait
    until the GPU has caught up.
    """
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def micro_conditioning(
    resolution: int, batch_size: int, device: torch.device | str, dtype: torch.dtype
) -> Tensor:
    """SDXL's `time_ids` [batch, 6]: original size, crop offset, target size, as at inference."""
    sizes = [resolution, resolution, 0, 0, resolution, resolution]
    return torch.tensor([sizes] * batch_size, device=device, dtype=dtype)


def diffusion_target(
    scheduler: "DDPMScheduler", latents: Tensor, noise: Tensor, timesteps: Tensor
) -> Tensor:
    """What the U-Net has to predict: the noise (SDXL), or the velocity (the teaching model)."""
    if scheduler.config.prediction_type == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    return noise


def blora_loss(
    unet: "UNet2DConditionModel",
    scheduler: "DDPMScheduler",
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    prompt_embeds: Tensor,
    pooled_prompt_embeds: Tensor,
    time_ids: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """The mean squared error of the U-Net's prediction, a scalar in float32.

    Args:
        latents, noise: [batch, channels, h, w]. timesteps: [batch].
        prompt_embeds: [1 or batch, tokens, dim]; those of one prompt serve the batch.
        pooled_prompt_embeds: [1 or batch, dim]. time_ids: [batch, 6].
        weights: of each sample's error, [batch]; None for all the same.
    """
    batch = latents.shape[0]
    noisy = scheduler.add_noise(latents, noise, timesteps)
    # `unet.dtype` would look through all modules, at every step
    noisy = noisy.to(unet.conv_in.weight.dtype)
    conditions = {"text_embeds": pooled_prompt_embeds.expand(batch, -1), "time_ids": time_ids}
    words = prompt_embeds.expand(batch, -1, -1)
    prediction = unet(noisy, timesteps, words, added_cond_kwargs=conditions).sample.float()
    target = diffusion_target(scheduler, latents, noise, timesteps).float()
    if weights is None:
        return F.mse_loss(prediction, target)
    errors = F.mse_loss(prediction, target, reduction="none").mean(dim=(1, 2, 3))
    return (errors * weights).mean()
