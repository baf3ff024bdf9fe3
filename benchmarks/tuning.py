"""How long to train on the teaching model, and at which learning rate: on the tuning set.

    python data/world/fetch_shapes.py    # once: the icons; needs npm, resvg-py, scipy
    python benchmarks/tuning.py    # 45 minutes on one core; tuning.md and .json

The pictures are drawn as those of separation.py, from the other half of the held-out names, so that
what is chosen here has not seen what is measured there. One training serves all its checkpoints.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

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
) -> dict[str, Any]:
    """Each picture's content in the style of the next one, and each picture rebuilt."""
    verdicts, rebuilt = [], []
    for i in range(len(bloras)):
        j = (i + 1) % len(bloras)
        apply(pipe, bloras[i], bloras[j])
        verdicts += ranking.right(sample(pipe, PROMPT, range(seeds), progress=False), i, j)
        apply(pipe, bloras[i], bloras[i])
        rebuilt += sample(pipe, "A [v]", progress=False)
    return summary(verdicts, seeds) | rebuilding(rebuilt, pictures)


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
    rows = {}

    def add_row(name: str, bloras: Sequence[BLoRA]) -> None:
        rows[name] = measure(pipe, ranking, bloras, pictures, args.seeds)
        print(name, *shares(rows[name], "object", "style", "both", "mean dB"), flush=True)

    add_row("instant", [instant_blora(pipe, picture) for picture in pictures])
    for rate in args.learning_rates:
        of_each = [trained(pipe, one, rate, args.every) for one in tqdm(pictures, desc=f"{rate}")]
        for n, bloras in enumerate(zip(*of_each), 1):
            if n in MEASURED:
                add_row(f"{n * args.every} steps at {rate:g}", bloras)
    keys = ("object", "style", "both", "standard error", "mean dB")
    better = ("share better by 3 dB", "share better by 4 dB")
    columns = ["object right", "style right", "both right", "±", "rebuilt, dB"]
    columns += ["better than one colour by 3 dB", "by 4 dB"]
    cells = [[name, *shares(row, *keys, *better)] for name, row in rows.items()]
    text = f"""# How long to train

Made by `python benchmarks/tuning.py`. {args.pairs} pairs of held-out drawings in held-out styles \
× {args.seeds} seeds, none of which is in [separation.md](separation.md): the content of one \
picture in the style of the next, each right among 100 candidates by the judge; ± is the standard \
error of both right. Rebuilt: both halves of a picture, against that picture. Training starts from \
the instant B-LoRA.

{table(columns, cells)}"""
    write("tuning", text, {"table": rows, "pairs": args.pairs, "model": fingerprint()})


if __name__ == "__main__":
    main()
