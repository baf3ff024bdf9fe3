"""The judge of drawings: how alike two pictures are in shape, and how alike in style, whatever else they show.

A small convolutional network with two heads, trained by `data/train_open_judge.py` on drawings of the teaching model's
world; held-out shapes and styles, and everything drawn by hand, are kept out of it. It has not been trained yet; what the
course measures with is `blora_nb.metrics.Judge`.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from blora_nb.files.images import to_tensor
from world.paths import WORK

JUDGE = WORK / "judge"
SIDE = 64  # pixels that the judge looks at
LENGTH = 96  # numbers of an embedding


class Judge(nn.Module):
    """Pictures [batch, 3, 64, 64] in -1..1 → embeddings of shape and of style, each [batch, 96] of unit length.

    Attributes:
        objects, styles: the names that it knows; it finds the nearest of them to a picture.
    """

    def __init__(self, objects: Sequence[str] = (), styles: Sequence[str] = ()) -> None:
        super().__init__()
        self.objects, self.styles = list(objects), list(styles)
        self.shape_trunk, self.style_trunk = trunk((24, 48, 96, 160)), trunk((24, 48, 96, 128))
        self.shape_head = nn.Linear(160 * 16, LENGTH)
        self.style_head = nn.Linear(2 * 128 + 128, LENGTH)
        self.register_buffer("named_objects", torch.zeros(len(self.objects), LENGTH))
        self.register_buffer("named_styles", torch.zeros(len(self.styles), LENGTH))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        seen, looks = self.shape_trunk(pixels), self.style_trunk(pixels)
        # of a style: the mean and the spread of what is there, and what the border shows
        border = torch.cat(
            [looks[..., 0, :], looks[..., -1, :], looks[..., 0], looks[..., -1]], 2
        ).mean(2)
        texture = torch.cat([looks.mean((2, 3)), looks.std((2, 3)), border], 1)
        shape, style = self.shape_head(seen.flatten(1)), self.style_head(texture)
        return F.normalize(shape, dim=1), F.normalize(style, dim=1)

    @classmethod
    def load(cls, folder: Path = JUDGE) -> "Judge":
        """The judge as it was trained last."""
        from safetensors.torch import load_file

        config = json.loads((Path(folder) / "config.json").read_text())
        judge = cls(config["objects"], config["styles"])
        weights = load_file(Path(folder) / "judge.safetensors")
        judge.load_state_dict(
            {k: t.float() if t.is_floating_point() else t for k, t in weights.items()}
        )
        return judge.eval()

    @torch.no_grad()
    def embed(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Embeddings of shape and of style, each [images, 96], of PIL images of any size."""
        size = (SIDE, SIDE)
        small = [image.convert("RGB").resize(size, Image.Resampling.BOX) for image in images]
        return self(torch.cat([to_tensor(image) for image in small]))

    def name(self, images: Sequence[Image.Image]) -> list[tuple[str, str]]:
        """[(object, style), …]: the nearest names to each image. Something is always nearest: see how near."""
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
