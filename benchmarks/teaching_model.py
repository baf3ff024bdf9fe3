"""How good the teaching model is: prompts it never saw, and which block listens to what.

    python benchmarks/teaching_model.py    # 15 minutes on two cores; teaching_model.md, .json, .png

1. Prompts "A cat in neon style" for all object-style combinations left out of its training: does
   the judge find both?
2. The paper's block analysis: one block is given another prompt; which of object and style follows
   it? Also for a model of this shape trained without encouragement.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "data"))

from blora_nb.assets import fingerprint
from blora_nb.blocks import TRANSFORMER_BLOCKS
from blora_nb.course.drawings import OBJECTS, STYLES, is_held_out
from blora_nb.defaults import TINY_DEFAULTS
from blora_nb.figures import picture_grid
from blora_nb.inspection import prompt_per_block
from blora_nb.metrics import JUDGE, Judge
from blora_nb.pipeline import load_pipeline
from report import HERE, OUTPUTS, shares, stored, table, write

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

BATCH = 24
NATURAL = "trained without encouragement"
COMBINATIONS = [(o, s) for o in OBJECTS for s in STYLES if is_held_out(o, s)]
BEHAVIOUR = ["object follows", "style follows", "object stays", "style stays"]


@torch.no_grad()
def pictures_for(
    pipe: "StableDiffusionXLPipeline", prompts: list[str], first_seed: int = 0
) -> list[Image.Image]:
    """One picture for each prompt, with seeds that count up, in batches."""
    images: list[Image.Image] = []
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        seeds = range(first_seed + start, first_seed + start + len(batch))
        images += pipe(
            batch,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            num_inference_steps=TINY_DEFAULTS.num_inference_steps,
            guidance_scale=TINY_DEFAULTS.guidance_scale,
        ).images
    return images


def unseen_prompts(
    pipe: "StableDiffusionXLPipeline", judge: Judge, per_combination: int
) -> tuple[dict[str, Any], list[Image.Image]]:
    """Shares of right pictures, of all and by name, and the pictures, by combination."""
    wanted = [c for c in COMBINATIONS for _ in range(per_combination)]
    images = pictures_for(pipe, [f"A {o} in {s} style" for o, s in wanted])
    right = np.array(judge.name(images)) == np.array(wanted)
    objects, styles = np.array(wanted).T
    scores = {
        "unseen prompts": {
            "pictures": len(wanted),
            "object": float(right[:, 0].mean()),
            "style": float(right[:, 1].mean()),
            "both": float(right.all(1).mean()),
        },
        "by object": {o: float(right[objects == o, 0].mean()) for o in OBJECTS},
        "by style": {s: float(right[styles == s, 1].mean()) for s in STYLES},
    }
    return scores, images


def block_map(
    pipe: "StableDiffusionXLPipeline", judge: Judge, count: int
) -> dict[str, dict[str, float]]:
    """For each block, how often object and style follow the prompt given to this block alone."""
    objects, styles = list(OBJECTS), list(STYLES)
    rows = {}
    for block in tqdm(TRANSFORMER_BLOCKS, desc="blocks"):
        verdicts = []
        for k in range(count):
            o, s = objects[(3 * k) % 16], styles[k % 12]
            other_o, other_s = objects[(3 * k + 5) % 16], styles[(k + 5) % 12]
            with prompt_per_block(pipe, {block: f"A {other_o} in {other_s} style"}):
                images = pictures_for(pipe, [f"A {o} in {s} style"], first_seed=k)
            [(found_o, found_s)] = judge.name(images)
            verdicts.append((found_o == other_o, found_s == other_s, found_o == o, found_s == s))
        rows[block] = dict(zip(BEHAVIOUR, np.mean(verdicts, axis=0).tolist()))
    return rows


def prompt_grid(images: list[Image.Image], per_combination: int) -> Any:
    """The first three seeds of each combination, in two bands of twelve."""
    rows, titles = [], []
    for start in (0, 12):
        band = range(start, start + 12)
        for seed in range(3):
            rows.append([images[k * per_combination + seed] for k in band])
            titles.append([", ".join(COMBINATIONS[k]) for k in band])
    caption = "Prompts of combinations the model never saw, no LoRA"
    labels = [f"seed {seed}" for seed in range(3)] * 2
    return picture_grid(rows, labels, caption=caption, side=1.05, titles=titles)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    natural = "the model trained without encouragement; by default its last stored map is kept"
    default = OUTPUTS / "teaching_model" / "tiny_sdxl_natural"
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--natural", type=Path, default=default, help=natural)
    parser.add_argument("--per-combination", type=int, default=21)
    parser.add_argument("--map-pictures", type=int, default=16, help="per block")
    parser.add_argument("--quick", action="store_true", help="prompts only; write nothing")
    args = parser.parse_args()
    start, judge, pipe = time.time(), Judge.load(), load_pipeline(args.base)
    scores, images = unseen_prompts(pipe, judge, args.per_combination)
    for name, numbers in scores.items():
        print(name, {key: round(number, 3) for key, number in numbers.items()})
    figure = prompt_grid(images, args.per_combination)
    if args.quick:
        OUTPUTS.mkdir(exist_ok=True)
        figure.savefig(OUTPUTS / "teaching_model.png")
        return
    figure.savefig(HERE / "teaching_model.png")
    maps = {"teaching model": block_map(pipe, judge, args.map_pictures)}
    before = stored("teaching_model").get("block maps", {})
    if args.natural.is_dir():
        maps[NATURAL] = block_map(load_pipeline(str(args.natural)), judge, args.map_pictures)
    elif NATURAL in before:
        maps[NATURAL] = before[NATURAL]
    right = scores["unseen prompts"]
    text = f"""# The teaching model, measured

Made by `python benchmarks/teaching_model.py` in {time.time() - start:.0f} s. The judge is right \
on {judge_accuracy()}.

## Prompts of combinations it never saw

{right["pictures"]} pictures: object right {right["object"]:.3f}, style right \
{right["style"]:.3f}, both right {right["both"]:.3f}.

![prompts](teaching_model.png)
"""
    for name, blocks in maps.items():
        text += f"\n## Block map: {name}\n\n"
        if name == NATURAL:
            text += (
                "Of the same shape, trained on 100,000 of the same pictures; the teaching model "
            )
            text += "saw four times as many. "
        text += f"One block gets another prompt ({args.map_pictures} pictures each). "
        rows = [[f"`{block}`", *shares(row, *BEHAVIOUR)] for block, row in blocks.items()]
        text += f"Share in which …\n\n{table(BEHAVIOUR, rows, 'block')}"
    write("teaching_model", text, {"model": fingerprint(), **scores, "block maps": maps})


def judge_accuracy() -> str:
    config = json.loads((JUDGE / "config.json").read_text())
    objects, styles = config["object_accuracy"], config["style_accuracy"]
    drawings = f"{config['test_pictures']} drawings it was not trained on"
    return f"{objects:.1%} of objects and {styles:.1%} of styles of {drawings}"


if __name__ == "__main__":
    main()
