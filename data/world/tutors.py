"""Two small networks that speak to the teaching model's two blocks, only while it is trained.

The words of a prompt are 64 positions of 192 numbers. The first 96 numbers come from the first text
encoder and speak of content, the other 96 come from the second and speak of style. The last
positions, which have read every word of a short prompt, carry the message: 36 for content and 36
for style, one for each cell of a 6 × 6 grid. The others always say the same. A tutor says its
message in that form: the content tutor from the label map of a shape, the style tutor from the
numbers of a style and from what it looks like, place by place. So the two blocks hear every shape
and every style there is, not only those that have a name.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blora_nb.instant import TOKENS, ResidualConv, even
from blora_nb.instant import WIDTH as HALF
from world.latents import smaller
from world.painting import swatches
from world.styles import NUMBERS

POSITIONS = 64  # of a prompt


class ContentTutor(nn.Module):
    """Label maps [batch, 4, 96, 96] → tokens [batch, 36, 96], one a cell of a 6 × 6 grid."""

    def __init__(self) -> None:
        super().__init__()
        widths = (4, 32, 64, 96, 160)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers.append(nn.Conv2d(before, after, 3, stride=2, padding=1))
            layers.append(ResidualConv(after) if after > 64 else nn.SiLU())
        self.trunk = nn.Sequential(*layers)
        self.speak = nn.Conv2d(widths[-1], HALF, 1)
        self.places = nn.Parameter(0.5 * torch.randn(TOKENS, HALF))

    def forward(self, label_maps: Tensor) -> Tensor:
        cells = self.speak(self.trunk(2 * label_maps - 1))
        return even(cells.flatten(2).transpose(1, 2) + self.places)


class Readout(nn.Module):
    """Reads from a tutor's tokens the maps of which they speak, as a lesson for the tutor.

    The U-Net's loss alone does not ask a tutor for what fills few pixels: a linear layer found a
    tenth of the accents in the content tutor's tokens, and the pattern of the main part changed
    those of the style tutor by a tenth of what the pattern of the ground did. Neither was drawn.

    Attributes:
        noise: standard deviation of noise over the tokens, whose own is 1. A tutor that is read
            through noise has to say everything loudly.
        detail: places a side that are told apart in each cell.
    """

    def __init__(self, channels: int, noise: float = 0.0, detail: int = 4) -> None:
        super().__init__()
        self.read = nn.Linear(HALF, channels * detail**2)
        self.noise, self.detail = noise, detail

    def unsaid(self, tokens: Tensor, maps: Tensor, generator: torch.Generator) -> Tensor:
        """Of the variance of each map [channels], the share that is not found in the tokens.

        Args:
            tokens: [batch, 36, 96] of a tutor.
            maps: [batch, channels, side, side], of which they speak.
        """
        wanted = F.adaptive_avg_pool2d(maps, 6 * self.detail)
        noise = self.noise * torch.randn(tokens.shape, generator=generator)
        found = self.read(tokens + noise).transpose(1, 2).unflatten(2, (6, 6))
        found = F.pixel_shuffle(found, self.detail)
        spread = wanted.var((0, 2, 3)).clamp(min=1e-3)
        return (found - wanted).square().mean((0, 2, 3)) / spread


def small_swatches(styles: Tensor) -> Tensor:
    """`swatches` of styles at the size of the model's pictures: [batch, 6, 96, 96]."""
    return smaller(swatches(styles))


class StyleTutor(nn.Module):
    """The numbers of styles [batch, NUMBERS] → tokens [batch, 36, 96], one a cell of a 6 × 6 grid.

    Each cell is told how ground and main part look there. From the numbers alone the U-Net never
    learned a pattern: where its stripes are is a product of frequency, angle and place.
    """

    def __init__(self, width: int = 384) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(NUMBERS, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, TOKENS * HALF),
        )
        self.direct = nn.Linear(NUMBERS, HALF)  # the same in every token
        self.places = nn.Parameter(0.5 * torch.randn(TOKENS, HALF))
        self.look = nn.Sequential(
            nn.Conv2d(6, 64, 4, stride=4),
            nn.SiLU(),
            nn.Conv2d(64, 256, 4, stride=4),
            nn.SiLU(),
            nn.Conv2d(256, HALF, 1),
        )
        # as loud as the numbers; with PyTorch's own start a sixth of it
        nn.init.normal_(self.look[-1].get_parameter("weight"), std=0.35)

    def forward(self, styles: Tensor, looks: Tensor | None = None) -> Tensor:
        """Tokens of styles.

        Args:
            looks: their `small_swatches` [batch, 6, 96, 96], where these are painted already.
        """
        looks = small_swatches(styles) if looks is None else looks
        said = self.layers(styles).unflatten(1, (TOKENS, HALF))
        seen = self.look(looks).flatten(2).transpose(1, 2)
        return even(said + self.direct(styles)[:, None] + seen + self.places)


class Tutors(nn.Module):
    """Both tutors, and the neutral words that everything else hears."""

    def __init__(self) -> None:
        super().__init__()
        self.content, self.style = ContentTutor(), StyleTutor()
        self.neutral = nn.Parameter(torch.randn(POSITIONS, 2 * HALF))

    def quiet(self) -> tuple[Tensor, Tensor]:
        """What stands in the place of a message that is not said: [36, 96] each."""
        return self.neutral[-TOKENS:, :HALF], self.neutral[-TOKENS:, HALF:]

    def words(self, content: Tensor | None, style: Tensor | None, count: int) -> Tensor:
        """Prompts [count, 64, 192] with messages [count, 36, 96] for content, style, or both.

        The rest, and a message that is None, is neutral.
        """
        neutral = self.neutral.expand(count, -1, -1)
        halves = []
        for message, half in ((content, neutral[..., :HALF]), (style, neutral[..., HALF:])):
            if message is not None:
                half = torch.cat([half[:, : -message.shape[1]], message], 1)
            halves.append(half)
        return torch.cat(halves, 2)
