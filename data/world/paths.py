"""Where training writes: outputs/teaching_model, or the folder that TEACHING_MODEL_WORK names."""

import os
from pathlib import Path

DATA = Path(__file__).resolve().parent.parent
WORK = Path(os.environ.get("TEACHING_MODEL_WORK", DATA.parent / "outputs" / "teaching_model"))
