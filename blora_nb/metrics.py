"""How well it worked, in numbers: a judge that names the object and the style of a drawing.

The judge knows the drawings of `data/drawings.py` and nothing else; it is trained by `data/train_judge.py`.
"""

import json
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from .images import to_tensor
from .models import DATA

JUDGE = DATA / "judge"
SIDE = 48  # pixels the judge looks at


class Judge(nn.Module):
    """A small convolutional network with two heads, one for the object and one for the style."""

    def __init__(self, objects, styles):
        super().__init__()
        self.objects, self.styles = list(objects), list(styles)
        layers, width = [], 3
        for out in (16, 32, 64, 96):
            layers += [nn.Conv2d(width, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(), nn.Conv2d(out, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)]
            width = out
        self.features = nn.Sequential(*layers)
        self.object_head = nn.Linear(width * 9, len(self.objects))
        self.style_head = nn.Linear(width * 9, len(self.styles))

    def forward(self, pixels):
        """Logits [batch, objects] and [batch, styles] for pixels [batch, 3, 48, 48] in -1..1."""
        features = self.features(pixels).flatten(1)
        return self.object_head(features), self.style_head(features)

    @classmethod
    def load(cls, folder=JUDGE):
        from safetensors.torch import load_file

        config = json.loads((Path(folder) / "config.json").read_text())
        judge = cls(config["objects"], config["styles"])
        judge.load_state_dict({key: t.float() for key, t in load_file(Path(folder) / "judge.safetensors").items()})
        return judge.eval()

    @torch.no_grad()
    def name(self, images):
        """[(object, style), …] for PIL images of any size."""
        pixels = torch.cat([to_tensor(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)) for image in images])
        objects, styles = self(pixels)
        return [(self.objects[o], self.styles[s]) for o, s in zip(objects.argmax(1).tolist(), styles.argmax(1).tolist())]
