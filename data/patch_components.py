"""The latents of the teaching model: principal components of 8 × 8 pixel patches, their spread
evened out a little.

The strongest three channels are, in effect, the patch's mean colour, the rest is detail in falling
strength. Noise hides
the detail first, so the U-Net sees silhouettes at moments when textures are still hidden. The
encoder of the
`AutoencoderKL` learns to compute these channels, its decoder learns to draw from them.
"""

import torch
import torch.nn.functional as F

from training_pictures import WORK, load_pictures

CHANNELS = 12
EVENING = 0.75  # 1 keeps the components' own spread, 0 makes all equal
NOISE = 0.03  # spread of the posterior, in latent units


def to_pixels(pictures):
    """uint8 array [n, height, width, 3] to float32 [n, 3, height, width] in -1..1."""
    return torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1


def components():
    """{"kernel": [CHANNELS, 3, 8, 8], "offset": [CHANNELS]}: latents are one strided convolution
    of the pixels."""
    path = WORK / "components.pt"
    if not path.exists():
        patches = (
            F.unfold(to_pixels(load_pictures()[:3000]), 8, stride=8)
            .transpose(1, 2)
            .reshape(-1, 192)
        )
        mean = patches.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov(patches.T))
        spread, basis = values.flip(0)[:CHANNELS].sqrt(), vectors.flip(1)[:, :CHANNELS].T
        basis = (
            basis * basis.gather(1, basis.abs().argmax(1, keepdim=True)).sign()
        )  # the sign is arbitrary, and differs between machines
        strength = spread**EVENING
        scale = (
            strength / strength.square().mean().sqrt() / spread
        )  # all channels together have variance 1
        torch.save(
            {
                "kernel": (scale[:, None] * basis).reshape(CHANNELS, 3, 8, 8),
                "offset": -(scale * (basis @ mean)),
            },
            path,
        )
    return torch.load(path, weights_only=True)


def latents_of(pixels, parts):
    """float32 [n, CHANNELS, height / 8, width / 8]."""
    return F.conv2d(
        pixels, parts["kernel"].to(pixels.device), parts["offset"].to(pixels.device), stride=8
    )
