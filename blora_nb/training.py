"""Train a B-LoRA from one picture: the pieces (attach, draw, loss, optimizer) and the loop that uses them.

Source: arXiv 2403.14572, section 4.2, and the authors' training script. Each piece is a function of its own, so that
recorded latents, noise, timesteps and LoRA weights of another implementation can be replayed through `blora_loss` and
`make_optimizer` and compared number by number.
"""

from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
import importlib.metadata
import json
from math import isnan

import torch
import torch.nn.functional as F

from .adapters import BLoRA, remove
from .blocks import target_modules
from .images import centre_square, read_image, to_tensor
from .models import defaults_for, encode_prompt, native_resolution

ADAPTER = "new"


class TrainingError(RuntimeError):
    """Training that cannot go on; the message says why and what to change."""


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides the result of a training, with the original's names and, for SDXL, its values."""

    instance_prompt: str = "A [v]"
    resolution: int = 1024
    rank: int = 64
    learning_rate: float = 5e-5
    max_train_steps: int = 1000
    train_batch_size: int = 1
    seed: int = 0
    adam_weight_decay: float = 1e-4
    max_grad_norm: float = 1.0

    def __post_init__(self):
        for name in ("resolution", "rank", "max_train_steps", "train_batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than 0, not {getattr(self, name)}.")

    @classmethod
    def for_pipeline(cls, pipe, **changes):
        """The settings that suit a pipeline, with the given ones changed (None means: leave it)."""
        d = defaults_for(pipe)
        suited = {"resolution": native_resolution(pipe), "rank": d.rank, "learning_rate": d.learning_rate, "max_train_steps": d.max_train_steps, "train_batch_size": d.train_batch_size}
        return cls(**suited | {name: value for name, value in changes.items() if value is not None})


def attach_lora(unet, rank, seed=0, blocks=()):
    """Put fresh LoRA layers on the two B-LoRA blocks (or the given ones) and return their parameters, always float32.

    lora_A [rank, in] is drawn from a normal distribution of standard deviation 1/rank, lora_B [out, rank] is zero, and lora_alpha = rank makes the scale 1:
    the training starts from the unchanged model.
    """
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=target_modules(*blocks)), adapter_name=ADAPTER)
    cast_training_params(unet, torch.float32)
    return [p for p in unet.parameters() if p.requires_grad]


def make_optimizer(parameters, settings):
    """AdamW as in the original: betas .9 and .999, eps 1e-8, constant learning rate."""
    return torch.optim.AdamW(parameters, lr=settings.learning_rate, betas=(0.9, 0.999), weight_decay=settings.adam_weight_decay, eps=1e-8)


@torch.no_grad()
def encode_image(pipe, image, resolution):
    """Mean and standard deviation of a picture's latents, float32 [1, channels, resolution/8, resolution/8] each.

    The VAE runs once, in float32 where its float16 overflows (SDXL's does). The training draws a new sample from mean and
    std at every step, as the original does by encoding the picture again each time.
    """
    dtype = pipe.vae.dtype
    upcast = pipe.vae.config.force_upcast and dtype == torch.float16
    if upcast:
        pipe.vae.to(torch.float32)
    pixels = to_tensor(centre_square(image, resolution)).to(pipe.vae.device, pipe.vae.dtype)
    posterior = pipe.vae.encode(pixels).latent_dist
    if upcast:
        pipe.vae.to(dtype)
    return posterior.mean.float(), posterior.std.float()


def draw_step(moments, scheduler, scaling_factor, batch_size, generator):
    """What one step draws, in the original's order: latents, noise [batch, channels, h, w], timesteps [batch]."""
    mean, std = moments
    shape = (batch_size, *mean.shape[1:])
    normal = lambda: torch.randn(shape, generator=generator).to(mean.device)
    latents = (mean + std * normal()) * scaling_factor
    noise = normal()
    timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (batch_size,), generator=generator).to(mean.device)
    return latents, noise, timesteps


def micro_conditioning(resolution, batch_size, device, dtype):
    """SDXL's `time_ids` [batch, 6]: original size, crop offset, target size, the same as at inference."""
    return torch.tensor([[resolution, resolution, 0, 0, resolution, resolution]] * batch_size, device=device, dtype=dtype)


def diffusion_target(scheduler, latents, noise, timesteps):
    """What the U-Net has to predict: the noise (SDXL), or the velocity (the teaching model)."""
    if scheduler.config.prediction_type == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    return noise


def blora_loss(unet, scheduler, latents, noise, timesteps, prompt_embeds, pooled_prompt_embeds, time_ids):
    """The mean squared error of the U-Net's prediction, a scalar in float32. Embeddings of one prompt serve the batch."""
    batch = latents.shape[0]
    prediction = unet(
        scheduler.add_noise(latents, noise, timesteps).to(unet.dtype),
        timesteps,
        prompt_embeds.expand(batch, -1, -1),
        added_cond_kwargs={"text_embeds": pooled_prompt_embeds.expand(batch, -1), "time_ids": time_ids},
    ).sample
    return F.mse_loss(prediction.float(), diffusion_target(scheduler, latents, noise, timesteps).float())


def collect(unet, settings):
    """The `BLoRA` made of the LoRA weights on a U-Net, with the settings and versions in its metadata."""
    from peft.utils import get_peft_model_state_dict

    weights = get_peft_model_state_dict(unet, adapter_name=ADAPTER)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "peft")}
    metadata = {"training": json.dumps(asdict(settings)), "versions": json.dumps(versions)}
    return BLoRA({f"unet.{key}": t.detach().float().cpu().clone() for key, t in weights.items()}, metadata)


@contextmanager
def out_of_the_way(*models):
    """Inside, the models wait in the computer's memory instead of the GPU's."""
    devices = [model.device for model in models]
    for model in models:
        model.to("cpu")
    try:
        yield
    finally:
        for model, device in zip(models, devices):
            model.to(device)


def run_steps(pipe, parameters, moments, settings, progress=True):
    """The training loop: `settings.max_train_steps` steps on one picture's latents. Returns the loss of each step.

    Args:
        parameters: from `attach_lora`. moments: from `encode_image`.
        progress: True for a progress bar with the loss, or a function called with (step, steps, loss).
    """
    from diffusers import DDPMScheduler
    from tqdm.auto import tqdm

    prompt_embeds, pooled = encode_prompt(pipe, settings.instance_prompt)
    time_ids = micro_conditioning(settings.resolution, settings.train_batch_size, pipe.device, prompt_embeds.dtype)
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    optimizer = make_optimizer(parameters, settings)
    # in float16 the gradients of the activations are too small for the format; scaled up they survive
    scaler = torch.amp.GradScaler(pipe.device.type, enabled=pipe.unet.dtype == torch.float16)
    generator = torch.Generator().manual_seed(settings.seed)
    losses = []
    with out_of_the_way(pipe.vae, pipe.text_encoder, pipe.text_encoder_2), tqdm(total=settings.max_train_steps, desc="training", disable=progress is not True) as bar:
        for step in range(1, settings.max_train_steps + 1):
            draws = draw_step(moments, scheduler, pipe.vae.config.scaling_factor, settings.train_batch_size, generator)
            loss = blora_loss(pipe.unet, scheduler, *draws, prompt_embeds, pooled, time_ids)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            losses.append(loss.item())
            if isnan(losses[-1]):
                raise TrainingError(f"The loss became NaN at step {step}. Try a smaller learning rate than {settings.learning_rate}.")
            bar.set_postfix(loss=f"{sum(losses[-20:]) / len(losses[-20:]):.3f}", refresh=False)
            bar.update()
            if callable(progress):
                progress(step, settings.max_train_steps, losses[-1])
    return losses


def train(pipe, image, settings=None, progress=True, **changes):
    """Train one B-LoRA from one picture.

    Args:
        pipe: from `load_pipeline`. Any LoRA on it is taken off; afterwards it is the plain model again.
        image: a path or PIL image of any size; its middle square is used.
        settings: a `TrainingSettings`; by default those that suit the pipeline, with `changes` made to them
            (`rank=8`, `max_train_steps=300`, …).
        progress: True for a progress bar with the loss, or a function called with (step, steps, loss).

    Returns:
        A `BLoRA`; its `losses` lists the loss of each step.

    Raises:
        ImageError: the picture cannot be read. TrainingError: the loss is no longer a number.
    """
    settings = replace(settings, **changes) if settings else TrainingSettings.for_pipeline(pipe, **changes)
    moments = encode_image(pipe, read_image(image), settings.resolution)
    remove(pipe)
    parameters = attach_lora(pipe.unet, settings.rank, settings.seed)
    try:
        losses = run_steps(pipe, parameters, moments, settings, progress)
        blora = collect(pipe.unet, settings)
    finally:
        remove(pipe)
    blora.losses = losses
    return blora
