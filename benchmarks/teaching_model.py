"""How good the teaching model is: prompts it never saw, and which block listens to what.

    python benchmarks/teaching_model.py    # 15 minutes on two cores; teaching_model.md, .json, .png

1. Prompts like "A cat in neon style": is the picture, of the 100 objects that the judge knows, most
   like this one in shape, and of the named styles most like this one?
2. The paper's block analysis: one block is given another prompt. Is the picture then more like the
   other prompt's object, and more like the other prompt's style, than like its own?
"""

import argparse
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from blora_nb.blocks import TRANSFORMER_BLOCKS
from blora_nb.course.drawings import STYLES
from blora_nb.defaults import TINY_DEFAULTS
from blora_nb.evaluation.metrics import JudgeScorer
from blora_nb.figures.grids import picture_grid
from blora_nb.inspection import prompt_per_block
from blora_nb.pipeline import load_pipeline
from report import HERE, OUTPUTS, fingerprint, shares, stored, table, write

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

BATCH = 24
NATURAL = "trained without encouragement"
NATURAL_NOTE = """A model with the same blocks, trained without encouragement on 100,000 drawings of
16 objects in 12 styles, the world of the first edition's teaching model. Another judge named object
and style of 16 pictures for each block. No such model of the open world has been trained.
"""
BEHAVIOUR = ["object follows", "style follows"]


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


def words(scorer: JudgeScorer) -> list[tuple[str, str]]:
    """(object, style) of the prompts: every object that the judge knows, the styles in turn."""
    styles = list(STYLES)
    return [(name, styles[i % len(styles)]) for i, name in enumerate(scorer.judge.objects)]


def prompts(
    pipe: "StableDiffusionXLPipeline", scorer: JudgeScorer, seeds: int
) -> tuple[dict[str, Any], list[Image.Image]]:
    """Shares of right pictures, of all and by style, and the pictures, by prompt."""
    wanted = [pair for pair in words(scorer) for _ in range(seeds)]
    images = pictures_for(pipe, [f"A {o} in {s} style" for o, s in wanted])
    right = np.array(scorer.name(images)) == np.array(wanted)
    styles = np.array(wanted)[:, 1]
    scores = {
        "prompts": {
            "pictures": len(wanted),
            "object": float(right[:, 0].mean()),
            "style": float(right[:, 1].mean()),
            "both": float(right.all(1).mean()),
        },
        "by style": {s: float(right[styles == s, 1].mean()) for s in STYLES},
    }
    return scores, images


def block_map(
    pipe: "StableDiffusionXLPipeline", scorer: JudgeScorer, count: int
) -> dict[str, dict[str, float]]:
    """For each block, how often object and style follow the prompt given to this block alone."""
    pairs = words(scorer)
    rows = {}
    for block in tqdm(TRANSFORMER_BLOCKS, desc="blocks"):
        followed = []
        for k in range(count):
            (o, s), (other_o, other_s) = pairs[3 * k], pairs[3 * k + 5]
            with prompt_per_block(pipe, {block: f"A {other_o} in {other_s} style"}):
                images = pictures_for(pipe, [f"A {o} in {s} style"], first_seed=k)
            objects = [scorer.says_content(images, name)[0] for name in (other_o, o)]
            styles = [scorer.says_style(images, name)[0] for name in (other_s, s)]
            followed.append((objects[0] > objects[1], styles[0] > styles[1]))
        rows[block] = dict(zip(BEHAVIOUR, np.mean(followed, axis=0).tolist()))
    return rows


def prompt_grid(images: list[Image.Image], names: list[tuple[str, str]], seeds: int) -> Any:
    """The first seed of forty prompts, in four rows of ten."""
    chosen = range(0, len(names), max(1, len(names) // 40))
    rows = [chosen[start : start + 10] for start in range(0, 40, 10)]
    return picture_grid(
        [[images[k * seeds] for k in row] for row in rows],
        titles=[["\n".join(names[k]) for k in row] for row in rows],
        caption="Prompts in words, no LoRA; seed of its own each",
        side=1.05,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--seeds", type=int, default=3, help="pictures of each prompt")
    parser.add_argument("--map-pictures", type=int, default=24, help="per block")
    parser.add_argument("--quick", action="store_true", help="prompts only; write nothing")
    args = parser.parse_args()
    start, scorer, pipe = time.time(), JudgeScorer(), load_pipeline(args.base)
    scores, images = prompts(pipe, scorer, args.seeds)
    for name, numbers in scores.items():
        print(name, {key: round(number, 3) for key, number in numbers.items()})
    figure = prompt_grid(images, words(scorer), args.seeds)
    if args.quick:
        OUTPUTS.mkdir(exist_ok=True)
        figure.savefig(OUTPUTS / "teaching_model.png")
        return
    figure.savefig(HERE / "teaching_model.png")
    maps = {"teaching model": block_map(pipe, scorer, args.map_pictures)}
    # measured once, on the first edition's; see NATURAL_NOTE
    maps[NATURAL] = stored("teaching_model")["block maps"][NATURAL]
    right, objects = scores["prompts"], len(scorer.judge.objects)
    text = f"""# The teaching model, measured

Made by `python benchmarks/teaching_model.py` in {time.time() - start:.0f} s. The judge was \
trained on the same world, and knows nothing of the model.

## Prompts in words

{right["pictures"]} pictures of {objects} objects in {len(STYLES)} styles: object right \
{right["object"]:.3f} (of {objects}), style right {right["style"]:.3f} (of \
{len(scorer.judge.styles)}), both right {right["both"]:.3f}.

![prompts](teaching_model.png)
"""
    for name, blocks in maps.items():
        text += f"\n## Block map: {name}\n\n"
        if name == NATURAL:
            text += NATURAL_NOTE
        else:
            text += f"One block gets another prompt ({args.map_pictures} pictures each). Share in "
            text += "which the picture is more like the other prompt's object, and style.\n"
        columns = list(next(iter(blocks.values())))
        rows = [[f"`{block}`", *shares(row, *columns)] for block, row in blocks.items()]
        text += f"\n{table(columns, rows, 'block')}"
    write("teaching_model", text, {"model": fingerprint(), **scores, "block maps": maps})


if __name__ == "__main__":
    main()
