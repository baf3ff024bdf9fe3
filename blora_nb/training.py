"""The method of B-LoRA's training, piece by piece: attach LoRA, encode the picture, draw, loss, optimizer, one step.

Source: arXiv 2403.14572, section 4.2, and the authors' training script. Each piece is a function of its own, so that
recorded latents, noise, timesteps and LoRA weights of another implementation can be replayed through `blora_loss` and
`make_optimizer` and compared number by number. `trainer` takes one step after another and keeps a long training alive; what
changes the loss is in `recipes`.
"""

import json
import warnings
from contextlib import contextmanager
from dataclasses import asdict

import torch
import torch.nn.functional as F

from blora_nb.blocks import STYLE_BLOCK, target_modules
from blora_nb.errors import TrainingError
from blora_nb.files.images import centre_square, to_tensor
from blora_nb.files.metadata import versions
from blora_nb.guards.changed_pipelines import inner
from blora_nb.lora import BLoRA, apply
from blora_nb.recipes import sample_weights

ADAPTER = "new"


def attach_lora(unet, rank, seed=0, blocks=()):
    """Put fresh LoRA layers on the two B-LoRA blocks (or those in the list `blocks`) and return their parameters, always float32.

    lora_A [rank, in] is drawn from a normal distribution of standard deviation 1/rank, lora_B [out, rank] is zero, and lora_alpha = rank makes the scale 1:
    the training starts from the unchanged model.
    """
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    with torch.random.fork_rng(
        range(torch.cuda.device_count())
    ):  # without the list it warns where there are several
        torch.manual_seed(seed)
        unet.add_adapter(
            LoraConfig(
                r=rank,
                lora_alpha=rank,
                init_lora_weights="gaussian",
                target_modules=target_modules(*blocks),
            ),
            adapter_name=ADAPTER,
        )
    cast_training_params(unet, torch.float32)
    return [p for p in unet.parameters() if p.requires_grad]


def attach_style_beside(pipe, content, settings):
    """Put a known content half on the model, frozen, and fresh LoRA on the style block only; returns the latter's parameters.

    The second step of ConsisLoRA's style training (arXiv 2503.10614): what the content half explains already, the style half need not learn.
    """
    apply(pipe, content=content)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Already found a `peft_config`"
        )  # two adapters are what we want
        attach_lora(pipe.unet, settings.rank, settings.seed, [STYLE_BLOCK])
    pipe.unet.set_adapters(["content", ADAPTER])
    for name, parameter in pipe.unet.named_parameters():
        parameter.requires_grad_(f".{ADAPTER}." in name)
    return [p for p in pipe.unet.parameters() if p.requires_grad]


def make_optimizer(parameters, settings):
    """AdamW with the original's betas .9 and .999, eps 1e-8; on a GPU in one fused kernel, elsewhere in a loop over all tensors at once, which gives the bits of a plain one."""
    kind, fast = torch.optim.AdamW, {"fused": True} if parameters[0].is_cuda else {"foreach": True}
    if settings.use_8bit_adam:
        try:
            from bitsandbytes.optim import AdamW8bit as kind
        except ImportError:
            raise TrainingError(
                "8-bit Adam needs the package bitsandbytes: pip install bitsandbytes"
            ) from None
        fast = {}
    return kind(
        parameters,
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        weight_decay=settings.adam_weight_decay,
        eps=settings.adam_epsilon,
        **fast,
    )


@contextmanager
def exact_vae(vae):
    """Inside, a VAE computes in float32 and in one piece; tiles would be encoded a little differently."""
    dtype, tiled = vae.dtype, getattr(vae, "use_tiling", False)
    torch.nn.Module.to(vae, torch.float32)  # diffusers' own warns
    vae.use_tiling = False
    try:
        yield
    finally:
        torch.nn.Module.to(vae, dtype)
        vae.use_tiling = tiled


@torch.no_grad()
def encode_image(pipe, image, resolution):
    """Mean and standard deviation of a picture's latents, float32 [1, channels, resolution/8, resolution/8] each.

    The VAE runs once, computing in float32 as in the original (with its weights as they were loaded). The training draws a new sample from mean and
    std at every step, as the original does by encoding the picture again each time.
    """
    pixels = to_tensor(centre_square(image, resolution)).to(pipe.vae.device)
    with exact_vae(pipe.vae):
        posterior = pipe.vae.encode(pixels).latent_dist
    return posterior.mean.float(), posterior.std.float()


def draw_step(moments, scheduler, scaling_factor, batch_size, generator):
    """What one step draws, in the original's order: latents, noise [batch, channels, h, w], timesteps [batch]."""
    mean, std = moments
    shape = (batch_size, *mean.shape[1:])
    normal = lambda: without_waiting(torch.randn(shape, generator=generator), mean.device)
    latents = (mean + std * normal()) * scaling_factor
    noise = normal()
    timesteps = without_waiting(
        torch.randint(0, scheduler.config.num_train_timesteps, (batch_size,), generator=generator),
        mean.device,
    )
    return latents, noise, timesteps


def without_waiting(tensor, device):
    """A tensor of the computer's memory on a device. From pinned memory a GPU fetches it when it gets there; otherwise the computer would wait until the GPU has caught up."""
    return (
        tensor.pin_memory().to(device, non_blocking=True)
        if device.type == "cuda"
        else tensor.to(device)
    )


def micro_conditioning(resolution, batch_size, device, dtype):
    """SDXL's `time_ids` [batch, 6]: original size, crop offset, target size, the same as at inference."""
    return torch.tensor(
        [[resolution, resolution, 0, 0, resolution, resolution]] * batch_size,
        device=device,
        dtype=dtype,
    )


def diffusion_target(scheduler, latents, noise, timesteps):
    """What the U-Net has to predict: the noise (SDXL), or the velocity (the teaching model)."""
    if scheduler.config.prediction_type == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    return noise


def blora_loss(
    unet,
    scheduler,
    latents,
    noise,
    timesteps,
    prompt_embeds,
    pooled_prompt_embeds,
    time_ids,
    weights=None,
):
    """The mean squared error of the U-Net's prediction, a scalar in float32. Embeddings of one prompt serve the batch.

    Args:
        weights: of each sample's error, [batch]; None for all the same.
    """
    batch = latents.shape[0]
    prediction = unet(
        scheduler.add_noise(latents, noise, timesteps).to(
            unet.conv_in.weight.dtype
        ),  # `unet.dtype` looks through all modules, at every step
        timesteps,
        prompt_embeds.expand(batch, -1, -1),
        added_cond_kwargs={
            "text_embeds": pooled_prompt_embeds.expand(batch, -1),
            "time_ids": time_ids,
        },
    ).sample
    target = diffusion_target(scheduler, latents, noise, timesteps).float()
    if weights is None:
        return F.mse_loss(prediction.float(), target)
    return (
        F.mse_loss(prediction.float(), target, reduction="none").mean(dim=(1, 2, 3)) * weights
    ).mean()


def collect(unet, settings):
    """The `BLoRA` made of the LoRA weights on a U-Net, with the settings and versions in its metadata."""
    from peft.utils import get_peft_model_state_dict

    weights = get_peft_model_state_dict(inner(unet), adapter_name=ADAPTER)
    metadata = {"training": json.dumps(asdict(settings)), "versions": versions()}
    return BLoRA(
        {f"unet.{key}": t.detach().float().cpu().clone() for key, t in weights.items()}, metadata
    )


def take_step(pipe, scheduler, batches, time_ids, state, settings, step):
    """One step: draw, loss, gradient, optimizer. Returns loss and gradient norm, scalars that are still on the device."""
    total, parameters, accumulate = (
        0,
        list(state.parameters.values()),
        settings.gradient_accumulation_steps,
    )
    for part in range(accumulate):
        *moments, prompt_embeds, pooled = batches.batch((step - 1) * accumulate + part)
        latents, noise, timesteps = draw_step(
            moments, scheduler, pipe.vae.config.scaling_factor, len(time_ids), state.generator
        )
        weights = sample_weights(settings, scheduler, timesteps, step)
        loss = (
            blora_loss(
                pipe.unet,
                scheduler,
                latents,
                noise,
                timesteps,
                prompt_embeds,
                pooled,
                time_ids,
                weights,
            )
            / accumulate
        )
        state.scaler.scale(loss).backward()
        total = total + loss.detach()
    state.scaler.unscale_(state.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.lr_scheduler.step()
    state.optimizer.zero_grad()
    return total, norm
