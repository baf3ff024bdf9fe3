"""blora_nb: learn and use B-LoRA, implicit style-content separation, in notebooks.

The method in reading order: `blocks`, `training`, `adapters`, `generation`; `trainer` runs it. Source: arXiv 2403.14572.
"""

from .adapters import BLoRA
from .configuration import TrainingSettings
from .generation import generate
from .images import save_picture
from .inspection import prompt_per_block, record_attention
from .models import load_pipeline
from .trainer import train

__all__ = ["AlphaPanel", "BLoRA", "CheckpointPicker", "SeedPanel", "TrainingSettings", "alpha_grid", "generate", "load_pipeline", "prompt_per_block", "record_attention", "save_picture", "train"]
__version__ = "0.1.0"


def __getattr__(name):
    """Widgets and figures are imported when they are used: the command line needs neither ipywidgets nor matplotlib."""
    if name in ("AlphaPanel", "SeedPanel"):
        from . import panels

        return getattr(panels, name)
    if name == "CheckpointPicker":
        from .picker import CheckpointPicker

        return CheckpointPicker
    if name == "alpha_grid":
        from .figures import alpha_grid

        return alpha_grid
    raise AttributeError(f"blora_nb has no {name!r}")
