"""blora_nb: learn and use B-LoRA, implicit style-content separation, in notebooks.

The method in reading order: `blocks`, `training`, `adapters`, `generation`; `trainer` runs it. Source: arXiv 2403.14572.
"""

from importlib import import_module

__version__ = "0.1.0"
WHERE = {
    "AlphaPanel": "panels",
    "BLoRA": "adapters",
    "CheckpointPicker": "picker",
    "SeedPanel": "panels",
    "TrainingSettings": "configuration",
    "alpha_grid": "figures",
    "generate": "generation",
    "load_pipeline": "models",
    "prompt_per_block": "inspection",
    "record_attention": "inspection",
    "save_picture": "images",
    "train": "trainer",
}
__all__ = list(WHERE)


def __getattr__(name):
    """Imported when it is asked for: the command line needs neither ipywidgets nor matplotlib, and answers Ctrl-C while PyTorch is imported."""
    if name not in WHERE:
        raise AttributeError(f"blora_nb has no {name!r}")
    return getattr(import_module(f".{WHERE[name]}", __name__), name)


def __dir__():
    return sorted({*globals(), *WHERE})
