"""Where the models, the example pictures and their B-LoRAs are."""

import json
from pathlib import Path

DATA = Path(__file__).resolve().parent / "data"
TINY_SDXL = DATA / "tiny_sdxl"
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
ADDRESS = "https://github.com/blora-nb/blora-nb"
INSTALL_AGAIN = f'pip install --force-reinstall --no-deps "git+{ADDRESS}"'


def known_words() -> dict[str, list[str]]:
    """The words that the teaching model understands: "objects", "styles", "colours", "others"."""
    return json.loads((TINY_SDXL / "words.json").read_text(encoding="utf-8"))
