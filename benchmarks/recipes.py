"""Do the optional recipes help on the teaching model? The same pairs and seeds with each.

    python benchmarks/recipes.py    # about 40 minutes on one core; writes recipes.md and .json

Pictures and pairs are those of course_drawings.py, which the model has never seen. For each pair
the halves are put together with the prompt "A [c] in [s] style". Of the 24 pictures, which one is
the result most like in shape, and which in style? The judge says.
"""

import argparse
from typing import Any

from blora_nb.evaluation.metrics import JudgeScorer
from blora_nb.generation import generate
from blora_nb.lora import BLoRA
from blora_nb.pipeline import load_pipeline
from blora_nb.settings import TrainingSettings
from blora_nb.training import train
from course_drawings import PROMPT, drawings, pairs, verdicts
from report import PAIR_BY_PAIR, against, fingerprint, shares, summary, table, write

X0 = "x0 loss in the second half"


def measure(seeds: int) -> dict[str, dict[str, Any]]:
    """A row of numbers for each recipe, and for none ("plain")."""
    pipe, scorer, pictures = load_pipeline(device="cpu"), JudgeScorer(), drawings()
    half = TrainingSettings.for_pipeline(pipe).max_train_steps // 2
    rows = {}

    def row(name: str, bloras: dict[str, BLoRA]) -> None:
        found = []
        for i, j in pairs(pictures):
            images = generate(
                pipe, PROMPT, bloras[i], bloras[j], seeds=range(seeds), progress=False
            )
            found += verdicts(scorer, images, i, j, pictures)
        rows[name] = summary(found, seeds)
        print(name, rows[name], flush=True)

    def trained(**changes: Any) -> dict[str, BLoRA]:
        return {
            name: train(pipe, picture, progress=False, **changes)
            for name, picture in pictures.items()
        }

    def two_step(first: dict[str, BLoRA], **changes: Any) -> dict[str, BLoRA]:
        return {
            name: train(pipe, picture, progress=False, content=first[name], **changes)
            for name, picture in pictures.items()
        }

    plain = trained()
    row("plain", plain)
    row("two-step style training", two_step(plain))
    row("min-SNR 5", trained(snr_gamma=5.0))
    x0 = trained(x0_loss_from=half)
    row(X0, x0)
    row(f"two-step style training, {X0}", two_step(x0, x0_loss_from=half))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    rows = measure(args.seeds)
    cells = []
    for name, row in rows.items():
        cells.append([name, *shares(row, "object", "style", "both"), against(row, rows["plain"])])
    columns = ["object right", "style right", "both right", "difference"]
    text = f"""# Optional recipes on the teaching model

Made by `python benchmarks/recipes.py`; model {fingerprint()}, {rows["plain"]["pictures"]} \
pictures a row (24 pairs of drawings that the model has never seen, {args.seeds} seeds).
Share of pictures that are, of the 24, most like the content picture's object in shape, most like
the style picture's style, both; and the difference from plain, {PAIR_BY_PAIR}

{table(columns, cells)}"""
    write("recipes", text, {"model": fingerprint(), "rows": rows})


if __name__ == "__main__":
    main()
