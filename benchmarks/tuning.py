"""How long to train on the teaching model, how fast, and with which guidance: on the tuning set.

    python data/world/fetch_shapes.py    # once: the icons; needs npm, resvg-py, scipy
    python benchmarks/tuning.py    # an hour on one core; tuning.md and .json

The pictures are drawn as those of separation.py, from the other half of the held-out names, so that
what is chosen here has not seen what is measured there. One training serves all its checkpoints.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from blora_nb.defaults import TINY_DEFAULTS
from blora_nb.evaluation.judge import Judge
from blora_nb.generation import sample
from blora_nb.instant import instant_blora
from blora_nb.lora import BLoRA, apply
from blora_nb.pipeline import load_pipeline
from blora_nb.settings import TrainingSettings
from blora_nb.training import train
from report import fingerprint, shares, summary, table, write
from separation import PROMPT, HeldOut, Ranking, rebuilding

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline
    from PIL import Image

CHECKPOINTS = 8  # of each training
MEASURED = (1, 2, 3, 5, 8)  # of these
GUIDANCES = (1.0, 1.25, 1.5, 2.0, 3.0)
COLUMNS = ["object right", "style right", "both right", "±", "rebuilt, dB"]
COLUMNS += ["better than one colour by 3 dB", "by 4 dB"]


def trained(
    pipe: "StableDiffusionXLPipeline", picture: "Image.Image", learning_rate: float, every: int
) -> list[BLoRA]:
    """The B-LoRAs of one picture after each `every` steps of one training."""
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingSettings.for_pipeline(
            pipe,
            max_train_steps=CHECKPOINTS * every,
            checkpointing_steps=every,
            learning_rate=learning_rate,
        )
        train(pipe, picture, settings, output_dir=folder, progress=False)
        checkpoints = [Path(folder) / f"checkpoint-{n * every}" for n in range(1, CHECKPOINTS + 1)]
        return [BLoRA.load(checkpoint) for checkpoint in checkpoints]


def measure(
    pipe: "StableDiffusionXLPipeline",
    ranking: Ranking,
    bloras: Sequence[BLoRA],
    pictures: list["Image.Image"],
    seeds: int,
    guidance: float = TINY_DEFAULTS.guidance_scale,
) -> dict[str, Any]:
    """Each picture's content in the style of the next one, and each picture rebuilt."""
    verdicts, rebuilt = [], []
    how: dict[str, Any] = {"guidance_scale": guidance, "progress": False}
    for i in range(len(bloras)):
        j = (i + 1) % len(bloras)
        apply(pipe, bloras[i], bloras[j])
        verdicts += ranking.right(sample(pipe, PROMPT, range(seeds), **how), i, j)
        apply(pipe, bloras[i], bloras[i])
        rebuilt += sample(pipe, "A [v]", **how)
    return summary(verdicts, seeds) | rebuilding(rebuilt, pictures)


def cells_of(rows: dict[str, dict[str, Any]]) -> list[list[str]]:
    keys = ("object", "style", "both", "standard error", "mean dB")
    better = ("share better by 3 dB", "share better by 4 dB")
    return [[name, *shares(row, *keys, *better)] for name, row in rows.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--pairs", type=int, default=48)
    add("--seeds", type=int, default=2)
    add("--every", type=int, default=20, help="steps from one checkpoint to the next of eight")
    add("--learning-rates", type=float, nargs="+", default=[1e-3, 3e-4])
    args = parser.parse_args()
    pipe, held_out = load_pipeline("tiny", device="cpu"), HeldOut.draw("tuning", args.pairs)
    ranking, pictures = Ranking(Judge.load(), held_out.pictures), held_out.pictures[: args.pairs]
    rows, by_guidance = {}, {}
    chosen = f"{TINY_DEFAULTS.max_train_steps} steps at {TINY_DEFAULTS.learning_rate:g}"

    def add_row(name: str, bloras: Sequence[BLoRA]) -> None:
        rows[name] = measure(pipe, ranking, bloras, pictures, args.seeds)
        print(name, *shares(rows[name], "object", "style", "both", "mean dB"), flush=True)
        for guidance in GUIDANCES if name in ("instant", chosen) else ():
            row = rows[name]
            if guidance != TINY_DEFAULTS.guidance_scale:
                row = measure(pipe, ranking, bloras, pictures, args.seeds, guidance)
            by_guidance[f"{name}, guidance {guidance:g}"] = row
            print("guidance", guidance, *shares(row, "both", "mean dB"), flush=True)

    add_row("instant", [instant_blora(pipe, picture) for picture in pictures])
    for rate in args.learning_rates:
        of_each = [trained(pipe, one, rate, args.every) for one in tqdm(pictures, desc=f"{rate}")]
        for n, bloras in enumerate(zip(*of_each), 1):
            if n in MEASURED:
                add_row(f"{n * args.every} steps at {rate:g}", bloras)
    text = f"""# How long to train, and with which guidance to draw

Made by `python benchmarks/tuning.py`. {args.pairs} pairs of held-out drawings in held-out styles \
× {args.seeds} seeds, none of which is in [separation.md](separation.md): the content of one \
picture in the style of the next, each right among 100 candidates by the judge; ± is the standard \
error of both right. Rebuilt: both halves of a picture, against that picture. Training starts from \
the instant B-LoRA. Guidance {TINY_DEFAULTS.guidance_scale:g} in the first table.

{table(COLUMNS, cells_of(rows))}
{table(COLUMNS, cells_of(by_guidance))}"""
    results = {"table": rows, "by guidance": by_guidance, "pairs": args.pairs}
    write("tuning", text, results | {"model": fingerprint()})


if __name__ == "__main__":
    main()
