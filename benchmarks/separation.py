"""The separation table: does the content half bring the object, and the style half the style?

    python benchmarks/separation.py    # 25 minutes on two cores; writes separation.md, .json, .png

Every picture is of an object-style combination that the teaching model never saw. For each of 24
pairs (content picture, style picture) and 3 seeds the judge names the object and the style of the
result.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "data"))

from blora_nb.assets import fingerprint
from blora_nb.course.drawings import (
    HELD_OUT_OBJECTS,
    HELD_OUT_STYLES,
    OBJECTS,
    STYLES,
    draw,
    is_held_out,
)
from blora_nb.figures import picture_grid
from blora_nb.generation import sample
from blora_nb.lora import BLoRA, apply, remove
from blora_nb.metrics import Judge
from blora_nb.pipeline import load_pipeline
from blora_nb.settings import TrainingSettings
from blora_nb.training import train
from ordinary_lora import apply_both, train_everywhere
from report import HERE, OUTPUTS, shares, summary, table, write

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

PROMPT = "A [c] in [s] style"
PICTURE_SEED = 1_000_000  # poses that no training picture has
ORDINARY = "ordinary LoRAs of both, all blocks"

Picture = tuple[str, str, Image.Image]  # object, style, picture


def held_out_pictures() -> list[Picture]:
    """The 24 held-out combinations."""
    combinations = [(o, s) for o in OBJECTS for s in STYLES if is_held_out(o, s)]
    return [(o, s, draw(o, s, PICTURE_SEED + i, 512)) for i, (o, s) in enumerate(combinations)]


def pairs(pictures: list[Picture]) -> list[tuple[int, int]]:
    """A style picture for each content picture, by number: both object and style differ."""
    result = []
    for i, (object_name, style_name, _) in enumerate(pictures):
        for step in range(5, 30):
            j = (i + step) % len(pictures)
            if pictures[j][0] != object_name and pictures[j][1] != style_name:
                result.append((i, j))
                break
    return result


def strangers(half: str) -> list[Picture]:
    """Eight pictures whose object ("content") or style ("style") the model has never seen."""
    objects, styles = list(OBJECTS), list(STYLES)
    names = []
    if half == "content":
        for i, object_name in enumerate(HELD_OUT_OBJECTS):
            names += [(object_name, styles[2 * i]), (object_name, styles[2 * i + 3])]
    else:
        for i, style_name in enumerate(HELD_OUT_STYLES):
            names += [(objects[3 * i], style_name), (objects[3 * i + 2], style_name)]
    return [(o, s, draw(o, s, PICTURE_SEED + 100 + i, 512)) for i, (o, s) in enumerate(names)]


@dataclass
class Case:
    """One pair under one method: what is put on the pipeline, the prompt, what should come out."""

    prepare: Callable[[], None]
    prompt: str
    object: str
    style: str
    content_style: str  # of the content picture, which should not come out


Row = tuple[dict[str, Any], list[Image.Image]]  # numbers, and the first picture of each pair


def measure(
    pipe: "StableDiffusionXLPipeline", judge: Judge, name: str, cases: list[Case], seeds: int
) -> Row:
    """A row of the table."""
    verdicts, shown, start = [], [], time.time()
    for case in tqdm(cases, desc=name):
        case.prepare()
        images = sample(pipe, case.prompt, range(seeds), progress=False)
        shown.append(images[0])
        for o, s in judge.name(images):
            verdicts.append((o == case.object, s == case.style, s == case.content_style))
    row = summary(verdicts, seeds) | {
        "style of the content picture": float(np.mean([kept for *_, kept in verdicts])),
        "seconds per picture": (time.time() - start) / len(verdicts),
    }
    return row, shown


def methods(
    pipe: "StableDiffusionXLPipeline",
    pictures: list[Picture],
    bloras: list[BLoRA],
    ordinary: list[dict],
) -> dict[str, Callable[[int, int], Case]]:
    """Name → the case of content picture i and style picture j."""

    def case(i: int, j: int, prepare: Callable[[], None], prompt: str = PROMPT) -> Case:
        return Case(prepare, prompt, pictures[i][0], pictures[j][1], pictures[i][1])

    def transfer(i: int, j: int) -> Case:
        return case(i, j, lambda: apply(pipe, bloras[i], bloras[j]))

    def without(i: int, j: int) -> Case:
        return case(i, j, lambda: remove(pipe))

    def both_ordinary(i: int, j: int) -> Case:
        return case(i, j, lambda: apply_both(pipe, ordinary[i], ordinary[j]))

    def swapped(i: int, j: int) -> Case:
        return case(i, j, lambda: apply(pipe, bloras[j], bloras[i]))

    def rebuilt(i: int, j: int) -> Case:
        return case(i, i, lambda: apply(pipe, bloras[i], bloras[i]), "A [v]")

    def style_in_words(i: int, j: int) -> Case:
        prompt = f"A [c] in {pictures[j][1]} style"
        return case(i, j, lambda: apply(pipe, content=bloras[i]), prompt)

    def object_in_words(i: int, j: int) -> Case:
        prompt = f"A {pictures[i][0]} in [s] style"
        return case(i, j, lambda: apply(pipe, style=bloras[j]), prompt)

    found = {"B-LoRA: style transfer": transfer, "no LoRA": without}
    if ordinary:
        found[ORDINARY] = both_ordinary
    return found | {
        "B-LoRA, halves swapped": swapped,
        "both halves of one picture": rebuilt,
        "content half + style in words": style_in_words,
        "style half + object in words": object_in_words,
    }


def stranger_cases(
    pipe: "StableDiffusionXLPipeline",
    half: str,
    pictures: list[Picture],
    bloras: list[BLoRA],
    settings: TrainingSettings,
) -> list[Case]:
    """The transfer of unseen objects ("content") or styles ("style") with one of the pictures."""
    cases = []
    for k, stranger in enumerate(strangers(half)):
        i = (3 * k) % len(pictures)
        new = train(pipe, stranger[2], settings, progress=False)
        ordered = [(stranger, new), (pictures[i], bloras[i])]
        if half == "style":
            ordered.reverse()
        (content_picture, content), (style_picture, style) = ordered

        def prepare(content: BLoRA = content, style: BLoRA = style) -> None:
            apply(pipe, content, style)

        cases.append(
            Case(prepare, PROMPT, content_picture[0], style_picture[1], content_picture[1])
        )
    return cases


def separation_table(rows: dict[str, dict[str, Any]]) -> str:
    columns = ["pictures", "object right", "style right", "**both right**", "±"]
    cells = []
    for name, row in rows.items():
        first = shares(row, "object", "style")
        both, error, kept = shares(row, "both", "standard error", "style of the content picture")
        cells.append([name, row["pictures"], *first, f"**{both}**", error, kept])
    return table([*columns, "has the content picture's style"], cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    few = "fewer for a quicker look, with as many pairs and no unseen objects and styles"
    add("--base", default="tiny")
    add("--seeds", type=int, default=3)
    add("--pictures", type=int, default=24, help=few)
    add("--steps", type=int, help="training steps of a B-LoRA")
    add("--learning-rate", type=float)
    add("--rank", type=int)
    add("--only-blora", action="store_true", help="no ordinary LoRAs; write nothing")
    args = parser.parse_args()
    start = time.time()
    pipe, judge = load_pipeline(args.base), Judge.load()
    settings = TrainingSettings.for_pipeline(
        pipe, max_train_steps=args.steps, learning_rate=args.learning_rate, rank=args.rank
    )
    pictures = held_out_pictures()[:: 24 // args.pictures]
    chosen = pairs(pictures)
    clock, bloras = time.time(), []
    for *_, picture in tqdm(pictures, desc="B-LoRAs"):
        bloras.append(train(pipe, picture, settings, progress=False))
    seconds_per_blora = (time.time() - clock) / len(pictures)
    ordinary = []
    for *_, picture in tqdm([] if args.only_blora else pictures, desc="ordinary LoRAs"):
        ordinary.append(train_everywhere(pipe, picture, settings))
    rows, shown = {}, {}
    for name, method in methods(pipe, pictures, bloras, ordinary).items():
        cases = [method(i, j) for i, j in chosen]
        rows[name], shown[name] = measure(pipe, judge, name, cases, args.seeds)
    for kind, half in (("an object", "content"), ("a style", "style")):
        if len(pictures) == 24:
            name = f"transfer of {kind} it has never seen"
            cases = stranger_cases(pipe, half, pictures, bloras, settings)
            rows[name], shown[name] = measure(pipe, judge, name, cases, args.seeds)
            del rows[name]["seconds per picture"]
    remove(pipe)
    figure = picture_grid(
        [
            [pictures[i][2].resize((96, 96)) for i, _ in chosen[:12]],
            [pictures[j][2].resize((96, 96)) for _, j in chosen[:12]],
            *(row[:12] for row in shown.values()),
        ],
        ["content picture", "style picture", *shown],
        caption="The first twelve pairs, seed 0, alphas 1 and 1",
        side=0.9,
    )
    print(f"{seconds_per_blora:.1f} s per B-LoRA, {time.time() - start:.0f} s in all")
    if args.only_blora:
        print(separation_table(rows))
        OUTPUTS.mkdir(exist_ok=True)
        figure.savefig(OUTPUTS / "separation.png")
        return
    figure.savefig(HERE / "separation.png")
    text = f"""# Separation on the teaching model

{len(chosen)} pairs of pictures of combinations the model never saw × {args.seeds} seeds; B-LoRA \
rank {settings.rank}, {settings.max_train_steps} steps at {settings.learning_rate} (chosen by \
trying on these pairs; the ordinary LoRAs have the same and were not tuned); of unseen objects and \
styles eight pictures each; made by `python benchmarks/separation.py --pictures {len(pictures)}`. \
±: the standard error of both right, each pair counted once, as its pictures are alike.

{separation_table(rows)}
![the first twelve pairs](separation.png)
"""
    results = {
        "table": rows,
        "settings": asdict(settings),
        "pairs": len(chosen),
        "seeds": args.seeds,
        "seconds_per_blora": seconds_per_blora,
        "model": fingerprint(),
    }
    write("separation", text, results)


if __name__ == "__main__":
    main()
