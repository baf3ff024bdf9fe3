"""The separation table: does the content half bring the shape, and the style half the style?

    python data/world/fetch_shapes.py    # once: the icons; needs npm, resvg-py, scipy
    python benchmarks/separation.py    # forty minutes on one core; separation.md, .json and .jpg

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

from blora_nb.assets import TINY_SDXL
from blora_nb.evaluation.judge import Judge
from blora_nb.figures.grids import picture_grid
from blora_nb.generation import sample
from blora_nb.instant import instant_blora
from blora_nb.lora import BLoRA, apply, remove
from blora_nb.pipeline import load_pipeline
from blora_nb.settings import TrainingSettings
from blora_nb.training import train
from ordinary_lora import apply_both, train_everywhere
from report import HERE, OUTPUTS, fingerprint, shares, summary, table, write
from world.captions import EMOJI_SETS
from world.painting import paint, place, random_poses
from world.samples import Shapes
from world.styles import NAMED_STYLES, random_styles

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

PROMPT = "A [c] in [s] style"
Verdict = tuple[bool, bool]  # shape right, style right
CANDIDATES = 100
SETS = {"tuning": 0, "measured": 1}  # every second held-out name belongs to one of them
REBUILT = "both halves of one picture"
PAINTED = "painted, without a model"


@dataclass
class HeldOut:
    """100 pictures of held-out things, each in a held-out style; the pairs come first."""

    pictures: list[Image.Image]
    names: list[str]
    placed: Tensor  # the drawings' parts, as `world.painting.paint` takes them
    styles: Tensor

    def painted(self, content: int, style: int) -> Image.Image:
        """One picture's drawing in the other's style, as the painter of both paints it."""
        return to_image(paint(self.placed[content][None], self.styles[style][None])[0])

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
        styles = random_styles(len(rows), generator, held_out=True)
        pictures = [to_image(picture) for picture in paint(placed, styles)]
        return cls(pictures, [shapes.names[row] for row in rows], placed, styles)


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
        self.style_words = list(NAMED_STYLES)

    def right(self, images: list[Image.Image], content: int, style: int) -> list[Verdict]:
        """For each image: is its shape nearest to `content`'s, and its style to `style`'s?"""
        shapes, styles = self.judge.embed(images)
        return at(shapes @ self.shapes.T, content, styles @ self.styles.T, style)

    def style_in_words(self, images: list[Image.Image], content: int, style: str) -> list[Verdict]:
        """For each image: is its shape nearest to `content`'s; of all named styles, is it this?"""
        shapes, styles = self.judge.embed(images)
        named = styles @ self.judge.named_styles.T
        return at(shapes @ self.shapes.T, content, named, self.judge.styles.index(style))

    def object_in_words(self, images: list[Image.Image], name: str, style: int) -> list[Verdict]:
        """For each image: of 100 named objects, is it this; is its style nearest to `style`'s?"""
        shapes, styles = self.judge.embed(images)
        named = shapes @ self.judge.named_objects.T
        return at(named, self.judge.objects.index(name), styles @ self.styles.T, style)


def at(shapes: Tensor, content: int, styles: Tensor, style: int) -> list[Verdict]:
    """Whether the highest score of each row is at the right place, for shapes and for styles."""
    shape_right, style_right = shapes.argmax(1) == content, styles.argmax(1) == style
    return list(zip(shape_right.tolist(), style_right.tolist(), strict=True))


@dataclass
class Method:
    """What is put on the pipeline for content picture i and style picture j, and what is right."""

    prepare: Callable[[int, int], None]
    right: Callable[[list[Image.Image], int, int], list[Verdict]]
    prompt: Callable[[int, int], str] = lambda i, j: PROMPT
    pairs: int | None = None  # how many it has, the first ones; by default all


@dataclass
class Trained:
    """What has been learned of the first pictures, a B-LoRA or an ordinary LoRA of each."""

    bloras: list[BLoRA]
    instant: list[BLoRA]
    from_zero: list[BLoRA]
    ordinary: list[dict[str, Tensor]]


def methods(
    pipe: "StableDiffusionXLPipeline", ranking: Ranking, trained: Trained
) -> dict[str, Method]:
    """Name → method."""
    bloras, instant, from_zero = trained.bloras, trained.instant, trained.from_zero
    ordinary = trained.ordinary

    def style_word(i: int) -> str:
        return ranking.style_words[i % len(ranking.style_words)]

    def object_word(i: int) -> str:
        return ranking.judge.objects[2 * i]

    return {
        "B-LoRA: style transfer": Method(
            lambda i, j: apply(pipe, bloras[i], bloras[j]), ranking.right
        ),
        "instant B-LoRA: style transfer": Method(
            lambda i, j: apply(pipe, instant[i], instant[j]), ranking.right
        ),
        "B-LoRA from zero: style transfer": Method(
            lambda i, j: apply(pipe, from_zero[i], from_zero[j]),
            ranking.right,
            pairs=len(from_zero) - 1,
        ),
        "no LoRA": Method(lambda i, j: remove(pipe), ranking.right),
        "ordinary LoRAs of both, all blocks": Method(
            lambda i, j: apply_both(pipe, ordinary[i], ordinary[j]),
            ranking.right,
            pairs=len(ordinary) - 1,
        ),
        "B-LoRA, halves swapped": Method(
            lambda i, j: apply(pipe, bloras[j], bloras[i]), ranking.right
        ),
        REBUILT: Method(
            lambda i, j: apply(pipe, bloras[i], bloras[i]),
            lambda images, i, j: ranking.right(images, i, i),
            lambda i, j: "A [v]",
        ),
        "content half + style in words": Method(
            lambda i, j: apply(pipe, content=bloras[i]),
            lambda images, i, j: ranking.style_in_words(images, i, style_word(i)),
            lambda i, j: f"A [c] in {style_word(i)} style",
        ),
        "style half + object in words": Method(
            lambda i, j: apply(pipe, style=bloras[j]),
            lambda images, i, j: ranking.object_in_words(images, object_word(i), j),
            lambda i, j: f"A {object_word(i)} in [s] style",
        ),
    }


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
    add("--fewer", type=int, default=16, help="pairs of the rivals that take long to train")
    add("--steps", type=int, help="training steps of a B-LoRA")
    add("--learning-rate", type=float)
    add("--rank", type=int)
    add("--guidance", type=float)
    args = parser.parse_args()
    if min(args.pairs, args.fewer + 1) < 2 or args.fewer >= args.pairs:
        parser.error("--pairs must be at least 2, and --fewer less: a pair needs two pictures")
    start = time.time()
    held_out, judge = HeldOut.draw(args.which, args.pairs), Judge.load()
    pipe, ranking = load_pipeline(args.base, device="cpu"), Ranking(judge, held_out.pictures)
    changes = {"max_train_steps": args.steps, "learning_rate": args.learning_rate}
    settings = TrainingSettings.for_pipeline(pipe, rank=args.rank, **changes)
    from_zero = TrainingSettings.for_pipeline(pipe, init_lora_weights="gaussian")
    pictures = held_out.pictures[: args.pairs]
    few = pictures[: args.fewer + 1]
    pairs = [(i, (i + 1) % args.pairs) for i in range(args.pairs)]
    clock = time.time()
    bar = tqdm(pictures, desc="B-LoRAs")
    bloras = [train(pipe, picture, settings, progress=False) for picture in bar]
    seconds_per_blora = (time.time() - clock) / len(pictures)
    trained = Trained(
        bloras,
        [instant_blora(pipe, picture) for picture in pictures],
        [train(pipe, one, from_zero, progress=False) for one in tqdm(few, desc="from zero")],
        [train_everywhere(pipe, one, from_zero) for one in tqdm(few, desc="ordinary LoRAs")],
    )
    compared = methods(pipe, ranking, trained)
    painted = [held_out.painted(i, j) for i, j in pairs]
    faultless = [ranking.right([image], i, j)[0] for image, (i, j) in zip(painted, pairs)]
    rows, drawn = {PAINTED: summary(faultless, 1)}, {}
    for name, method in compared.items():
        images, verdicts, clock = [], [], time.time()
        for i, j in tqdm(pairs[: method.pairs], desc=name):
            method.prepare(i, j)
            prompt, seeds = method.prompt(i, j), range(args.seeds)
            of_pair = sample(pipe, prompt, seeds, guidance_scale=args.guidance, progress=False)
            images += of_pair
            verdicts += method.right(of_pair, i, j)
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
            painted[:12],
            *(images[:: args.seeds][:12] for images in drawn.values()),
        ],
        ["content picture", "style picture", PAINTED, *drawn],
        caption="The first twelve pairs, seed 0, alphas 1 and 1",
        side=0.9,
    )
    text = f"""# Separation of pictures never seen

{len(pairs)} pairs of pictures of held-out things in held-out styles × {args.seeds} seeds, each \
right among {CANDIDATES} candidates by the judge. B-LoRAs: rank {settings.rank}, from the instant \
B-LoRA, {settings.max_train_steps} steps at {settings.learning_rate}. From zero, as the original, \
and the ordinary LoRAs: {from_zero.max_train_steps} steps at {from_zero.learning_rate}. ±: the \
standard error of both right, each pair counted once, as its pictures are alike. No pair was used \
to choose anything. The first row is no method but says how strict the judge is: each content \
picture's drawing, painted in the style picture's style by the program that painted both.

{table(columns, cells)}
Both halves rebuild their picture to {rebuilt["mean dB"]:.1f} dB on average (one flat colour: \
{rebuilt["one flat colour dB"]:.1f} dB); {rebuilt["share better by 4 dB"]:.0%} are better than the \
flat colour by 4 dB or more.

![the first twelve pairs](separation.jpg)
"""
    if args.which != "measured":
        print(text)
        OUTPUTS.mkdir(exist_ok=True)
        figure.savefig(OUTPUTS / "separation_tuning.png")
        return
    figure.savefig(HERE / "separation.jpg", pil_kwargs={"quality": 85})
    results = {
        "table": rows,
        "rebuilding": rebuilt,
        "settings": asdict(settings),
        "settings from zero": asdict(from_zero),
        "guidance": args.guidance,
        "pairs": len(pairs),
        "names": held_out.names[: len(pairs)],
        "seeds": args.seeds,
        "seconds_per_blora": seconds_per_blora,
        "model": fingerprint(TINY_SDXL if args.base == "tiny" else Path(args.base)),
    }
    write("separation", text, results)


if __name__ == "__main__":
    main()
