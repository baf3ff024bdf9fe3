"""The results of `gpu.py` as Markdown tables."""

from typing import Any

from gpu_parts import PARTS
from report import table

MEMORY = {"peak allocated, GiB": 2, "peak reserved, GiB": 2, "in use on the device, GiB": 2}
# kinds of parts → heading, and the numbers of their rows with how many digits
STEP = {"seconds a step": 3, "first step, s": 1, **MEMORY, "peak of a step, GiB": 2}
PICTURE = {"seconds a picture": 2, "first picture, s": 1, **MEMORY}
PICTURE |= {"other alphas, ms": 1, "other halves, ms": 0}
TABLES: dict[tuple[str, ...], tuple[str, dict[str, int]]] = {
    ("train", "peer"): ("A training step of SDXL", STEP),
    ("generate",): ("A picture of SDXL", PICTURE),
    ("teaching",): (
        "The teaching model",
        {"seconds a B-LoRA": 1, "seconds a picture": 2, **MEMORY},
    ),
    ("replay",): (
        "The original's recorded run",
        {"holds": 0, "losses differ by, relative": -1, "weights differ by": -1},
    ),
    ("two_gpus",): (
        "Two GPUs",
        {"pictures an hour, one GPU": 0, "pictures an hour, two GPUs": 0},
    ),
}
NOT_MEASURED = "not measured"
ABOUT = """\
Made by `python benchmarks/gpu.py`, which gpu.md explains. The weights of SDXL are random, on which
neither time nor memory depends. Seconds are medians on the clock; first: with what is done once,
such as compiling. Memory: of all tensors at most (allocated), with what PyTorch keeps for later
(reserved), of a step alone, and of all programs on the device at the end.
"""
SIMULATED = """\
**A dry run.** Nothing was computed on a GPU and no time was measured: tensors had shapes only, of
an SDXL of the size "{size}", and memory is that of the tensors which the script made.
"""


def cell(number: Any, digits: int) -> str:
    """A number with so many digits; with -1 a small one, by its size."""
    if number is None:
        return NOT_MEASURED
    if not isinstance(number, (int, float)):
        return str(number)
    return f"{number:.0e}" if digits < 0 else f"{number:.{digits}f}"


def row(name: str, found: dict[str, Any], columns: dict[str, int]) -> list[str]:
    """The cells of a part: its numbers, a remark, and what it was made with."""
    numbers = found.get("numbers", {})
    cells = [
        cell(numbers[key], digits) if key in numbers else "" for key, digits in columns.items()
    ]
    made_with = found["made with"] | numbers.get("made with", {})
    remark = numbers.get("settings") or f"{NOT_MEASURED}: {found['why']}"
    return [name, *cells, remark, *(made_with[key] for key in ("device", "torch", "diffusers"))]


def document(results: dict[str, Any]) -> str:
    """All that is known so far."""
    parts = results["parts"]
    text = f"# Measured on: {results['device']}\n\n{ABOUT}"
    if results["simulated"]:
        text = f"# Dry run\n\n{SIMULATED.format(size=results['size'])}"
    for kinds, (heading, columns) in TABLES.items():
        names = [part.name for part in PARTS if part.kind in kinds and part.name in parts]
        if names:
            rows = [row(name, parts[name], columns) for name in names]
            heads = [*columns, "remark", "device", "torch", "diffusers"]
            text += f"\n## {heading}\n\n{table(heads, rows)}"
    left = [part.name for part in PARTS if part.name not in parts]
    if left:
        text += f"\nNot run yet: {'; '.join(left)}.\n"
    return text
