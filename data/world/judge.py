"""The judge of drawings: how alike two pictures are in shape, and how alike in style.

A small convolutional network with two heads, trained by `data/train_open_judge.py` on drawings of
the teaching model's world; held-out shapes and styles, and everything drawn by hand, are kept out
of its training. It has not been trained yet; the course measures with `blora_nb.metrics.Judge`.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from blora_nb.files.images import to_tensor
from world.paths import WORK

JUDGE = WORK / "judge"
SIDE = 64  # pixels that the judge looks at
LENGTH = 96  # numbers of an embedding


class Judge(nn.Module):
    """Pictures [batch, 3, 64, 64] in -1..1 → embeddings of shape and of style, each [batch, 96].

    The embeddings have unit length.

    Attributes:
        objects, styles: the names that it knows, of which it finds the nearest to a picture.
    """

    def __init__(self, objects: Sequence[str] = (), styles: Sequence[str] = ()) -> None:
        super().__init__()
        self.objects = list(objects)
        self.styles = list(styles)
        self.shape_trunk = trunk((24, 48, 96, 160))
        self.style_trunk = trunk((24, 48, 96, 128))
        self.shape_head = nn.Linear(160 * 16, LENGTH)
        self.style_head = nn.Linear(2 * 128 + 128, LENGTH)
        self.register_buffer("named_objects", torch.zeros(len(self.objects), LENGTH))
        self.register_buffer("named_styles", torch.zeros(len(self.styles), LENGTH))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        shape = self.shape_head(self.shape_trunk(pixels).flatten(1))
        looks = self.style_trunk(pixels)
        # a style: mean and standard deviation over the picture, and the mean along its border
        border = torch.cat([looks[..., 0, :], looks[..., -1, :], looks[..., 0], looks[..., -1]], 2)
        statistics = [looks.mean((2, 3)), looks.std((2, 3)), border.mean(2)]
        style = self.style_head(torch.cat(statistics, 1))
        return F.normalize(shape, dim=1), F.normalize(style, dim=1)

    @classmethod
    def load(cls, folder: Path = JUDGE) -> "Judge":
        """The judge as it was trained last.

        Raises:
            FileNotFoundError: it has not been trained yet.
        """
        if not (folder / "config.json").exists():
            raise FileNotFoundError(f"No judge in {folder}: run data/train_open_judge.py first.")
        config = json.loads((folder / "config.json").read_text())
        judge = cls(config["objects"], config["styles"])
        # stored as float16; copied into parameters of float32
        judge.load_state_dict(load_file(folder / "judge.safetensors"))
        return judge.eval()

    @torch.no_grad()
    def embed(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Embeddings of shape and of style, each [images, 96], of PIL images of any size."""
        size = (SIDE, SIDE)
        small = [image.convert("RGB").resize(size, Image.Resampling.BOX) for image in images]
        return self(torch.cat([to_tensor(image) for image in small]))

    def name(self, images: Sequence[Image.Image]) -> list[tuple[str, str]]:
        """The nearest object and style to each image. Some name is always nearest, however far."""
        shapes, styles = self.embed(images)
        objects = (shapes @ self.named_objects.T).argmax(1).tolist()
        looks = (styles @ self.named_styles.T).argmax(1).tolist()
        return [(self.objects[o], self.styles[s]) for o, s in zip(objects, looks, strict=True)]


def trunk(widths: tuple[int, ...]) -> nn.Sequential:
    """Four levels of two convolutions, each halving the side: 64 → 4."""
    layers: list[nn.Module] = []
    before = 3
    for width in widths:
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        before = width
    return nn.Sequential(*layers)
