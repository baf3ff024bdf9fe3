"""How well it worked, in numbers: how much of the content was kept, how far the style moved.

Two scorers with the same methods. The teaching model's drawings are scored by a judge that knows `data/drawings.py` and
nothing else (trained by `data/train_judge.py`); photographs and the real SDXL's pictures by DINO, as in the paper's
table 1, and by CLIP, as in its block analysis (section 4.1). Numbers of the two are not comparable.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from blora_nb.assets import DATA
from blora_nb.defaults import TINY_DEFAULTS, defaults_for
from blora_nb.files.images import to_tensor
from blora_nb.running.device import default_device

JUDGE = DATA / "judge"
SIDE = 48  # pixels the judge looks at
PHOTO, IN_STYLE = "A photo of a {}", "A picture in {} style"  # what CLIP is asked


class Judge(nn.Module):
    """A small convolutional network with two heads, one for the object and one for the style."""

    def __init__(self, objects, styles):
        super().__init__()
        self.objects, self.styles = list(objects), list(styles)
        layers, width = [], 3
        for out in (16, 32, 64, 96):
            layers += [
                nn.Conv2d(width, out, 3, padding=1),
                nn.BatchNorm2d(out),
                nn.ReLU(),
                nn.Conv2d(out, out, 3, padding=1),
                nn.BatchNorm2d(out),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
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
        judge.load_state_dict(
            {key: t.float() for key, t in load_file(Path(folder) / "judge.safetensors").items()}
        )
        return judge.eval()

    @torch.no_grad()
    def probabilities(self, images):
        """[images, objects] and [images, styles] for PIL images of any size; every row sums to 1."""
        pixels = torch.cat(
            [
                to_tensor(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX))
                for image in images
            ]
        )
        return tuple(logits.softmax(1) for logits in self(pixels))

    def name(self, images):
        """[(object, style), …] for PIL images of any size."""
        objects, styles = self.probabilities(images)
        return [
            (self.objects[o], self.styles[s])
            for o, s in zip(objects.argmax(1).tolist(), styles.argmax(1).tolist())
        ]


class JudgeScorer:
    """Scores drawings by the judge's probabilities, 0 to 1."""

    def __init__(self, judge=None):
        self.judge = judge or Judge.load()

    def content_kept(self, images, content_picture):
        """For each image: how sure the judge is that it shows the object of the content picture."""
        return self._agreement(images, content_picture, 0)

    def style_moved(self, images, style_picture):
        """For each image: how sure the judge is that it has the style of the style picture."""
        return self._agreement(images, style_picture, 1)

    def _agreement(self, images, picture, which):
        expected = self.judge.probabilities([picture])[
            which
        ]  # [1, classes]; nearly all on one class
        return self.judge.probabilities(images)[which][:, expected.argmax()].tolist()

    def name(self, images):
        """[(object, style), …]: the judge's verdict on each image."""
        return self.judge.name(images)

    def says_content(self, images, object_name):
        """For each image: how sure the judge is that it shows this object."""
        return self.judge.probabilities(images)[0][
            :, self.judge.objects.index(object_name)
        ].tolist()

    def says_style(self, images, style_name):
        """For each image: how sure the judge is that it has this style."""
        return self.judge.probabilities(images)[1][:, self.judge.styles.index(style_name)].tolist()


class EncoderScorer:
    """Scores any pictures: picture against picture by DINO, picture against words by CLIP; cosines, -1 to 1.

    Args:
        dino, clip: hub ids or folders of a `ViTModel` and a `CLIPModel`. By default the paper's DINO ViT-B/8 and CLIP
            ViT-B/32, 0.9 GB to download together.
    """

    def __init__(
        self, dino="facebook/dino-vitb8", clip="openai/clip-vit-base-patch32", device=None
    ):
        from transformers import AutoImageProcessor, CLIPModel, CLIPProcessor, ViTModel

        self.device = device or default_device()
        self.dino = (
            ViTModel.from_pretrained(dino, add_pooling_layer=False, use_safetensors=True)
            .eval()
            .to(self.device)
        )
        self.clip = CLIPModel.from_pretrained(clip, use_safetensors=True).eval().to(self.device)
        self.dino_processor, self.clip_processor = (
            AutoImageProcessor.from_pretrained(dino),
            CLIPProcessor.from_pretrained(clip),
        )

    def content_kept(self, images, content_picture):
        """For each image: the cosine of its DINO embedding with the content picture's. The paper reports 0.790 for B-LoRA."""
        return self._like(images, content_picture)

    def style_moved(self, images, style_picture):
        """For each image: the cosine of its DINO embedding with the style picture's. The paper reports 0.881 for B-LoRA."""
        return self._like(images, style_picture)

    @torch.no_grad()
    def _like(self, images, picture):
        pixels = self.dino_processor(
            [image.convert("RGB") for image in [picture, *images]], return_tensors="pt"
        ).to(self.device)
        embeddings = F.normalize(
            self.dino(**pixels).last_hidden_state[:, 0], dim=-1
        )  # [1 + images, dim]: the CLS token
        return (
            (embeddings[1:] @ embeddings[0]).clamp(-1, 1).tolist()
        )  # rounding could leave a little more than 1

    @torch.no_grad()
    def _cosines(self, images, texts):
        """[images, texts]"""
        inputs = self.clip_processor(
            text=texts,
            images=[image.convert("RGB") for image in images],
            return_tensors="pt",
            padding=True,
        ).to(self.device)
        outputs = self.clip(**inputs)
        return (
            F.normalize(outputs.image_embeds, dim=-1) @ F.normalize(outputs.text_embeds, dim=-1).T
        )

    def name(self, images):
        """[(object, style), …]: which of the course's words CLIP finds nearest to each image."""
        known = json.loads((JUDGE / "config.json").read_text())
        content = (
            self._cosines(images, [PHOTO.format(name) for name in known["objects"]])
            .argmax(1)
            .tolist()
        )
        style = (
            self._cosines(images, [IN_STYLE.format(name) for name in known["styles"]])
            .argmax(1)
            .tolist()
        )
        return [(known["objects"][c], known["styles"][s]) for c, s in zip(content, style)]

    def says_content(self, images, object_name):
        """For each image: the cosine of its CLIP embedding with that of "A photo of a cat"."""
        return self._cosines(images, [PHOTO.format(object_name)])[:, 0].tolist()

    def says_style(self, images, style_name):
        """For each image: the cosine of its CLIP embedding with that of "A picture in neon style"."""
        return self._cosines(images, [IN_STYLE.format(style_name)])[:, 0].tolist()


def scorer_for(pipe):
    """The `JudgeScorer` for the teaching model, the `EncoderScorer` for everything else."""
    return JudgeScorer() if defaults_for(pipe) is TINY_DEFAULTS else EncoderScorer()


def ranked(*scores):
    """The places of pictures from best to worst: by the smallest of their scores, so that none makes up for another.

    Args:
        scores: lists of numbers, each with one for every picture.
    """
    weakest = [min(numbers) for numbers in zip(*scores)]
    return sorted(range(len(weakest)), key=lambda i: -weakest[i])
