"""The judge: how alike are two drawings in shape, and how alike in style?

A small convolutional network with two heads, trained by `data/train_judge.py` on the drawings of
the teaching model's world. Held-out shapes and styles, and all that was drawn by hand, were kept
out of its training. The first head puts drawings of the same shape side by side, in whatever style
they are; the second puts drawings of the same style side by side, whatever they show. The more a
picture is blurred, cut or scribbled over, the less it resembles the original.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn

from blora_nb.assets import DATA
from blora_nb.files.images import read_image, to_tensor
from blora_nb.instant import statistics

JUDGE = DATA / "judge"
JUDGE_SIDE = 64  # pixels that the judge looks at
LENGTH = 96  # numbers of an embedding


class Judge(nn.Module):
    """Pictures [batch, 3, 64, 64] in -1..1 → embeddings of shape and of style, each [batch, 96].

    The embeddings have unit length, so that their products are cosines.

    Attributes:
        objects, styles: the names that it knows.
        named_objects, named_styles: their embeddings, [names, 96].
    """

    named_objects: Tensor
    named_styles: Tensor

    def __init__(self, objects: Sequence[str] = (), styles: Sequence[str] = ()) -> None:
        super().__init__()
        self.objects = list(objects)
        self.styles = list(styles)
        self.shape_trunk = judge_trunk((24, 48, 96, 160))
        self.style_trunk = judge_trunk((24, 48, 96, 128))
        self.shape_head = nn.Linear(160 * 16, LENGTH)
        self.style_head = nn.Linear(3 * 128, LENGTH)
        self.register_buffer("named_objects", torch.zeros(len(self.objects), LENGTH))
        self.register_buffer("named_styles", torch.zeros(len(self.styles), LENGTH))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return self.shape(pixels), self.style(pixels)

    def shape(self, pixels: Tensor) -> Tensor:
        """Embeddings [batch, 96] of what is where, whatever it is painted with."""
        return F.normalize(self.shape_head(self.shape_trunk(pixels).flatten(1)), dim=1)

    def style(self, pixels: Tensor) -> Tensor:
        """Embeddings [batch, 96] of how it is painted, whatever it shows."""
        return F.normalize(self.style_head(statistics(self.style_trunk(pixels))), dim=1)

    @classmethod
    def load(cls, folder: str | Path = JUDGE) -> "Judge":
        """The judge of the course, or one that `data/train_judge.py` wrote into a folder.

        Raises:
            FileNotFoundError: there is none in the folder.
        """
        from safetensors.torch import load_file

        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        judge = cls(config["objects"], config["styles"])
        # stored as float16; copied into parameters of float32
        judge.load_state_dict(load_file(Path(folder) / "judge.safetensors"))
        return judge.eval()

    @torch.no_grad()
    def embed(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Embeddings of shape and of style, each [images, 96], of PIL images of any size.

        Only the middle square is compared, as in training.
        """
        pictures = [read_image(image) for image in images]
        box, size = Image.Resampling.BOX, (JUDGE_SIDE, JUDGE_SIDE)
        small = [ImageOps.fit(picture, size, box) for picture in pictures]
        return self(torch.cat([to_tensor(image) for image in small]))


def judge_trunk(widths: tuple[int, ...]) -> nn.Sequential:
    """Four levels of two convolutions, each halving the side: 64 → 4."""
    layers: list[nn.Module] = []
    before = 3
    for width in widths:
        layers += [nn.Conv2d(before, width, 3, stride=2, padding=1), nn.BatchNorm2d(width)]
        layers += [nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)]
        layers.append(nn.ReLU())
        before = width
    return nn.Sequential(*layers)
