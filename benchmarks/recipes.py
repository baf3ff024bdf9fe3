"""Do the optional recipes help on the teaching model? The same pairs of pictures and seeds with and without each.

    python benchmarks/recipes.py    # about 40 minutes on one core; writes recipes.md and .json

Pictures and pairs are those of separation.py: combinations that the model has never seen. For each pair the halves are put
together with the prompt "A [c] in [s] style"; the judge names object and style of what comes out.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from blora_nb.assets import fingerprint
from blora_nb.generation import generate
from blora_nb.metrics import Judge
from blora_nb.pipeline import load_pipeline
from blora_nb.settings import TrainingSettings
from blora_nb.training import train
from separation import PROMPT, held_out_pictures, pairs, summary

HALF = TrainingSettings.max_train_steps  # stands for half of the steps that suit the pipeline
TRAININGS = {
    "plain": {},
    "min-SNR 5": {"snr_gamma": 5.0},
    "x0 loss in the second half": {"x0_loss_from": HALF},
}
TWO_STEP = {
    "plain": "two-step style training",
    "x0 loss in the second half": "two-step style training, x0 loss in the second half",
}
SAMPLINGS = {
    "asymmetric guidance": {"asymmetric_guidance": True},
    "timed halves (content until .7, style from .3)": {"content_until": 0.7, "style_from": 0.3},
}


def score(pipe, judge, pictures, bloras, seeds, **options):
    """The `summary` of the results of all pairs."""
    verdicts = []
    for i, j in pairs(pictures):
        images = generate(
            pipe, PROMPT, bloras[i], bloras[j], seeds=range(seeds), progress=False, **options
        )
        verdicts += [(o == pictures[i][0], s == pictures[j][1]) for o, s in judge.name(images)]
    return summary(verdicts, seeds)


def measure(seeds):
    pipe, judge, rows = load_pipeline(device="cpu"), Judge.load(), {}
    steps, pictures = TrainingSettings.for_pipeline(pipe).max_train_steps, held_out_pictures()

    def row(name, bloras, **options):
        rows[name] = score(pipe, judge, pictures, bloras, seeds, **options)
        print(name, rows[name], flush=True)

    for name, changes in TRAININGS.items():
        changes = {key: steps // 2 if value == HALF else value for key, value in changes.items()}
        bloras = [train(pipe, picture, progress=False, **changes) for *_, picture in pictures]
        row(name, bloras)
        for sampling, options in SAMPLINGS.items() if name == "plain" else ():
            row(sampling, bloras, **options)
        if name in TWO_STEP:
            row(
                TWO_STEP[name],
                [
                    train(pipe, picture, progress=False, content=blora, **changes)
                    for (*_, picture), blora in zip(pictures, bloras)
                ],
            )
    return rows


PAIRED = "of the same pairs of pictures; ± is its standard error, each pair counted once, as its pictures are alike. A difference of less than twice that says little."


def against(row, other):
    """ "+0.04 ± 0.03": the mean difference of "both right" between two rows and its standard error, pair by pair."""
    difference = np.subtract(row["both, of each pair"], other["both, of each pair"])
    return (
        f"{round(difference.mean(), 2) + 0.0:+.2f} ± {difference.std(ddof=1) / len(difference) ** 0.5:.2f}"
        if row is not other
        else ""
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    rows = measure(args.seeds)
    text = f"# Optional recipes on the teaching model\n\nMade by `python benchmarks/recipes.py`; model {fingerprint()}, {rows['plain']['pictures']} pictures a row (24 pairs of held-out combinations, {args.seeds} seeds).\n"
    text += f"Share of pictures in which the judge finds the content picture's object, the style picture's style, both; and the difference from plain, {PAIRED}\n\n| | object right | style right | both right | difference |\n|---|---|---|---|---|\n"
    text += "".join(
        f"| {name} | {r['object']:.2f} | {r['style']:.2f} | {r['both']:.2f} | {against(r, rows['plain'])} |\n"
        for name, r in rows.items()
    )
    (HERE / "recipes.md").write_text(text)
    (HERE / "recipes.json").write_text(
        json.dumps({"model": fingerprint(), "rows": rows}, indent=1) + "\n"
    )
    print(text)


if __name__ == "__main__":
    main()
