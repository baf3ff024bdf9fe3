"""The separation table: does the content half bring the shape, and the style half the style, of pictures never seen?

    python data/world/fetch_shapes.py && python benchmarks/open_world.py    # an hour on two cores; writes open_world.md, .json, .png

Every picture shows a drawing of a held-out thing in a style that no training picture has (a pattern or a hue that was held
out). For each of 48 pairs (content picture, style picture) and 3 seeds: which of 100 content pictures is the result most
alike in shape, which of 100 style pictures in style? The judge has seen none of them. Steps, learning rate and rank were
chosen on another set of held-out pictures (`--set tuning`).
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "data"))

from blora_nb.assets import fingerprint
from blora_nb.figures import picture_grid
from blora_nb.generation import sample
from blora_nb.lora import BLoRA, apply, remove
from blora_nb.pipeline import load_pipeline
from blora_nb.settings import TrainingSettings
from blora_nb.training import train
from world.judge import Judge
from world.painting import paint, place, random_poses
from world.samples import Shapes
from world.styles import random_styles

PROMPT = "A [c] in [s] style"
CANDIDATES = 100
SETS = {"tuning": 0, "measured": 1}  # every second held-out name belongs to one of them
EMOJI_SETS = ("fluent-emoji-flat", "noto", "noto-v1")


@dataclass
class HeldOut:
    """100 pictures of different held-out things, each in a held-out style."""

    pictures: list[Image.Image]
    names: list[str]

    @classmethod
    def draw(cls, which: str) -> "HeldOut":
        shapes = Shapes.load(held_out=True)
        names = sorted(
            {n for n, s in zip(shapes.names, shapes.sets, strict=True) if s in EMOJI_SETS}
        )
        of_set = set(names[SETS[which] :: 2])
        generator = torch.Generator().manual_seed(100 + SETS[which])
        order = torch.randperm(len(shapes.names), generator=generator).tolist()
        rows = [r for r in order if shapes.names[r] in of_set and shapes.sets[r] in EMOJI_SETS]
        first = list(
            {shapes.names[r]: r for r in rows}.values()
        )  # one drawing a name, then the other designers'
        rows = (first + [r for r in rows if r not in first])[:CANDIDATES]
        placed = place(shapes.coverage[torch.tensor(rows)], random_poses(len(rows), generator))
        painted = paint(placed, random_styles(len(rows), generator, held_out=True))
        return cls([to_image(picture) for picture in painted], [shapes.names[r] for r in rows])


def to_image(picture: Tensor) -> Image.Image:
    """A PIL image of a tensor [3, height, width] in -1..1."""
    return Image.fromarray(
        ((picture + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    )


def psnr(drawn: Image.Image, picture: Image.Image) -> float:
    """In dB, at the size of `drawn`."""
    a, b = np.asarray(drawn, np.float64), np.asarray(picture.resize(drawn.size), np.float64)
    return float(-10 * np.log10(np.square((a - b) / 255).mean()))


def flat_psnr(picture: Image.Image) -> float:
    """What the best single colour would reach."""
    pixels = np.asarray(picture, np.float64) / 255
    return float(-10 * np.log10(np.square(pixels - pixels.mean((0, 1))).mean()))


class Ranks:
    """Which of the candidates a picture is most alike, by the judge."""

    def __init__(self, judge: Judge, pictures: list[Image.Image]) -> None:
        self.judge = judge
        self.shapes, self.styles = judge.embed(pictures)

    def right(self, images: list[Image.Image], content: int, style: int) -> list[tuple[bool, bool]]:
        """For each image: is its shape nearest to that of `content`, and its style to that of `style`?"""
        shapes, styles = self.judge.embed(images)
        return list(
            zip(
                ((shapes @ self.shapes.T).argmax(1) == content).tolist(),
                ((styles @ self.styles.T).argmax(1) == style).tolist(),
                strict=True,
            )
        )


def summary(verdicts: list[tuple[bool, bool]], seeds: int) -> dict[str, float]:
    """Shares of pictures, and the standard error of "both" by pairs, as the pictures of a pair are alike."""
    found = np.asarray(verdicts, dtype=float)
    both = (found[:, 0] * found[:, 1]).reshape(-1, seeds).mean(axis=1)
    return {
        "pictures": len(found),
        "object": float(found[:, 0].mean()),
        "style": float(found[:, 1].mean()),
        "both": float(both.mean()),
        "standard error": float(both.std(ddof=1) / len(both) ** 0.5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--set", choices=SETS, default="measured", dest="which")
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="training steps of a B-LoRA")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--guidance", type=float)
    args = parser.parse_args()
    start = time.time()
    pipe, held_out = load_pipeline(args.base, device="cpu"), HeldOut.draw(args.which)
    ranks = Ranks(Judge.load(), held_out.pictures)
    settings = TrainingSettings.for_pipeline(
        pipe, max_train_steps=args.steps, learning_rate=args.learning_rate, rank=args.rank
    )
    options = {"guidance_scale": args.guidance} if args.guidance is not None else {}
    pairs = [(i, (i + 1) % args.pairs) for i in range(args.pairs)]
    clock = time.time()
    trained: list[BLoRA] = [
        train(pipe, held_out.pictures[i], settings, progress=False)
        for i in tqdm(range(args.pairs), desc="B-LoRAs")
    ]
    seconds = (time.time() - clock) / args.pairs
    methods = {
        "B-LoRA: style transfer": lambda i, j: (trained[i], trained[j], PROMPT, i, j),
        "no LoRA": lambda i, j: (None, None, PROMPT, i, j),
        "B-LoRA, halves swapped": lambda i, j: (trained[j], trained[i], PROMPT, i, j),
        "both halves of one picture": lambda i, j: (trained[i], trained[i], "A [v]", i, i),
    }
    table, shown = {}, {}
    rebuilt: list[float] = []
    for name, method in methods.items():
        verdicts, clock = [], time.time()
        for i, j in tqdm(pairs, desc=name):
            content, style, prompt, right_content, right_style = method(i, j)
            apply(pipe, content, style)
            images = sample(pipe, prompt, range(args.seeds), progress=False, **options)
            shown.setdefault(name, []).append(images[0])
            verdicts += ranks.right(images, right_content, right_style)
            if name.startswith("both halves"):
                rebuilt.append(psnr(images[0], held_out.pictures[i]))
        per_picture = (time.time() - clock) / len(verdicts)
        table[name] = summary(verdicts, args.seeds) | {"seconds per picture": per_picture}
    remove(pipe)
    flat = [flat_psnr(held_out.pictures[i]) for i, _ in pairs]
    gains = np.array(rebuilt) - np.array(flat)
    rebuilding = {
        "mean dB": float(np.mean(rebuilt)),
        "one flat colour dB": float(np.mean(flat)),
        "share better by 4 dB": float(np.mean(gains >= 4)),
        "share better by 3 dB": float(np.mean(gains >= 3)),
    }
    lines = [
        "| | pictures | object right | style right | **both right** | ± |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {r['pictures']} | {r['object']:.2f} | {r['style']:.2f} | **{r['both']:.2f}** | {r['standard error']:.2f} |"
        for name, r in table.items()
    ]
    print(
        "\n".join(lines),
        rebuilding,
        f"{seconds:.1f} s per B-LoRA, {time.time() - start:.0f} s in all",
        sep="\n",
    )
    rows = [
        [held_out.pictures[i] for i, _ in pairs],
        [held_out.pictures[j] for _, j in pairs],
        *shown.values(),
    ]
    labels = ["content picture", "style picture", *shown]
    caption = "The first twelve pairs, seed 0, alphas 1 and 1"
    figure = picture_grid([row[:12] for row in rows], labels, caption=caption, side=0.9)
    if args.which != "measured":
        figure.savefig(HERE.parent / "outputs" / "open_world_tuning.png")
        return
    figure.savefig(HERE / "open_world.png")
    report = {
        "table": table,
        "rebuilding": rebuilding,
        "settings": asdict(settings),
        "pairs": len(pairs),
        "seeds": args.seeds,
        "seconds_per_blora": seconds,
        "model": fingerprint(),
    }
    (HERE / "open_world.json").write_text(json.dumps(report, indent=1) + "\n")
    head = (
        f"{len(pairs)} pairs of pictures of held-out things in held-out styles × {args.seeds} seeds, each right among "
        f"{CANDIDATES} candidates by the judge; B-LoRA rank {settings.rank}, {settings.max_train_steps} steps at "
        f"{settings.learning_rate}, chosen on other held-out pictures. ±: the standard error of both right, each pair "
        f"counted once, as its pictures are alike.\n\n"
    )
    tail = (
        f"\n\nBoth halves rebuild their picture to {rebuilding['mean dB']:.1f} dB on average (one flat colour: "
        f"{rebuilding['one flat colour dB']:.1f} dB); {rebuilding['share better by 4 dB']:.0%} are better than the flat "
        f"colour by 4 dB or more.\n\n![the first twelve pairs](open_world.png)\n"
    )
    (HERE / "open_world.md").write_text(
        "# Separation of pictures never seen\n\n" + head + "\n".join(lines) + tail
    )


if __name__ == "__main__":
    main()
