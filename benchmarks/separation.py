"""The separation table: does the content half bring the object, and the style half the style?

    python benchmarks/separation.py        # about 25 minutes on two cores; writes separation.md, .json and .png beside it

Every picture is of an object-style combination that the teaching model never saw. For each of 24 pairs (content picture,
style picture) and 3 seeds the judge names the object and the style of the result.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "data"))

from blora_nb.assets import fingerprint
from blora_nb.blocks import TRANSFORMER_BLOCKS
from blora_nb.figures import picture_grid
from blora_nb.generation import sample
from blora_nb.lora import apply, remove
from blora_nb.metrics import Judge
from blora_nb.pipeline import load_pipeline
from blora_nb.settings import TrainingSettings
from blora_nb.training import ADAPTER, attach_lora, encode_image, run_steps, train
from drawings import HELD_OUT_OBJECTS, HELD_OUT_STYLES, OBJECTS, STYLES, draw, is_held_out

PROMPT = "A [c] in [s] style"
PICTURE_SEED = 1_000_000  # poses that no training picture has


def held_out_pictures():
    """The 24 held-out combinations: (object, style, picture)."""
    combinations = [(o, s) for o in OBJECTS for s in STYLES if is_held_out(o, s)]
    return [(o, s, draw(o, s, PICTURE_SEED + i, 512)) for i, (o, s) in enumerate(combinations)]


def pairs(pictures):
    """One partner for each content picture: (content index, style index), objects and styles both different."""
    result = []
    for i, (object_name, style_name, _) in enumerate(pictures):
        j = next(
            j
            for j in [(i + step) % len(pictures) for step in range(5, 30)]
            if pictures[j][0] != object_name and pictures[j][1] != style_name
        )
        result.append((i, j))
    return result


def strangers(half):
    """Eight pictures whose object ("content") or style ("style") the model has never seen at all: (object, style, picture)."""
    if half == "content":
        names = [
            (o, list(STYLES)[5 * i + k])
            for i, o in enumerate(HELD_OUT_OBJECTS)
            for k in (-i * 3, -i * 3 + 3)
        ]
    else:
        names = [
            (list(OBJECTS)[3 * i + 2 * k], s) for i, s in enumerate(HELD_OUT_STYLES) for k in (0, 1)
        ]
    return [(o, s, draw(o, s, PICTURE_SEED + 100 + i, 512)) for i, (o, s) in enumerate(names)]


def summary(verdicts, seeds):
    """Shares of pictures of which the judge says (object right, style right, …), `seeds` pictures of each pair in turn.

    The pictures of a pair are alike, so that it is pairs that count: the standard error of "both" is the standard deviation of the pairs' shares over √pairs.
    """
    verdicts = np.asarray(verdicts, dtype=float)
    both = (verdicts[:, 0] * verdicts[:, 1]).reshape(-1, seeds).mean(axis=1)
    found = {
        "pictures": len(verdicts),
        "object": verdicts[:, 0].mean(),
        "style": verdicts[:, 1].mean(),
        "both": both.mean(),
        "standard error": both.std(ddof=1) / len(both) ** 0.5,
    }
    return {
        name: float(value) if name != "pictures" else value for name, value in found.items()
    } | {"both, of each pair": both.tolist()}


def train_everywhere(pipe, picture, settings):
    """An ordinary LoRA, on the attention of all eleven blocks: its weights by name, and its PEFT configuration."""
    from peft.utils import get_peft_model_state_dict

    moments = encode_image(pipe, picture, settings.resolution)
    remove(pipe)
    run_steps(
        pipe,
        attach_lora(pipe.unet, settings.rank, settings.seed, TRANSFORMER_BLOCKS),
        moments,
        settings,
        progress=False,
    )
    weights = {
        f"unet.{key}": t.detach().clone()
        for key, t in get_peft_model_state_dict(pipe.unet, adapter_name=ADAPTER).items()
    }
    remove(pipe)
    return weights


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--pictures",
        type=int,
        default=24,
        help="fewer for a quicker look; then there are as many pairs, and no pictures of unseen objects and styles",
    )
    parser.add_argument("--steps", type=int, help="training steps of a B-LoRA")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--rank", type=int)
    parser.add_argument(
        "--only-blora", action="store_true", help="leave out the ordinary LoRAs; write nothing"
    )
    args = parser.parse_args()
    start = time.time()
    pipe, judge = load_pipeline(args.base), Judge.load()
    settings = TrainingSettings.for_pipeline(
        pipe, max_train_steps=args.steps, learning_rate=args.learning_rate, rank=args.rank
    )
    pictures = held_out_pictures()[:: 24 // args.pictures]
    chosen = pairs(pictures)
    needed = sorted({i for pair in chosen for i in pair})
    clock = time.time()
    bloras = {
        i: train(pipe, pictures[i][2], settings, progress=False)
        for i in tqdm(needed, desc="B-LoRAs")
    }
    seconds_per_blora = (time.time() - clock) / len(needed)
    whole = (
        {}
        if args.only_blora
        else {
            i: train_everywhere(pipe, pictures[i][2], settings)
            for i in tqdm(needed, desc="ordinary LoRAs")
        }
    )

    def ordinary(i, j):
        remove(pipe)
        for name, k in (("first", i), ("second", j)):
            pipe.load_lora_weights(
                {key: t.clone() for key, t in whole[k].items()}, adapter_name=name
            )
        pipe.set_adapters(["first", "second"], [1.0, 1.0])

    # method: (what to put on the pipeline, prompt, expected object, expected style) for content picture i, style picture j
    object_of, style_of = (lambda i, j: pictures[i][0]), (lambda i, j: pictures[j][1])
    methods = {
        "B-LoRA: style transfer": (
            lambda i, j: apply(pipe, bloras[i], bloras[j]),
            lambda i, j: PROMPT,
            object_of,
            style_of,
        ),
        "no LoRA": (lambda i, j: remove(pipe), lambda i, j: PROMPT, object_of, style_of),
        "ordinary LoRAs of both, all blocks": (ordinary, lambda i, j: PROMPT, object_of, style_of),
        "B-LoRA, halves swapped": (
            lambda i, j: apply(pipe, content=bloras[j], style=bloras[i]),
            lambda i, j: PROMPT,
            object_of,
            style_of,
        ),
        "both halves of one picture": (
            lambda i, j: apply(pipe, bloras[i], bloras[i]),
            lambda i, j: "A [v]",
            object_of,
            lambda i, j: pictures[i][1],
        ),
        "content half + style in words": (
            lambda i, j: apply(pipe, content=bloras[i]),
            lambda i, j: f"A [c] in {pictures[j][1]} style",
            object_of,
            style_of,
        ),
        "style half + object in words": (
            lambda i, j: apply(pipe, style=bloras[j]),
            lambda i, j: f"A {pictures[i][0]} in [s] style",
            object_of,
            style_of,
        ),
    }
    if args.only_blora:
        del methods["ordinary LoRAs of both, all blocks"]
    table, shown = {}, {}
    for name, (prepare, prompt, goal_object, goal_style) in methods.items():
        verdicts, clock = [], time.time()
        for i, j in tqdm(chosen, desc=name):
            prepare(i, j)
            images = sample(pipe, prompt(i, j), range(args.seeds), progress=False)
            shown.setdefault(name, []).append(images[0])
            for found_object, found_style in judge.name(images):
                verdicts.append(
                    (
                        found_object == goal_object(i, j),
                        found_style == goal_style(i, j),
                        found_style == pictures[i][1],
                    )
                )
        table[name] = summary(verdicts, args.seeds) | {
            "style of the content picture": float(np.mean([kept for *_, kept in verdicts])),
            "seconds per picture": (time.time() - clock) / len(verdicts),
        }
    rest = (
        ()
        if len(pictures) < 24
        else (
            ("transfer of an object it has never seen", "content"),
            ("transfer of a style it has never seen", "style"),
        )
    )
    for label, half in rest:
        verdicts = []
        for k, stranger in enumerate(tqdm(strangers(half), desc=label)):
            new, known = train(pipe, stranger[2], settings, progress=False), (3 * k) % len(needed)
            i = needed[known]
            content, style = (
                (stranger, pictures[i]) if half == "content" else (pictures[i], stranger)
            )
            apply(pipe, *((new, bloras[i]) if half == "content" else (bloras[i], new)))
            images = sample(pipe, PROMPT, range(args.seeds), progress=False)
            shown.setdefault(label, []).append(images[0])
            verdicts += [
                (o == content[0], s == style[1], s == content[1]) for o, s in judge.name(images)
            ]
        table[label] = summary(verdicts, args.seeds) | {
            "style of the content picture": float(np.mean([kept for *_, kept in verdicts]))
        }
    remove(pipe)
    lines = [
        "| | pictures | object right | style right | **both right** | ± | has the content picture's style |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {r['pictures']} | {r['object']:.2f} | {r['style']:.2f} | **{r['both']:.2f}** | {r['standard error']:.2f} | {r['style of the content picture']:.2f} |"
        for name, r in table.items()
    ]
    print(
        "\n".join(lines),
        f"\n{seconds_per_blora:.1f} s per B-LoRA, {time.time() - start:.0f} s in all",
    )
    rows = [
        [pictures[i][2].resize((96, 96)) for i, _ in chosen],
        [pictures[j][2].resize((96, 96)) for _, j in chosen],
        *shown.values(),
    ]
    figure = picture_grid(
        [row[:12] for row in rows],
        ["content picture", "style picture", *shown],
        caption="The first twelve pairs, seed 0, alphas 1 and 1",
        side=0.9,
    )
    if args.only_blora:
        figure.savefig(HERE.parent / "outputs" / "separation.png")
        return
    figure.savefig(HERE / "separation.png")
    report = {
        "table": table,
        "settings": asdict(settings),
        "pairs": len(chosen),
        "seeds": args.seeds,
        "seconds_per_blora": seconds_per_blora,
        "model": fingerprint(),
    }
    (HERE / "separation.json").write_text(json.dumps(report, indent=1) + "\n")
    head = f"{len(chosen)} pairs of pictures of combinations the model never saw × {args.seeds} seeds; B-LoRA rank {settings.rank}, {settings.max_train_steps} steps at {settings.learning_rate} (chosen by trying on these pairs; the ordinary LoRAs have the same and were not tuned); of unseen objects and styles eight pictures each; made by `python benchmarks/separation.py --pictures {len(pictures)}`. ±: the standard error of both right, each pair counted once, as its pictures are alike.\n\n"
    (HERE / "separation.md").write_text(
        "# Separation on the teaching model\n\n"
        + head
        + "\n".join(lines)
        + "\n\n![the first twelve pairs](separation.png)\n"
    )


if __name__ == "__main__":
    main()
