"""Training samples: shapes in the frame, styles, and the pictures they make, new at each step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from world.painting import paint, place, put_on_badges, random_poses, swatches
from world.paths import WORK
from world.styles import (
    NAMED_STYLES,
    PLAIN,
    dark_on_light,
    random_styles,
    with_loud_effects,
    with_loud_patterns,
    without_effects,
    without_patterns,
)

# how often a drawing of each set is taken, beside one of an emoji set
SET_WEIGHTS = {"ph": 0.5, "lucide": 0.5, "letters": 0.5}
NAMED_SHARE = 0.15  # of the styles are named ones, the others random


@dataclass
class Shapes:
    """Drawings as label maps.

    Attributes:
        coverage: uint8 [n, 4, 128, 128]: main, second, accent, drawn line.
        names, sets: what each shows, and the icon set it comes from.
        weights: how often each is taken, beside the others.
    """

    coverage: Tensor
    names: list[str]
    sets: list[str]
    weights: Tensor

    @classmethod
    def load(cls, held_out: bool = False) -> "Shapes":
        """The shapes to train on, or those kept out of all training."""
        with np.load(WORK / "shapes.npz") as stored:
            chosen = np.flatnonzero(stored["held_out"] == held_out)
            coverage = torch.from_numpy(stored["coverage"][chosen])
            names = stored["names"][chosen].tolist()
            sets = stored["sets"][chosen].tolist()
        weights = torch.tensor([SET_WEIGHTS.get(icon_set, 1.0) for icon_set in sets])
        return cls(coverage, names, sets, weights)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random shapes in the frame [count, 4, 128, 128] in 0..1, and their rows [count]."""
        rows = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        placed = place(self.coverage[rows], random_poses(count, generator))
        return put_on_badges(placed, generator), rows


class Shares(NamedTuple):
    """What share of the styles is of a simple kind.

    Attributes:
        plain: the one plain style, black and grey on white.
        ordered: a light ground and a dark object, in any hue; of the others.
        flat: flat colours and lines only; of the others.
        loud: one thing that fills much of the picture, of all but the plain ones: in two of three
            a pattern of two colours far apart, in the others a strong texture or a shadow.
    """

    plain: float = 0.0
    ordered: float = 0.0
    flat: float = 0.0
    loud: float = 0.0


def training_styles(count: int, shares: Shares, generator: torch.Generator) -> Tensor:
    """Styles [count, NUMBERS]: random ones, some named ones, and shares of simple kinds."""

    def chosen(share: float) -> Tensor:
        return torch.rand(count, generator=generator) < share

    styles = random_styles(count, generator)
    named = torch.stack(list(NAMED_STYLES.values()))
    rows = torch.randint(len(named), (count,), generator=generator)
    is_named, is_flat = chosen(NAMED_SHARE), chosen(shares.flat)
    is_ordered, is_plain = chosen(shares.ordered), chosen(shares.plain)
    is_loud = chosen(shares.loud)
    styles = torch.where(is_flat[:, None], without_patterns(styles), styles)
    styles = torch.where(is_ordered[:, None], dark_on_light(styles), styles)
    styles = torch.where((is_named & ~is_flat & ~is_ordered)[:, None], named[rows], styles)
    loud_patterns = with_loud_patterns(styles, generator)
    loud_effects = with_loud_effects(styles, generator)
    loud = torch.where(chosen(2 / 3)[:, None], loud_patterns, loud_effects)
    styles = torch.where(is_loud[:, None], loud, styles)
    return torch.where(is_plain[:, None], PLAIN, styles)


class Batch(NamedTuple):
    """Training samples.

    Attributes:
        shapes: label maps [batch, 4, 96, 96] in 0..1.
        styles: [batch, NUMBERS].
        looks: `swatches` of the styles [batch, 6, 96, 96] in -1..1.
        latents: of the pictures [batch, 12, 24, 24].
        added: how much textures, glow and shadow change the latents [batch, 1, 24, 24], 0..1.
    """

    shapes: Tensor
    styles: Tensor
    looks: Tensor
    latents: Tensor
    added: Tensor


class Pool:
    """The last few thousand samples, of which batches are drawn.

    Each batch adds new ones; a sample is used about `uses` times before it is replaced.
    """

    def __init__(
        self,
        shapes: Shapes,
        encode: Callable[[Tensor], Tensor],
        shrink: Callable[[Tensor], Tensor],
        size: int = 6000,
        uses: float = 5,
    ) -> None:
        self.shapes, self.encode, self.shrink = shapes, encode, shrink
        self.size, self.uses = size, uses
        self.filled = self.next = 0
        self.kept: Batch | None = None  # shapes and looks in bytes

    def add(self, count: int, shares: Shares, generator: torch.Generator) -> None:
        """Paint new samples, in place of the oldest ones."""
        placed, _ = self.shapes.draw(count, generator)
        styles = training_styles(count, shares, generator)
        latents = self.encode(self.shrink(paint(placed, styles)))
        added = self._added(placed, styles, latents)
        shapes = (255 * self.shrink(placed).clamp(0, 1) + 0.5).byte()
        looks = (127.5 * (self.shrink(swatches(styles)) + 1) + 0.5).byte()
        new = Batch(shapes, styles, looks, latents, added)
        if self.kept is None:
            self.kept = Batch(*(t.new_empty(self.size, *t.shape[1:]) for t in new))
        places = (self.next + torch.arange(count)) % self.size
        for kept, tensor in zip(self.kept, new, strict=True):
            kept[places] = tensor
        self.next = (self.next + count) % self.size
        self.filled = min(self.size, self.filled + count)

    def _added(self, placed: Tensor, styles: Tensor, latents: Tensor) -> Tensor:
        """How far latents are from those of the same pictures without effects; at most 1."""
        added = torch.zeros(len(latents), 1, *latents.shape[2:])
        clean = without_effects(styles)
        changed = (clean != styles).any(1)
        if changed.any():
            bare = self.encode(self.shrink(paint(placed[changed], clean[changed])))
            change = (latents[changed] - bare).square().mean(1, keepdim=True).sqrt()
            added[changed] = change.clamp(max=1)
        return added

    def batch(self, count: int, shares: Shares, generator: torch.Generator) -> Batch:
        """Random samples of the pool, after new ones were added."""
        self.add(max(1, round(count / self.uses)), shares, generator)
        assert self.kept is not None
        rows = torch.randint(self.filled, (count,), generator=generator)
        drawn = Batch(*(kept[rows] for kept in self.kept))
        shapes, looks = drawn.shapes.float() / 255, drawn.looks.float() / 127.5 - 1
        return drawn._replace(shapes=shapes, looks=looks)
