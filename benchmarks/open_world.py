"""The separation table of the open world, with pictures that the teaching model has never seen.

    python data/world/fetch_shapes.py && python data/train_open_judge.py    # once
    python benchmarks/open_world.py    # over an hour on two cores; open_world.md, .json and .png

Every picture shows a drawing of a held-out thing in a style that no training picture has (a pattern
or a hue that was held out). For each of 48 pairs (content picture, style picture) and 3 seeds:
which of 100 pictures is the result most alike in shape, and which in style? The judge has seen none
of them. Steps, learning rate and rank, also of the ordinary LoRAs, are to be chosen on another set
of held-out pictures (`--set tuning`), which writes nothing but a figure.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "data"))

from blora_nb.assets import TINY_SDXL, fingerprint
from blora_nb.figures import picture_grid
from blora_nb.generation import sample
from blora_nb.lora import apply, remove
from blora_nb.pipeline import load_pipeline
from blora_nb.settings import TrainingSettings
from blora_nb.training import train
from ordinary_lora import apply_both, train_everywhere
from report import HERE, OUTPUTS, shares, summary, table, write
from world.captions import EMOJI_SETS
from world.judge import Judge
from world.painting import paint, place, random_poses
from world.samples import Shapes
from world.styles import random_styles

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

PROMPT = "A [c] in [s] style"
CANDIDATES = 100
SETS = {"tuning": 0, "measured": 1}  # every second held-out name belongs to one of them
REBUILT = "both halves of one picture"


@dataclass
class HeldOut:
    """100 pictures of held-out things, each in a held-out style; the pairs come first."""

    pictures: list[Image.Image]
    names: list[str]

    @classmethod
    def draw(cls, which: str, pairs: int) -> "HeldOut":
        """The pictures of one of `SETS`.

        A name is drawn once. What is missing to 100 are drawings by other designers, of names that
        no pair has, so that no result can be right and be found nearer to another drawing of the
        same thing.

        Raises:
            ValueError: there are not enough names or drawings.
        """
        shapes = Shapes.load(held_out=True)
        drawn = [row for row, icon_set in enumerate(shapes.sets) if icon_set in EMOJI_SETS]
        names = sorted({shapes.names[row] for row in drawn})[SETS[which] :: 2]
        generator = torch.Generator().manual_seed(100 + SETS[which])
        order = torch.randperm(len(drawn), generator=generator).tolist()
        first: dict[str, int] = {}
        others = []
        for row in (drawn[place_] for place_ in order):
            name = shapes.names[row]
            if name in names and name not in first:
                first[name] = row
            elif name in names:
                others.append(row)
        of_pairs = list(first)[:pairs]
        rows = [*first.values(), *(row for row in others if shapes.names[row] not in of_pairs)]
        rows = rows[:CANDIDATES]
        if len(first) < pairs or len(rows) < CANDIDATES:
            raise ValueError(
                f"There are {len(first)} held-out names and {len(rows)} drawings for {pairs} pairs "
                f"and {CANDIDATES} candidates: take fewer pairs."
            )
        placed = place(shapes.coverage[torch.tensor(rows)], random_poses(len(rows), generator))
        painted = paint(placed, random_styles(len(rows), generator, held_out=True))
        return cls([to_image(picture) for picture in painted], [shapes.names[r] for r in rows])


def to_image(picture: Tensor) -> Image.Image:
    """A PIL image of a tensor [3, height, width] in -1..1."""
    pixels = ((picture + 1) * 127.5).round().clamp(0, 255).byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def psnr(drawn: Image.Image, picture: Image.Image) -> float:
    """In dB, at the size of `drawn`."""
    a = np.asarray(drawn, np.float64)
    b = np.asarray(picture.resize(drawn.size), np.float64)
    return float(-10 * np.log10(np.square((a - b) / 255).mean()))


def flat_psnr(picture: Image.Image) -> float:
    """What the best single colour would reach, in dB."""
    pixels = np.asarray(picture, np.float64) / 255
    return float(-10 * np.log10(np.square(pixels - pixels.mean((0, 1))).mean()))


class Ranking:
    """Which of the candidates a picture is most alike, by the judge."""

    def __init__(self, judge: Judge, pictures: list[Image.Image]) -> None:
        self.judge = judge
        self.shapes, self.styles = judge.embed(pictures)

    def right(self, images: list[Image.Image], content: int, style: int) -> list[tuple[bool, bool]]:
        """For each image: is its shape nearest to `content`'s, and its style to `style`'s?"""
        shapes, styles = self.judge.embed(images)
        shape_right = ((shapes @ self.shapes.T).argmax(1) == content).tolist()
        style_right = ((styles @ self.styles.T).argmax(1) == style).tolist()
        return list(zip(shape_right, style_right, strict=True))


@dataclass
class Method:
    """What is put on the pipeline for content picture i and style picture j."""

    prepare: Callable[[int, int], None]
    prompt: str = PROMPT


def methods(
    pipe: "StableDiffusionXLPipeline",
    pictures: list[Image.Image],
    settings: TrainingSettings,
    ordinary_settings: TrainingSettings,
) -> tuple[dict[str, Method], float]:
    """Name → method, everything trained; and the seconds that one B-LoRA took."""
    start, bar = time.time(), tqdm(pictures, desc="B-LoRAs")
    bloras = [train(pipe, picture, settings, progress=False) for picture in bar]
    seconds = (time.time() - start) / len(pictures)
    bar = tqdm(pictures, desc="ordinary LoRAs")
    ordinary = [train_everywhere(pipe, picture, ordinary_settings) for picture in bar]
    found = {
        "B-LoRA: style transfer": Method(lambda i, j: apply(pipe, bloras[i], bloras[j])),
        "no LoRA": Method(lambda i, j: remove(pipe)),
        "ordinary LoRAs of both, all blocks": Method(
            lambda i, j: apply_both(pipe, ordinary[i], ordinary[j])
        ),
        "B-LoRA, halves swapped": Method(lambda i, j: apply(pipe, bloras[j], bloras[i])),
        REBUILT: Method(lambda i, j: apply(pipe, bloras[i], bloras[i]), "A [v]"),
    }
    return found, seconds


def rebuilding(images: list[Image.Image], pictures: list[Image.Image]) -> dict[str, float]:
    """How near the images [pictures × seeds] are to their pictures, against one flat colour."""
    originals = np.repeat(np.arange(len(pictures)), len(images) // len(pictures))
    reached = np.array([psnr(image, pictures[i]) for image, i in zip(images, originals)])
    flat = np.array([flat_psnr(picture) for picture in pictures])[originals]
    return {
        "mean dB": float(reached.mean()),
        "one flat colour dB": float(flat.mean()),
        "share better by 4 dB": float((reached - flat >= 4).mean()),
        "share better by 3 dB": float((reached - flat >= 3).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--base", default="tiny", help="the teaching model, or the folder of another pipeline")
    add("--set", choices=SETS, default="measured", dest="which")
    add("--pairs", type=int, default=48)
    add("--seeds", type=int, default=3)
    add("--steps", type=int, help="training steps of a B-LoRA")
    add("--learning-rate", type=float)
    add("--rank", type=int)
    add("--ordinary-steps", type=int, help="of an ordinary LoRA; by default as for a B-LoRA")
    add("--ordinary-learning-rate", type=float)
    add("--guidance", type=float)
    args = parser.parse_args()
    if args.pairs < 2:
        parser.error("--pairs must be at least 2: each content picture needs another's style")
    start = time.time()
    held_out, judge = HeldOut.draw(args.which, args.pairs), Judge.load()
    pipe, ranking = load_pipeline(args.base, device="cpu"), Ranking(judge, held_out.pictures)
    changes = {"max_train_steps": args.steps, "learning_rate": args.learning_rate}
    settings = TrainingSettings.for_pipeline(pipe, rank=args.rank, **changes)
    ordinary_settings = TrainingSettings.for_pipeline(
        pipe,
        rank=args.rank,
        max_train_steps=args.ordinary_steps or args.steps,
        learning_rate=args.ordinary_learning_rate or args.learning_rate,
    )
    pictures = held_out.pictures[: args.pairs]
    pairs = [(i, (i + 1) % args.pairs) for i in range(args.pairs)]
    compared, seconds_per_blora = methods(pipe, pictures, settings, ordinary_settings)
    rows, drawn = {}, {}
    for name, method in compared.items():
        images, verdicts, clock = [], [], time.time()
        for i, j in tqdm(pairs, desc=name):
            method.prepare(i, j)
            of_pair = sample(
                pipe,
                method.prompt,
                range(args.seeds),
                guidance_scale=args.guidance,
                progress=False,
            )
            images += of_pair
            verdicts += ranking.right(of_pair, i, i if name == REBUILT else j)
        seconds = (time.time() - clock) / len(images)
        rows[name] = summary(verdicts, args.seeds) | {"seconds per picture": seconds}
        drawn[name] = images
    remove(pipe)
    rebuilt = rebuilding(drawn[REBUILT], pictures)
    cells = []
    for name, row in rows.items():
        both, error = shares(row, "both", "standard error")
        found = shares(row, "object", "style")
        cells.append([name, row["pictures"], *found, f"**{both}**", error])
    columns = ["pictures", "object right", "style right", "**both right**", "±"]
    print(f"{seconds_per_blora:.1f} s per B-LoRA, {time.time() - start:.0f} s in all")
    figure = picture_grid(
        [
            [pictures[i] for i, _ in pairs[:12]],
            [pictures[j] for _, j in pairs[:12]],
            *(images[:: args.seeds][:12] for images in drawn.values()),
        ],
        ["content picture", "style picture", *drawn],
        caption="The first twelve pairs, seed 0, alphas 1 and 1",
        side=0.9,
    )
    text = f"""# Separation of pictures never seen

{len(pairs)} pairs of pictures of held-out things in held-out styles × {args.seeds} seeds, each \
right among {CANDIDATES} candidates by the judge; B-LoRA rank {settings.rank}, \
{settings.max_train_steps} steps at {settings.learning_rate}; ordinary LoRAs \
{ordinary_settings.max_train_steps} steps at {ordinary_settings.learning_rate}. ±: the standard \
error of both right, each pair counted once, as its pictures are alike.

{table(columns, cells)}
Both halves rebuild their picture to {rebuilt["mean dB"]:.1f} dB on average (one flat colour: \
{rebuilt["one flat colour dB"]:.1f} dB); {rebuilt["share better by 4 dB"]:.0%} are better than the \
flat colour by 4 dB or more.
A B-LoRA is trained in {seconds_per_blora:.1f} s.

![the first twelve pairs](open_world.png)
"""
    if args.which != "measured":
        print(text)
        OUTPUTS.mkdir(exist_ok=True)
        figure.savefig(OUTPUTS / "open_world_tuning.png")
        return
    figure.savefig(HERE / "open_world.png")
    results = {
        "table": rows,
        "rebuilding": rebuilt,
        "settings": asdict(settings),
        "ordinary settings": asdict(ordinary_settings),
        "guidance": args.guidance,
        "pairs": len(pairs),
        "names": held_out.names[: len(pairs)],
        "seeds": args.seeds,
        "seconds_per_blora": seconds_per_blora,
        "model": fingerprint(TINY_SDXL if args.base == "tiny" else Path(args.base)),
    }
    write("open_world", text, results)


if __name__ == "__main__":
    main()
