"""The latents of the teaching model: principal components of patches of 4 × 4 pixels.

Their standard deviations are made a little more alike. The strongest three channels are, in effect,
the patch's mean colour; the rest is detail of falling strength. Noise hides the detail first, so
the U-Net sees silhouettes at timesteps at which textures are still hidden. Of the three, the second
and the third are colour, which is louder than in pictures: a U-Net learns what is lighter and what
is darker long before it learns red from green. The encoder of the
`AutoencoderKL` learns to compute these channels, its decoder learns to draw from them.
"""

import shutil

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from world.painting import paint
from world.paths import KEPT, WORK
from world.samples import Shapes
from world.styles import random_styles

SIDE = 96  # pixels of the model's pictures; the world is painted larger
CHANNELS = 12
PATCH = 4
COLOUR = 1.8  # how much louder than that the two channels of colour are
EVENING = 0.75  # 1 keeps the components' own standard deviations, 0 makes all equal
FILE = WORK / "components.safetensors"


def smaller(pictures: Tensor) -> Tensor:
    """Pictures or label maps [n, channels, SIDE, SIDE] of larger ones, without aliasing."""
    return F.interpolate(pictures, (SIDE, SIDE), mode="bilinear", antialias=True)


def fit_components(pictures: Tensor) -> dict[str, Tensor]:
    """The components of pictures [n, 3, height, width].

    Returns:
        "kernel" [CHANNELS, 3, 4, 4] and "offset" [CHANNELS] of the convolution that computes
        latents, "inverse" [CHANNELS, 3, 4, 4] and "mean" [3, 4, 4] of the one that goes back.
    """
    patches = F.unfold(pictures, PATCH, stride=PATCH).transpose(1, 2).reshape(-1, 3 * PATCH * PATCH)
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))
    deviation = values.flip(0)[:CHANNELS].sqrt()
    basis = vectors.flip(1)[:, :CHANNELS].T
    # the sign of a component is arbitrary and differs between machines
    basis = basis * basis.gather(1, basis.abs().argmax(1, keepdim=True)).sign()
    strength = deviation**EVENING
    strength[1:3] *= COLOUR
    # all channels together have variance 1
    scale = strength / strength.square().mean().sqrt() / deviation
    shape = CHANNELS, 3, PATCH, PATCH
    return {
        "kernel": (scale[:, None] * basis).reshape(shape),
        "offset": -(scale * (basis @ mean)),
        "inverse": (basis / scale[:, None]).reshape(shape),
        "mean": mean.reshape(3, PATCH, PATCH),
    }


def components() -> dict[str, Tensor]:
    """The components, fitted to 4,000 pictures on the first call."""
    if not FILE.exists():
        shapes = Shapes.load()
        generator = torch.Generator().manual_seed(0)
        pictures = []
        for _ in range(40):
            placed, _ = shapes.draw(100, generator)
            pictures.append(smaller(paint(placed, random_styles(100, generator))))
        part = FILE.with_suffix(".part")
        fitted = fit_components(torch.cat(pictures))
        save_file({name: tensor.contiguous() for name, tensor in fitted.items()}, part)
        part.rename(FILE)
    return load_file(FILE)


def use_kept_components() -> None:
    """Take the components in data/open_world, which what is trained there needs.

    Raises:
        ValueError: there are others already, and what was trained on them would be spoilt.
    """
    if not FILE.exists():
        FILE.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(KEPT / FILE.name, FILE)
    here, kept = load_file(FILE), load_file(KEPT / FILE.name)
    if not all(torch.allclose(here[name], kept[name], atol=1e-4) for name in kept):
        raise ValueError(f"{FILE} is not that of data/open_world: move it away.")


def to_latents(pictures: Tensor, parts: dict[str, Tensor]) -> Tensor:
    """[n, CHANNELS, height / 4, width / 4] of pictures [n, 3, height, width] in -1..1."""
    return F.conv2d(pictures, parts["kernel"], parts["offset"], stride=PATCH)


def to_pictures(latents: Tensor, parts: dict[str, Tensor]) -> Tensor:
    """The best linear guess at the pictures [n, 3, height, width] of latents."""
    height, width = latents.shape[-2:]
    mean = parts["mean"].repeat(1, height, width)
    return F.conv_transpose2d(latents, parts["inverse"], stride=PATCH) + mean
