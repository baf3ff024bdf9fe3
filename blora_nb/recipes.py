"""Small changes to the recipe, all off by default: how much the error of each sample counts."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from blora_nb.settings import TrainingSettings

if TYPE_CHECKING:
    from diffusers import DDPMScheduler


def snr(scheduler: "DDPMScheduler", timesteps: Tensor) -> Tensor:
    """Signal-to-noise ratio [batch] of timesteps: alphas_cumprod / (1 - alphas_cumprod)."""
    alphas = scheduler.alphas_cumprod.to(timesteps.device)[timesteps].float()
    return alphas / (1 - alphas)


def sample_weights(
    settings: TrainingSettings, scheduler: "DDPMScheduler", timesteps: Tensor, step: int
) -> Tensor | None:
    """The weight [batch] of each sample's mean squared error, or None where all count the same.

    min-SNR (arXiv 2303.09556): min(SNR, gamma)/SNR. x0 loss (ConsisLoRA, arXiv 2503.10614): 1/SNR
    turns the error of the noise into that of the picture. For a model that predicts the velocity,
    both are divided by SNR + 1 instead of SNR. With prior preservation the second half of the
    batch are class pictures; each half is averaged for itself.
    """
    weights = None
    x0_loss = settings.x0_loss_from is not None and step >= settings.x0_loss_from
    if x0_loss or settings.snr_gamma is not None:
        ratio = snr(scheduler, timesteps)
        wanted = torch.ones_like(ratio) if x0_loss else ratio.clamp(max=settings.snr_gamma)
        if scheduler.config.prediction_type == "v_prediction":
            weights = wanted / (ratio + 1)
        else:
            # SNR 0 is pure noise, which says nothing about the picture
            weights = wanted / ratio.clamp(min=1e-4)
    if settings.with_prior_preservation:
        halves = torch.ones(len(timesteps), device=timesteps.device)
        halves[len(timesteps) // 2 :] = settings.prior_loss_weight
        weights = 2 * halves if weights is None else 2 * halves * weights
    return weights
