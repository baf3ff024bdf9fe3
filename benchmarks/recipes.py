"""Do the optional recipes help on the teaching model? The same pictures, pairs and seeds with and without each.

    python benchmarks/recipes.py    # some minutes on two cores; writes recipes.md and .json

For each pair (content picture, style picture) the halves are put together with the prompt "A [c] in [s] style"; the judge
names object and style of what comes out.
"""

import argparse
import json
from pathlib import Path
import sys

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "data"))

from blora_nb import TrainingSettings, generate, load_pipeline, train  # noqa: E402
from blora_nb.metrics import Judge  # noqa: E402
from blora_nb.models import fingerprint  # noqa: E402
from drawings import draw  # noqa: E402

PICTURES = [("star", "sunset"), ("cat", "wood"), ("boat", "stripes"), ("apple", "popart")]
TRAININGS = {"plain": {}, "min-SNR 5": {"snr_gamma": 5.0}, "x0 loss in the second half": {"x0_loss_from": None}}  # None: half of the steps
SAMPLINGS = {"asymmetric guidance": {"asymmetric_guidance": True}, "timed halves (content until .7, style from .3)": {"content_until": 0.7, "style_from": 0.3}}
PROMPT = "A [c] in [s] style"


def score(pipe, judge, bloras, seeds, **options):
    """Share of pictures with the right object, style, and both, over all ordered pairs of different pictures."""
    verdicts = []
    for i, (wanted, _) in enumerate(PICTURES):
        for j, (_, style) in enumerate(PICTURES):
            if i != j:
                images = generate(pipe, PROMPT, bloras[i], bloras[j], seeds=range(seeds), progress=False, **options)
                verdicts += [(o == wanted, s == style) for o, s in judge.name(images)]
    count = len(verdicts)
    return {"pictures": count, "object": sum(o for o, _ in verdicts) / count, "style": sum(s for _, s in verdicts) / count, "both": sum(o and s for o, s in verdicts) / count}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    pipe, judge, rows = load_pipeline(device="cpu"), Judge.load(), {}
    settings = TrainingSettings.for_pipeline(pipe)
    pictures = [draw(o, s, 5, 192) for o, s in PICTURES]
    for name, changes in TRAININGS.items():
        changes = {key: settings.max_train_steps // 2 if value is None else value for key, value in changes.items()}
        bloras = [train(pipe, picture, progress=False, **changes) for picture in pictures]
        rows[name] = score(pipe, judge, bloras, args.seeds)
        print(name, rows[name], flush=True)
        if name == "plain":
            for sampling, options in SAMPLINGS.items():
                rows[sampling] = score(pipe, judge, bloras, args.seeds, **options)
                print(sampling, rows[sampling], flush=True)
    text = f"# Optional recipes on the teaching model\n\nMade by `python benchmarks/recipes.py`; model {fingerprint()}, {rows['plain']['pictures']} pictures a row ({len(PICTURES)} pictures, all ordered pairs, {args.seeds} seeds).\n"
    text += "Share of pictures in which the judge finds the content picture's object, the style picture's style, both.\n\n| | object right | style right | both right |\n|---|---|---|---|\n"
    text += "".join(f"| {name} | {r['object']:.2f} | {r['style']:.2f} | {r['both']:.2f} |\n" for name, r in rows.items())
    (HERE / "recipes.md").write_text(text)
    (HERE / "recipes.json").write_text(json.dumps({"model": fingerprint(), "rows": rows}, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
