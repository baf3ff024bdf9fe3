"""Where training writes: outputs/teaching_model, or the folder that TEACHING_MODEL_WORK names."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
WORK = Path(os.environ.get("TEACHING_MODEL_WORK", ROOT / "outputs" / "teaching_model"))
KEPT = Path(__file__).resolve().parent.parent / "open_world"  # what was trained and is in git
