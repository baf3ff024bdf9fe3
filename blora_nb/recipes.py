"""Small changes to the recipe, all off by default: how much each sample's error counts."""

import torch


def snr(scheduler, timesteps):
    """Signal-to-noise ratio [batch] of timesteps: alphas_cumprod / (1 - alphas_cumprod)."""
    alphas = scheduler.alphas_cumprod.to(timesteps.device)[timesteps].float()
    return alphas / (1 - alphas)


def sample_weights(settings, scheduler, timesteps, step):
    """The weight [batch] of each sample's mean squared error, or None where all count the same.

    min-SNR (arXiv 2303.09556): min(SNR, gamma)/SNR. x0 loss (ConsisLoRA, arXiv 2503.10614): 1/SNR turns the error of the noise
    into that of the picture. For a model that predicts the velocity both are divided by SNR + 1 instead of SNR. With prior
    preservation the second half of the batch are class pictures; each half is averaged for itself.
    """
    weights, velocity = None, scheduler.config.prediction_type == "v_prediction"
    x0 = settings.x0_loss_from is not None and step >= settings.x0_loss_from
    if x0 or settings.snr_gamma is not None:
        ratio = snr(scheduler, timesteps)
        wanted = torch.ones_like(ratio) if x0 else ratio.clamp(max=settings.snr_gamma)
        weights = wanted / (
            ratio + 1 if velocity else ratio.clamp(min=1e-4)
        )  # SNR 0: pure noise, of which no picture can be told
    if settings.with_prior_preservation:
        halves = torch.ones(len(timesteps), device=timesteps.device)
        halves[len(timesteps) // 2 :] = settings.prior_loss_weight
        weights = 2 * halves if weights is None else 2 * halves * weights
    return weights
