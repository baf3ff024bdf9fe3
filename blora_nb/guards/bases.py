"""Whether a base model is of the kind that B-LoRA is for: SDXL trained with DDPM's noise.

Its scheduler and its VAE say how a U-Net was trained. On a base of another kind of diffusion than
DDPM (Ho et al., arXiv 2006.11239), such as EDM (arXiv 2206.00364) or flow matching (arXiv
2210.02747), training would go wrong without a sign.
"""

import inspect
from typing import TYPE_CHECKING

import torch

from blora_nb.errors import BaseError, shown

if TYPE_CHECKING:
    from diffusers import SchedulerMixin, StableDiffusionXLPipeline

PREDICTIONS = ("epsilon", "v_prediction")
REMEDY = (
    "Take a base with DDPM's betas that predicts noise (epsilon) or velocity (v_prediction), such "
    "as sdxl. If only the pipeline's scheduler was replaced, put the base's own back."
)
# settings of schedulers of another kind, which stay in the configuration of a later one
TRACES = {
    "sigma_data": "EDM",
    "base_image_seq_len": "flow matching",
    "stochastic_sampling": "flow matching",
    "snr_shift_scale": "a shifted noise schedule",
}
# what diffusers takes if a base has no betas, and what no SDXL has
NO_BETAS = [0.0001, 0.02, "linear"]
NEUTRAL_LATENTS = {"latents_mean": 0.0, "latents_std": 1.0, "shift_factor": 0.0}


def check_base(pipe: "StableDiffusionXLPipeline") -> None:
    """Raise a `BaseError` unless scheduler, U-Net and VAE are an SDXL's, with DDPM's noise."""
    fault = _foreign_scheduler(pipe.scheduler) or _foreign_latents(pipe)
    if fault:
        raise BaseError(f"This base model cannot be used with B-LoRA: {fault} {REMEDY}")


def _foreign_scheduler(scheduler: "SchedulerMixin") -> str | None:
    """A sentence on what is foreign about a scheduler; None for one of DDPM's family."""
    from diffusers import DDPMScheduler

    name, config = type(scheduler).__name__, scheduler.config
    arguments = _arguments(type(scheduler))
    if not {"beta_start", "beta_schedule"} <= arguments:
        kind = next((kind for trace, kind in TRACES.items() if trace in arguments), "not DDPM")
        if name.startswith("FlowMatch"):
            kind = "flow matching"
        return f"its scheduler is {name} ({kind}), which has no betas."
    if config.get("use_flow_sigmas"):
        return f"its scheduler, {name}, is set to flow matching (use_flow_sigmas)."
    defaults = config.get("_use_default_values") or ()
    betas = [config.get(entry) for entry in ("beta_start", "beta_end", "beta_schedule")]
    for trace, kind in TRACES.items():
        left_behind = trace in config and trace not in defaults and betas == NO_BETAS
        if left_behind or trace in arguments:
            return f"its scheduler, {name}, has {trace} in its configuration: {kind}."
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        return f"it predicts {shown(prediction, 60)} (prediction_type of its scheduler, {name})."
    if prediction == "v_prediction" and config.get("timestep_type") == "continuous":
        return f"its scheduler, {name}, has continuous timesteps (timestep_type): EDM."
    try:
        # training takes its noise from it
        DDPMScheduler.from_config(config)
    except NotImplementedError:
        return f"DDPM does not know its beta_schedule {shown(config.beta_schedule, 60)}."
    return None


def _arguments(kind: type) -> set[str]:
    """The names of the arguments of a class and of the classes it inherits from."""
    constructors = [vars(one)["__init__"] for one in kind.__mro__ if "__init__" in vars(one)]
    return {name for init in constructors for name in inspect.signature(init).parameters}


def _foreign_latents(pipe: "StableDiffusionXLPipeline") -> str | None:
    """A sentence on what is foreign about a pipeline's latents; None if all is as in SDXL."""
    vae, unet = pipe.vae.config, pipe.unet.config
    for entry, neutral in NEUTRAL_LATENTS.items():
        value = vae.get(entry)
        if value is not None and not torch.all(torch.as_tensor(value) == neutral):
            return f"its VAE has {entry} {shown(value, 60)}, which changes all latents."
    if {unet.in_channels, unet.out_channels} != {vae.latent_channels}:
        return (
            f"its U-Net takes {unet.in_channels} channels and gives {unet.out_channels}, and its "
            f"VAE has {vae.latent_channels} (a base for inpainting or editing?)."
        )
    if unet.get("time_cond_proj_dim"):
        return "its U-Net is told the guidance (time_cond_proj_dim): a distilled consistency model."
    return None
