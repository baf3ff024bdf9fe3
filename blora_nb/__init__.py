"""blora_nb: learn and use B-LoRA, implicit style-content separation, in notebooks.

The method in reading order: `blocks`, `pipeline`, `lora`, `training`, `generation`, `inspection`.
Source: Frenkel et al., arXiv 2403.14572.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blora_nb.assets import known_words as known_words
    from blora_nb.cli.check import print_check as print_check
    from blora_nb.course.examples import example_blora as example_blora
    from blora_nb.course.examples import example_names as example_names
    from blora_nb.course.examples import example_picture as example_picture
    from blora_nb.evaluation.metrics import scorer_for as scorer_for
    from blora_nb.evaluation.rebuilding import rebuild as rebuild
    from blora_nb.evaluation.validation import validation_pictures as validation_pictures
    from blora_nb.figures.alpha_frontier import frontier as frontier
    from blora_nb.figures.charts import line_figure as line_figure
    from blora_nb.figures.charts import loss_curve as loss_curve
    from blora_nb.figures.diagram import unet_diagram as unet_diagram
    from blora_nb.figures.grids import alpha_grid as alpha_grid
    from blora_nb.figures.grids import picture_grid as picture_grid
    from blora_nb.figures.grids import seed_ranking as seed_ranking
    from blora_nb.figures.heat_maps import heat_map as heat_map
    from blora_nb.figures.heat_maps import overlay as overlay
    from blora_nb.files.images import read_image as read_image
    from blora_nb.files.saved_images import save_picture as save_picture
    from blora_nb.generation import generate as generate
    from blora_nb.generation import sample as sample
    from blora_nb.inspection import prompt_per_block as prompt_per_block
    from blora_nb.inspection import record_attention as record_attention
    from blora_nb.instant import instant_blora as instant_blora
    from blora_nb.lora import BLoRA as BLoRA
    from blora_nb.lora import apply as apply
    from blora_nb.lora import combine as combine
    from blora_nb.lora import from_original_alpha as from_original_alpha
    from blora_nb.lora import remove as remove
    from blora_nb.lora import set_alphas as set_alphas
    from blora_nb.pipeline import encode_prompt as encode_prompt
    from blora_nb.pipeline import load_pipeline as load_pipeline
    from blora_nb.settings import TrainingSettings as TrainingSettings
    from blora_nb.training import train as train
    from blora_nb.widgets.pad import DrawingPad as DrawingPad
    from blora_nb.widgets.panels import AlphaPanel as AlphaPanel
    from blora_nb.widgets.panels import SeedPanel as SeedPanel
    from blora_nb.widgets.picker import CheckpointPicker as CheckpointPicker

__version__ = "0.1.0"

NAMES = {
    "blora_nb.cli.check": ("print_check",),
    "blora_nb.course.examples": ("example_blora", "example_names", "example_picture"),
    "blora_nb.figures.charts": ("line_figure", "loss_curve"),
    "blora_nb.figures.diagram": ("unet_diagram",),
    "blora_nb.figures.grids": ("alpha_grid", "picture_grid", "seed_ranking"),
    "blora_nb.figures.heat_maps": ("heat_map", "overlay"),
    "blora_nb.figures.alpha_frontier": ("frontier",),
    "blora_nb.assets": ("known_words",),
    "blora_nb.files.images": ("read_image",),
    "blora_nb.files.saved_images": ("save_picture",),
    "blora_nb.generation": ("generate", "sample"),
    "blora_nb.inspection": ("prompt_per_block", "record_attention"),
    "blora_nb.instant": ("instant_blora",),
    "blora_nb.lora": ("BLoRA", "apply", "combine", "from_original_alpha", "remove", "set_alphas"),
    "blora_nb.evaluation.metrics": ("scorer_for",),
    "blora_nb.pipeline": ("encode_prompt", "load_pipeline"),
    "blora_nb.evaluation.rebuilding": ("rebuild",),
    "blora_nb.settings": ("TrainingSettings",),
    "blora_nb.training": ("train",),
    "blora_nb.evaluation.validation": ("validation_pictures",),
    "blora_nb.widgets.pad": ("DrawingPad",),
    "blora_nb.widgets.panels": ("AlphaPanel", "SeedPanel"),
    "blora_nb.widgets.picker": ("CheckpointPicker",),
}
MODULE_OF = {name: module for module, names in NAMES.items() for name in names}

if not TYPE_CHECKING:
    # type checkers and editors take the names that are imported above as themselves
    __all__ = sorted(MODULE_OF)


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
