"""The reference: what the top of the package offers, by task, and a page for each module."""

import re
from dataclasses import fields
from pathlib import Path

import blora_nb
from blora_nb.settings import TrainingSettings

FOLDER = "reference"
NAMES = {
    "Load a model": ("load_pipeline", "known_words", "encode_prompt", "print_check"),
    "Train a B-LoRA": ("train", "TrainingSettings", "instant_blora", "validation_pictures"),
    "Put halves on and take them off": (
        "BLoRA",
        "apply",
        "set_alphas",
        "remove",
        "combine",
        "from_original_alpha",
    ),
    "Draw pictures": ("generate", "sample", "read_image", "save_picture"),
    "Look inside": ("prompt_per_block", "record_attention", "overlay"),
    "Measure and rank": ("scorer_for", "seed_ranking", "frontier", "rebuild"),
    "Draw figures": (
        "picture_grid",
        "alpha_grid",
        "heat_map",
        "line_figure",
        "loss_curve",
        "unet_diagram",
    ),
    "Turn things live": ("AlphaPanel", "SeedPanel", "CheckpointPicker", "DrawingPad"),
    "Use the course's examples": ("example_names", "example_picture", "example_blora"),
}
# the modules that are shown with all their public names, in reading order
METHOD = (
    "blocks",
    "pipeline",
    "lora",
    "training",
    "generation",
    "sampling",
    "inspection",
    "settings",
    "structure",
    "instant",
    "evaluation.metrics",
    "evaluation.judge",
    "evaluation.rebuilding",
    "evaluation.checkpoint_scores",
    "figures.grids",
    "figures.charts",
    "figures.heat_maps",
    "figures.checkpoints",
    "figures.alpha_frontier",
    "figures.diagram",
)


def write_reference(book: Path) -> None:
    """Write the pages of the reference into the sources of the book.

    Raises:
        ValueError: a name of `blora_nb.__all__` has no place here, or one has that is not in it.
    """
    grouped = {name for names in NAMES.values() for name in names}
    strays = sorted(grouped ^ set(blora_nb.__all__))
    if strays:
        raise ValueError(
            f"site/reference.py and blora_nb.__all__ differ in {', '.join(strays)}: "
            "put each name of the top into a group of NAMES."
        )
    folder = book / FOLDER
    folder.mkdir()
    for module in modules():
        text = page(module)
        (folder / f"{module}.md").write_text(text, encoding="utf-8")
    (folder / "index.md").write_text(overview(), encoding="utf-8")


def modules() -> list[str]:
    """The modules with a page: those of the method, then those the top takes names from."""
    method = [f"blora_nb.{name}" for name in METHOD]
    return [*method, *(name for name in blora_nb.NAMES if name not in method)]


def in_rst(*lines: str) -> str:
    """Lines for Sphinx's own directives, inside Markdown."""
    return "\n".join(["```{eval-rst}", *lines, "```"])


def overview() -> str:
    """The names of the top by task, each with its first sentence."""
    parts = [
        "# Reference",
        "Every name on this page comes from the top: `from blora_nb import train, generate`. The"
        " modules below hold these and what they are made of, and are meant to be read.",
    ]
    for task, names in NAMES.items():
        rows = [f"   ~{blora_nb.MODULE_OF[name]}.{name}" for name in names]
        summary = in_rst(".. autosummary::", "   :nosignatures:", "", *rows)
        parts += [f"## {task}", summary]
    rows = [f"   {name}" for name in modules()]
    contents = ["```{toctree}", ":maxdepth: 1", "", *(name.strip() for name in rows), "```"]
    parts += ["## Modules", "\n".join(contents)]
    return "\n\n".join(parts) + "\n"


def page(module: str) -> str:
    """A module's page: all public names of the method's modules, of the others what the top has."""
    parts = [f"# {module.removeprefix('blora_nb.')}"]
    whole = module.removeprefix("blora_nb.") in METHOD
    shown = "" if whole else f" {', '.join(blora_nb.NAMES[module])}"
    directive = f".. automodule:: {module}"
    if module == "blora_nb.settings":
        parts += [in_rst(directive), settings_class(module), *settings_tables()]
    else:
        parts += [in_rst(directive, f"   :members:{shown}")]
    return "\n\n".join(parts) + "\n"


def settings_class(module: str) -> str:
    """The class alone: its forty arguments stand in the tables."""
    return in_rst(f".. autoclass:: {module}.TrainingSettings(**settings)", "   :members:")


def settings_tables() -> list[str]:
    """A table for each group of settings, as `--help` has them."""
    groups: dict[str, list[str]] = {}
    for field in fields(TrainingSettings):
        sentence = field.metadata["help"].replace("|", "\\|").replace("[v]", "\\[v\\]")
        sentence = re.sub(r"--\w+", r"`\g<0>`", sentence)
        row = f"| `{field.name}` | `{field.default!r}` | {sentence} |"
        groups.setdefault(field.metadata["group"], []).append(row)
    parts = ["## All settings"]
    for group, rows in groups.items():
        table = ["| setting | default | what it does |", "|---|---|---|", *rows]
        parts += [f"### {group.capitalize()}", "\n".join(table)]
    return parts
