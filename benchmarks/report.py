"""What all benchmarks share: Markdown tables, and where the results are written.

NumPy is imported late, so that `gpu.py` can begin without it.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent / "blora_nb" / "data" / "examples"
TINY_SDXL = HERE.parent / "blora_nb" / "data" / "tiny_sdxl"
OUTPUTS = HERE.parent / "outputs"  # for quick looks, which change no stored result

PAIR_BY_PAIR = (
    "of the same pairs of pictures; ± is its standard error, each pair counted once, as its "
    "pictures are alike. A difference of less than twice that says little."
)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], first: str = "") -> str:
    """A Markdown table. A row has a cell under `first`, then one for each of `columns`."""
    names = [first, *columns]
    head = "|" + "|".join(f" {name} " if name else " " for name in names) + "|\n"
    head += "|---" * len(names) + "|\n"
    return head + "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)


def write(name: str, text: str, results: dict[str, Any]) -> None:
    """Write NAME.md for people and NAME.json for the tests, and print the first."""
    (HERE / f"{name}.md").write_text(text)
    (HERE / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    print(text)


def fingerprint(folder: Path = TINY_SDXL) -> str:
    """Twelve hexadecimal digits that name the weights of a U-Net.

    They say to which model a measurement belongs.
    """
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:12]


def stored(name: str) -> dict[str, Any]:
    """The results written last, or none."""
    file = HERE / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def summary(verdicts: Sequence[Sequence[float]], seeds: int) -> dict[str, Any]:
    """Shares of pictures for which the judge finds the object, the style, and both.

    The pictures of a pair are alike, so it is pairs that count: the standard error of "both" is the
    standard deviation of the pairs' shares over √pairs.

    Args:
        verdicts: (object right, style right, …) of each picture, those of a pair in turn.
        seeds: pictures of each pair.
    """
    import numpy as np

    found = np.asarray(verdicts, dtype=float)
    both = (found[:, 0] * found[:, 1]).reshape(-1, seeds).mean(axis=1)
    return {
        "pictures": len(found),
        "object": float(found[:, 0].mean()),
        "style": float(found[:, 1].mean()),
        "both": float(both.mean()),
        "standard error": float(both.std(ddof=1) / len(both) ** 0.5),
        "both, of each pair": both.tolist(),
    }


def against(row: dict[str, Any], other: dict[str, Any]) -> str:
    """ "+0.04 ± 0.03": the mean difference of "both right" between two rows, pair by pair."""
    if row is other:
        return ""
    import numpy as np

    difference = np.subtract(row["both, of each pair"], other["both, of each pair"])
    error = difference.std(ddof=1) / len(difference) ** 0.5
    return f"{round(difference.mean(), 2) + 0.0:+.2f} ± {error:.2f}"


def shares(row: dict[str, Any], *keys: str) -> list[str]:
    """Some of a row's numbers as cells with two digits."""
    return [f"{row[key]:.2f}" for key in keys]
