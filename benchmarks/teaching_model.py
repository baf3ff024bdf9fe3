"""How good the teaching model is: prompts it never saw, and which block listens to what.

    python benchmarks/teaching_model.py    # about 15 minutes on two cores; writes teaching_model.md, .json and .png

1. Prompts "A cat in neon style" for all object-style combinations left out of its training: does the judge find both?
2. The paper's block analysis: one block is given another prompt; which of object and style follows it? Also for
   a model of this shape trained without encouragement.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "data"))

from blora_nb.assets import fingerprint
from blora_nb.blocks import TRANSFORMER_BLOCKS
from blora_nb.defaults import TINY_DEFAULTS
from blora_nb.figures import picture_grid
from blora_nb.inspection import prompt_per_block
from blora_nb.metrics import Judge
from blora_nb.pipeline import load_pipeline
from drawings import OBJECTS, STYLES, is_held_out

BATCH = 24
NATURAL = "trained without encouragement"


@torch.no_grad()
def pictures_for(pipe, prompts, seeds):
    """One picture for each prompt and seed, in batches."""
    images = []
    for i in range(0, len(prompts), BATCH):
        generators = [torch.Generator().manual_seed(s) for s in seeds[i : i + BATCH]]
        images += pipe(
            prompts[i : i + BATCH],
            generator=generators,
            num_inference_steps=TINY_DEFAULTS.num_inference_steps,
            guidance_scale=TINY_DEFAULTS.guidance_scale,
        ).images
    return images


def unseen_prompts(pipe, judge, per_combination):
    combinations = [(o, s) for o in OBJECTS for s in STYLES if is_held_out(o, s)]
    wanted = [c for c in combinations for _ in range(per_combination)]
    images = pictures_for(
        pipe, [f"A {o} in {s} style" for o, s in wanted], list(range(len(wanted)))
    )
    found = judge.name(images)
    right = torch.tensor(
        [[f[0] == w[0], f[1] == w[1]] for f, w in zip(found, wanted)], dtype=torch.float32
    )
    scores = {
        "pictures": len(wanted),
        "object": right[:, 0].mean().item(),
        "style": right[:, 1].mean().item(),
        "both": right.prod(1).mean().item(),
    }
    by_object = {o: right[[w[0] == o for w in wanted], 0].mean().item() for o in OBJECTS}
    by_style = {s: right[[w[1] == s for w in wanted], 1].mean().item() for s in STYLES}
    grid = [images[k * per_combination : k * per_combination + 3] for k in range(len(combinations))]
    return scores, by_object, by_style, combinations, grid


def block_map(pipe, judge, count):
    """For each block, how often object and style follow the prompt given to this block alone."""
    objects, styles = list(OBJECTS), list(STYLES)
    base = [(objects[(3 * k) % 16], styles[k % 12]) for k in range(count)]
    other = [(objects[(3 * k + 5) % 16], styles[(k + 5) % 12]) for k in range(count)]
    rows = {}
    for block in tqdm(TRANSFORMER_BLOCKS, desc="blocks"):
        verdicts = []
        for k, ((o, s), (o2, s2)) in enumerate(zip(base, other)):
            with prompt_per_block(pipe, {block: f"A {o2} in {s2} style"}):
                found_object, found_style = judge.name(
                    pictures_for(pipe, [f"A {o} in {s} style"], [k])
                )[0]
            verdicts.append(
                (found_object == o2, found_style == s2, found_object == o, found_style == s)
            )
        mean = torch.tensor(verdicts, dtype=torch.float32).mean(0).tolist()
        rows[block] = dict(
            zip(("object follows", "style follows", "object stays", "style stays"), mean)
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", default="tiny")
    parser.add_argument(
        "--natural",
        default=str(HERE.parent / "outputs" / "teaching_model" / "tiny_sdxl_natural"),
        help="the model trained without encouragement; without it its last stored map is kept",
    )
    parser.add_argument("--per-combination", type=int, default=21)
    parser.add_argument("--map-pictures", type=int, default=16, help="per block")
    parser.add_argument("--quick", action="store_true", help="prompts only; write nothing")
    args = parser.parse_args()
    start, judge, stored = time.time(), Judge.load(), HERE / "teaching_model.json"
    pipe = load_pipeline(args.base)
    scores, by_object, by_style, combinations, grid = unseen_prompts(
        pipe, judge, args.per_combination
    )
    print({k: round(v, 3) for k, v in scores.items()})
    print(
        {k: round(v, 2) for k, v in by_object.items()},
        {k: round(v, 2) for k, v in by_style.items()},
        sep="\n",
    )
    columns = [[row[k] for row in grid] for k in range(3)]
    rows = [half for start_ in (0, 12) for half in [c[start_ : start_ + 12] for c in columns]]
    labels = [f"seed {k}" for k in range(3)] * 2
    titles = [
        [f"{o}, {s}" for o, s in part]
        for part in (combinations[:12], combinations[12:])
        for _ in columns
    ]
    figure = picture_grid(
        rows,
        labels,
        caption="Prompts of combinations the model never saw, no LoRA",
        side=1.05,
        titles=titles,
    )
    if args.quick:
        figure.savefig(HERE.parent / "outputs" / "teaching_model.png")
        return
    figure.savefig(HERE / "teaching_model.png")
    maps = {"teaching model": block_map(pipe, judge, args.map_pictures)}
    if Path(args.natural).is_dir():
        maps[NATURAL] = block_map(load_pipeline(args.natural), judge, args.map_pictures)
    elif stored.exists() and NATURAL in (before := json.loads(stored.read_text())["block maps"]):
        maps[NATURAL] = before[NATURAL]
    text = f"# The teaching model, measured\n\nMade by `python benchmarks/teaching_model.py` in {time.time() - start:.0f} s. The judge is right on {judge_accuracy()}.\n\n"
    text += f"## Prompts of combinations it never saw\n\n{scores['pictures']} pictures: object right {scores['object']:.3f}, style right {scores['style']:.3f}, both right {scores['both']:.3f}.\n\n![prompts](teaching_model.png)\n"
    for name, rows_ in maps.items():
        less = (
            "Of the same shape, trained on 100,000 of the same pictures; the teaching model saw four times as many. "
            if name == NATURAL
            else ""
        )
        text += f"\n## Block map: {name}\n\n{less}One block gets another prompt ({args.map_pictures} pictures each). Share in which …\n\n| block | object follows | style follows | object stays | style stays |\n|---|---|---|---|---|\n"
        text += "".join(
            f"| `{b}` | {r['object follows']:.2f} | {r['style follows']:.2f} | {r['object stays']:.2f} | {r['style stays']:.2f} |\n"
            for b, r in rows_.items()
        )
    (HERE / "teaching_model.md").write_text(text)
    stored.write_text(
        json.dumps(
            {
                "model": fingerprint(),
                "unseen prompts": scores,
                "by object": by_object,
                "by style": by_style,
                "block maps": maps,
            },
            indent=1,
        )
        + "\n"
    )
    print(text)


def judge_accuracy():
    from blora_nb.metrics import JUDGE

    config = json.loads((JUDGE / "config.json").read_text())
    return f"{config['object_accuracy']:.1%} of objects and {config['style_accuracy']:.1%} of styles of {config['test_pictures']} drawings it was not trained on"


if __name__ == "__main__":
    main()
