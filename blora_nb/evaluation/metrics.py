"""How well it worked, in numbers: how much of the content was kept, how far the style moved.

There are two scorers with the same methods. Pictures of the teaching model are scored by a judge of
drawings (`judge.py`). Photographs and pictures of SDXL are scored by DINO, as in the paper's table
1, and by CLIP, as in its block analysis (section 4.1). The numbers of the two scorers are not
comparable.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from blora_nb.defaults import is_teaching_model
from blora_nb.evaluation.judge import JUDGE, Judge
from blora_nb.running.device import default_device

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

Images: TypeAlias = Sequence[Image.Image]

PHOTO, IN_STYLE = "A photo of a {}", "A picture in {} style"  # what CLIP is asked
DECIMALS = 2  # scores that differ by less count as equal where one is recommended
SMALLEST_RANGE = 0.05  # of scores that differ at all


class Scorer(Protocol):
    """What compares pictures with a picture: `JudgeScorer`, `EncoderScorer`, or one of your own."""

    def content_kept(self, images: Images, content_picture: Image.Image) -> list[float]:
        """A number for each image; higher is better."""

    def style_moved(self, images: Images, style_picture: Image.Image) -> list[float]:
        """A number for each image; higher is better."""


class JudgeScorer:
    """Scores drawings by the judge's cosines, from 0 (nothing alike) to 1 (the same)."""

    def __init__(self, judge: Judge | None = None) -> None:
        self.judge = judge or Judge.load()

    def content_kept(self, images: Images, content_picture: Image.Image) -> list[float]:
        """For each image: how much its shape is like that of the content picture."""
        shapes, _ = self.judge.embed([content_picture, *images])
        return _from_0(shapes[1:] @ shapes[0])

    def style_moved(self, images: Images, style_picture: Image.Image) -> list[float]:
        """For each image: how much its style is like that of the style picture."""
        _, styles = self.judge.embed([style_picture, *images])
        return _from_0(styles[1:] @ styles[0])

    def find(self, images: Images, pictures: Mapping[str, Image.Image]) -> list[tuple[str, str]]:
        """[(name, name), …]: of named pictures, the most like each image in shape, and in style."""
        shapes, styles = self.judge.embed(images)
        picture_shapes, picture_styles = self.judge.embed(list(pictures.values()))
        names = list(pictures)
        return _nearest(shapes @ picture_shapes.T, names, styles @ picture_styles.T, names)

    def name(self, images: Images) -> list[tuple[str, str]]:
        """[(object, style), …]: of the names that the judge knows, the nearest to each image.

        Some name is always the nearest, however far.
        """
        shapes, styles = self.judge.embed(images)
        content = shapes @ self.judge.named_objects.T
        style = styles @ self.judge.named_styles.T
        return _nearest(content, self.judge.objects, style, self.judge.styles)

    def says_content(self, images: Images, object_name: str) -> list[float]:
        """For each image: how much its shape is like the drawings of this object."""
        shapes, _ = self.judge.embed(images)
        return _from_0(shapes @ self.judge.named_objects[_place(object_name, self.judge.objects)])

    def says_style(self, images: Images, style_name: str) -> list[float]:
        """For each image: how much its style is like drawings in this style."""
        _, styles = self.judge.embed(images)
        return _from_0(styles @ self.judge.named_styles[_place(style_name, self.judge.styles)])


class EncoderScorer:
    """Scores any pictures by cosines, -1 to 1: two pictures by DINO, picture and words by CLIP.

    Args:
        dino, clip: hub ids or folders of a `ViTModel` and a `CLIPModel`. By default the paper's
            DINO ViT-B/8 and CLIP ViT-B/32, a download of 0.9 GB together.
        device: by default the best one that works.
    """

    def __init__(
        self,
        dino: str | Path = "facebook/dino-vitb8",
        clip: str | Path = "openai/clip-vit-base-patch32",
        device: str | torch.device | None = None,
    ) -> None:
        from transformers import AutoImageProcessor, CLIPModel, CLIPProcessor, ViTModel

        self.device = device or default_device()
        vit = ViTModel.from_pretrained(dino, add_pooling_layer=False, use_safetensors=True)
        self.dino = vit.eval().to(self.device)
        self.clip = CLIPModel.from_pretrained(clip, use_safetensors=True).eval().to(self.device)
        self.dino_processor = AutoImageProcessor.from_pretrained(dino)
        self.clip_processor = CLIPProcessor.from_pretrained(clip)

    def content_kept(self, images: Images, content_picture: Image.Image) -> list[float]:
        """For each image: the cosine of its DINO embedding with the content picture's.

        The paper reports 0.790 for B-LoRA.
        """
        return self._dino_cosines(images, content_picture)

    def style_moved(self, images: Images, style_picture: Image.Image) -> list[float]:
        """For each image: the cosine of its DINO embedding with the style picture's.

        The paper reports 0.881 for B-LoRA.
        """
        return self._dino_cosines(images, style_picture)

    def find(self, images: Images, pictures: Mapping[str, Image.Image]) -> list[tuple[str, str]]:
        """[(name, name), …]: of named pictures, the one most like each image.

        Twice the same name, because DINO looks at the picture as a whole.
        """
        known = self._dino_embeddings(list(pictures.values()))
        cosines, names = self._dino_embeddings(images) @ known.T, list(pictures)
        return _nearest(cosines, names, cosines, names)

    def name(self, images: Images) -> list[tuple[str, str]]:
        """[(object, style), …]: which of the course's words CLIP finds nearest to each image."""
        known = json.loads((JUDGE / "config.json").read_text(encoding="utf-8"))
        objects, styles = known["objects"], known["styles"]
        content = self._clip_cosines(images, [PHOTO.format(name) for name in objects])
        style = self._clip_cosines(images, [IN_STYLE.format(name) for name in styles])
        return _nearest(content, objects, style, styles)

    def says_content(self, images: Images, object_name: str) -> list[float]:
        """For each image: the cosine of its CLIP embedding with that of "A photo of a cat"."""
        return self._clip_cosines(images, [PHOTO.format(object_name)])[:, 0].tolist()

    def says_style(self, images: Images, style_name: str) -> list[float]:
        """For each image: the cosine of its CLIP embedding with that of "A picture in … style"."""
        return self._clip_cosines(images, [IN_STYLE.format(style_name)])[:, 0].tolist()

    def _dino_cosines(self, images: Images, picture: Image.Image) -> list[float]:
        embeddings = self._dino_embeddings([picture, *images])
        # rounding can leave a little more than 1
        return (embeddings[1:] @ embeddings[0]).clamp(-1, 1).tolist()

    @torch.no_grad()
    def _dino_embeddings(self, images: Images) -> Tensor:
        """[images, dim], of unit length."""
        rgb = [image.convert("RGB") for image in images]
        pixels = self.dino_processor(rgb, return_tensors="pt").to(self.device)
        return F.normalize(self.dino(**pixels).last_hidden_state[:, 0], dim=-1)

    @torch.no_grad()
    def _clip_cosines(self, images: Images, texts: list[str]) -> Tensor:
        """[images, texts]"""
        rgb = [image.convert("RGB") for image in images]
        inputs = self.clip_processor(text=texts, images=rgb, return_tensors="pt", padding=True)
        outputs = self.clip(**inputs.to(self.device))
        return outputs.image_embeds @ outputs.text_embeds.T  # CLIPModel has normalized both


def _place(name: str, names: Sequence[str]) -> int:
    if name not in names:
        raise ValueError(
            f"The judge has no name {name!r}, only {', '.join(names)}. A picture can be compared "
            "with any other: content_kept, style_moved."
        )
    return names.index(name)


def _from_0(cosines: Tensor) -> list[float]:
    """The cosines, with negative ones counted as 0."""
    return cosines.clamp(0, 1).tolist()


def _nearest(
    contents: Tensor, content_names: Sequence[str], styles: Tensor, style_names: Sequence[str]
) -> list[tuple[str, str]]:
    """The names with the highest scores in each row of scores [images, names]."""
    content, style = contents.argmax(1).tolist(), styles.argmax(1).tolist()
    return [(content_names[c], style_names[s]) for c, s in zip(content, style)]


def scorer_for(pipe: "StableDiffusionXLPipeline") -> JudgeScorer | EncoderScorer:
    """The `JudgeScorer` for the teaching model, the `EncoderScorer` for everything else."""
    return JudgeScorer() if is_teaching_model(pipe) else EncoderScorer()


def ranked(*scores: Sequence[float]) -> list[int]:
    """The places of pictures from best to worst, by the smallest score of each.

    A high score in one list does not make up for a low one in another.

    Args:
        scores: one or more lists of numbers, each with one for every picture.

    Raises:
        ValueError: there is no list, or they differ in length.
    """
    counts = {len(numbers) for numbers in scores}
    if len(counts) != 1:
        raise ValueError(
            "Pictures are ranked by one or more lists of scores of the same length; given are "
            f"{len(scores)} lists with {[len(numbers) for numbers in scores]} numbers."
        )
    weakest = [min(numbers) for numbers in zip(*scores, strict=True)]
    return sorted(range(len(weakest)), key=lambda i: -weakest[i])


def scored(scorer: Scorer, name: str, images: Images, picture: Image.Image) -> tuple[float, ...]:
    """What a scorer's method `name` says of pictures compared with one, as Python's numbers.

    Raises:
        ValueError: another number of scores than pictures, or one that is no ordinary number.
    """
    numbers = [float(score) for score in getattr(scorer, name)(images, picture)]
    if len(numbers) != len(images):
        raise ValueError(
            f"{name} gave {len(numbers)} scores for {len(images)} pictures. A scorer returns one "
            "number for each picture, in their order."
        )
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(
            f"{name} gave {numbers}, with which nothing can be compared. Look at the pictures; if "
            "the scorer runs in float16, load it in float32."
        )
    return tuple(numbers)


def mean_and_error(scores: Sequence[float]) -> tuple[float, float | None]:
    """The mean of scores over seeds and its standard error, which is None for a single seed."""
    error = stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else None
    return fmean(scores), error


class KeptAndMoved:
    """Content and style scores, a number for each picture, with means and standard errors."""

    content_scores: tuple[float, ...]
    style_scores: tuple[float, ...]

    @property
    def content_kept(self) -> float:
        """The mean of the content scores."""
        return mean_and_error(self.content_scores)[0]

    @property
    def style_moved(self) -> float:
        """The mean of the style scores."""
        return mean_and_error(self.style_scores)[0]

    @property
    def content_error(self) -> float | None:
        """The standard error of `content_kept`; None for a single picture."""
        return mean_and_error(self.content_scores)[1]

    @property
    def style_error(self) -> float | None:
        """The standard error of `style_moved`; None for a single picture."""
        return mean_and_error(self.style_scores)[1]


def non_dominated(first: Sequence[float], second: Sequence[float]) -> list[int]:
    """The places of the pairs of scores that no other pair dominates, in their order.

    A pair dominates another that is higher in neither score and lower in at least one.

    >>> non_dominated([0.9, 0.5, 0.4, 0.9], [0.1, 0.5, 0.5, 0.1])
    [0, 1, 3]
    """
    pairs = list(zip(first, second, strict=True))
    return [
        place
        for place, (one, two) in enumerate(pairs)
        if not any(a >= one and b >= two and (a, b) != (one, two) for a, b in pairs)
    ]


def balance(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """For each pair of scores the smaller one, each scaled from its lowest (0) to its highest (1).

    Scaled, because content kept and style moved have other lowest and highest values, above all as
    cosines. A range of less than 0.05 is mostly noise and counts as 0.05, from the highest down.

    >>> balance([0.7, 0.8, 0.9], [0.5, 0.4, 0.1])
    [0.0, 0.5, 0.0]
    """
    scaled = [_from_lowest_to_highest(first), _from_lowest_to_highest(second)]
    return [min(pair) for pair in zip(*scaled, strict=True)]


def _from_lowest_to_highest(scores: Sequence[float]) -> list[float]:
    rounded = [round(score, DECIMALS) for score in scores]
    highest = max(rounded)
    span = max(highest - min(rounded), SMALLEST_RANGE)
    # rounded again: equal scores are to stay equal
    return [round(1 - (highest - score) / span, 6) for score in rounded]


def most_balanced(
    first: Sequence[float], second: Sequence[float], distances: Sequence[float]
) -> int:
    """The place of the non-dominated pair of scores with the highest `balance`.

    Scores count to two decimals. Ties go to the smallest distance.

    >>> most_balanced([0.9, 0.7, 0.704, 0.2], [0.2, 0.6, 0.6, 0.7], [0, 2, 1, 0])
    2
    """
    rounded = [[round(score, DECIMALS) for score in scores] for scores in (first, second)]
    balances = balance(first, second)
    return min(
        non_dominated(*rounded), key=lambda place: (-balances[place], distances[place], place)
    )
