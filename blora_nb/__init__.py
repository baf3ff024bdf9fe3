"""blora_nb: learn and use B-LoRA, implicit style-content separation, in notebooks.

The method in reading order: `blocks`, `training`, `adapters`, `generation`. Source: arXiv 2403.14572.
"""

from .adapters import BLoRA
from .generation import generate
from .inspection import prompt_per_block, record_attention
from .models import load_pipeline
from .training import TrainingSettings, train

__all__ = ["BLoRA", "TrainingSettings", "generate", "load_pipeline", "prompt_per_block", "record_attention", "train"]
__version__ = "0.1.0"
