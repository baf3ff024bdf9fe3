"""blora_nb: learn and use B-LoRA, implicit style-content separation, in notebooks.

The method in reading order: `blocks`, `pipeline`, `lora`, `training`, `generation`, `inspection`.
Source: Frenkel et al., arXiv 2403.14572.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blora_nb.alpha_frontier import frontier
    from blora_nb.assets import known_words
    from blora_nb.cli.check import print_check
    from blora_nb.course.examples import example_blora, example_names, example_picture
    from blora_nb.diagram import unet_diagram
    from blora_nb.figures import (
        alpha_grid,
        heat_map,
        line_figure,
        loss_curve,
        overlay,
        picture_grid,
        seed_ranking,
    )
    from blora_nb.files.images import read_image
    from blora_nb.files.saved_images import save_picture
    from blora_nb.generation import generate, sample
    from blora_nb.inspection import prompt_per_block, record_attention
    from blora_nb.instant import instant_blora
    from blora_nb.lora import BLoRA, apply, combine, from_original_alpha, remove, set_alphas
    from blora_nb.metrics import scorer_for
    from blora_nb.pipeline import encode_prompt, load_pipeline
    from blora_nb.rebuilding import rebuild
    from blora_nb.settings import TrainingSettings
    from blora_nb.training import train
    from blora_nb.validation import validation_pictures
    from blora_nb.widgets.pad import DrawingPad
    from blora_nb.widgets.panels import AlphaPanel, SeedPanel
    from blora_nb.widgets.picker import CheckpointPicker

__version__ = "0.1.0"

NAMES = {
    "blora_nb.cli.check": ("print_check",),
    "blora_nb.course.examples": ("example_blora", "example_names", "example_picture"),
    "blora_nb.diagram": ("unet_diagram",),
    "blora_nb.figures": (
        "alpha_grid",
        "heat_map",
        "line_figure",
        "loss_curve",
        "overlay",
        "picture_grid",
        "seed_ranking",
    ),
    "blora_nb.alpha_frontier": ("frontier",),
    "blora_nb.assets": ("known_words",),
    "blora_nb.files.images": ("read_image",),
    "blora_nb.files.saved_images": ("save_picture",),
    "blora_nb.generation": ("generate", "sample"),
    "blora_nb.inspection": ("prompt_per_block", "record_attention"),
    "blora_nb.instant": ("instant_blora",),
    "blora_nb.lora": ("BLoRA", "apply", "combine", "from_original_alpha", "remove", "set_alphas"),
    "blora_nb.metrics": ("scorer_for",),
    "blora_nb.pipeline": ("encode_prompt", "load_pipeline"),
    "blora_nb.rebuilding": ("rebuild",),
    "blora_nb.settings": ("TrainingSettings",),
    "blora_nb.training": ("train",),
    "blora_nb.validation": ("validation_pictures",),
    "blora_nb.widgets.pad": ("DrawingPad",),
    "blora_nb.widgets.panels": ("AlphaPanel", "SeedPanel"),
    "blora_nb.widgets.picker": ("CheckpointPicker",),
}
MODULE_OF = {name: module for module, names in NAMES.items() for name in names}

__all__ = [
    "AlphaPanel",
    "BLoRA",
    "CheckpointPicker",
    "DrawingPad",
    "SeedPanel",
    "TrainingSettings",
    "alpha_grid",
    "apply",
    "combine",
    "encode_prompt",
    "example_blora",
    "example_names",
    "example_picture",
    "from_original_alpha",
    "frontier",
    "generate",
    "heat_map",
    "instant_blora",
    "known_words",
    "line_figure",
    "load_pipeline",
    "loss_curve",
    "overlay",
    "picture_grid",
    "print_check",
    "prompt_per_block",
    "read_image",
    "rebuild",
    "record_attention",
    "remove",
    "sample",
    "save_picture",
    "scorer_for",
    "seed_ranking",
    "set_alphas",
    "train",
    "unet_diagram",
    "validation_pictures",
]


def __getattr__(name: str) -> Any:
    """A name is imported when it is asked for.

    So the command line needs neither ipywidgets nor matplotlib, and answers Ctrl-C while PyTorch
    is being imported.
    """
    if name not in MODULE_OF:
        raise AttributeError(f"blora_nb has no {name!r}")
    return getattr(import_module(MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULE_OF})
