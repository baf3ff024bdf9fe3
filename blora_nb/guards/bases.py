"""Whether a base model is of the kind that B-LoRA is for: SDXL with DDPM's noise, and nothing else.

A pipeline of diffusers does not say how its U-Net was trained; its scheduler and its VAE do.
Training takes DDPM's noise schedule from the scheduler (Ho et al., arXiv 2006.11239), so that
another kind of diffusion (EDM, arXiv 2206.00364; flow matching, arXiv 2210.02747) would be trained
on what the base was not made for, without a sign of it.
"""

import inspect

import torch

from blora_nb.errors import BaseError, shown

PREDICTIONS = ("epsilon", "v_prediction")
REMEDY = (
    "Take a base with DDPM's betas that predicts noise (epsilon) or velocity (v_prediction), such "
    "as sdxl. If only the pipeline's scheduler was replaced, put the base's own back."
)
# entries of schedulers of another kind, which stay in the configuration of a later one
TRACES = {
    "sigma_data": "EDM",
    "base_image_seq_len": "flow matching",
    "stochastic_sampling": "flow matching",
    "snr_shift_scale": "a shifted noise schedule",
}


NO_BETAS = [0.0001, 0.02, "linear"]


def check_base(pipe) -> None:
    """Raise a `BaseError` unless scheduler, U-Net and VAE are those of an SDXL with DDPM's noise.

    Asked before anything is trained, drawn or recorded.
    """
    for fault in (kind_of_scheduler(pipe.scheduler), _kind_of_latents(pipe)):
        if fault:
            raise BaseError(f"This base model cannot be used with B-LoRA: {fault} {REMEDY}")


def kind_of_scheduler(scheduler) -> str | None:
    """A sentence on what is foreign about a scheduler; None for one of DDPM's family."""
    name, config = type(scheduler).__name__, scheduler.config
    own = {entry for kind in type(scheduler).__mro__ for entry in _arguments(kind)}
    if not {"beta_start", "beta_schedule"} <= own:
        kind = next((kind for entry, kind in TRACES.items() if entry in own), "no DDPM")
        kind = "flow matching" if name.startswith("FlowMatch") else kind
        return f"its scheduler is {name} ({kind}), which has no betas."
    if config.get("use_flow_sigmas"):
        return f"its scheduler, {name}, is set to flow matching (use_flow_sigmas)."
    defaults = config.get("_use_default_values") or ()
    # where a base of another kind had no betas, diffusers takes those that no SDXL has
    betas = [config.get(entry) for entry in ("beta_start", "beta_end", "beta_schedule")]
    for entry, kind in TRACES.items():
        there = entry in config and entry not in defaults
        if (there and betas == NO_BETAS) or entry in own:
            return f"its scheduler, {name}, has {entry} in its configuration: {kind}."
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        return f"it predicts {shown(prediction, 60)} (prediction_type of its scheduler, {name})."
    if prediction == "v_prediction" and config.get("timestep_type") == "continuous":
        return f"its scheduler, {name}, has continuous timesteps (timestep_type): EDM."
    return _schedule_unknown_to_ddpm(scheduler)


def _arguments(kind: type) -> set[str]:
    """The names of what a class is made with."""
    return set(inspect.signature(kind.__init__).parameters) if "__init__" in vars(kind) else set()


def _schedule_unknown_to_ddpm(scheduler) -> str | None:
    """A sentence where DDPM's scheduler, by which is trained, does not know the betas."""
    from diffusers import DDPMScheduler

    try:
        DDPMScheduler.from_config(scheduler.config)
    except NotImplementedError:
        return f"DDPM does not know its beta_schedule {shown(scheduler.config.beta_schedule, 60)}."
    return None


def _kind_of_latents(pipe) -> str | None:
    """A sentence on what is foreign about a pipeline's latents; None where all is as in SDXL."""
    vae, unet = pipe.vae.config, pipe.unet.config
    for entry, nothing in (("latents_mean", 0.0), ("latents_std", 1.0), ("shift_factor", 0.0)):
        value = vae.get(entry)
        if value is not None and not torch.all(torch.as_tensor(value) == nothing):
            return f"its VAE has {entry} {shown(value, 60)}, which changes all latents."
    if {unet.in_channels, unet.out_channels} != {vae.latent_channels}:
        return (
            f"its U-Net takes {unet.in_channels} channels and gives {unet.out_channels}, and its "
            f"VAE has {vae.latent_channels} (a base for inpainting or editing?)."
        )
    if unet.get("time_cond_proj_dim"):
        return "its U-Net is told the guidance (time_cond_proj_dim): a distilled consistency model."
    return None
