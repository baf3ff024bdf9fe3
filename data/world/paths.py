"""Where training leaves what it makes: an ignored folder of the clone."""

from pathlib import Path

DATA = Path(__file__).resolve().parent.parent
WORK = DATA.parent / "outputs" / "teaching_model"
