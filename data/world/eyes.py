"""Two networks that look at a picture and say what the tutors would say of it.

The tutors are told the shape and the style; the eyes have to see them. With an eye a picture of any
origin becomes the words that the teaching model's two blocks understand, at once.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from world.tutors import CONTENT_TOKENS, HALF, STYLE_TOKENS, ResidualConv, even


def trunk(widths: tuple[int, ...]) -> nn.Sequential:
    """Levels that halve the side, each with a residual block."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers.append(nn.Conv2d(before, after, 3, stride=2, padding=1))
        layers.append(ResidualConv(after))
    return nn.Sequential(*layers)


class Eyes(nn.Module):
    """Pictures [batch, 3, 96, 96] in -1..1 → content [batch, 36, 96] and style [batch, 16, 96]."""

    def __init__(self) -> None:
        super().__init__()
        self.shape_trunk = trunk((3, 24, 48, 96, 192))
        self.everywhere = nn.Linear(192, 192)  # what is ground and what is not, seen as a whole
        self.shape_after = ResidualConv(192)
        self.shape_head = nn.Conv2d(192, HALF, 1)
        self.shape_places = nn.Parameter(0.5 * torch.randn(CONTENT_TOKENS, HALF))
        self.style_trunk = trunk((3, 24, 48, 96, 160))
        self.style_head = nn.Sequential(
            nn.Linear(3 * 160, 512),
            nn.SiLU(),
            nn.Linear(512, STYLE_TOKENS * HALF),
        )
        self.style_places = nn.Parameter(0.5 * torch.randn(STYLE_TOKENS, HALF))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        shape = self.shape_trunk(pictures)
        whole = self.everywhere(shape.mean((2, 3)))[..., None, None]
        cells = self.shape_head(self.shape_after(shape + whole))
        content = even(cells.flatten(2).transpose(1, 2) + self.shape_places)
        looks = self.style_trunk(pictures)
        border = torch.cat([looks[..., 0, :], looks[..., -1, :], looks[..., 0], looks[..., -1]], 2)
        statistics = torch.cat([looks.mean((2, 3)), looks.std((2, 3)), border.mean(2)], 1)
        style = self.style_head(statistics).unflatten(1, (STYLE_TOKENS, HALF))
        return content, even(style + self.style_places)
