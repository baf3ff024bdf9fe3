"""Where the teaching model, the judge, the example pictures and their B-LoRAs lie."""

import hashlib
from pathlib import Path

DATA = Path(__file__).resolve().parent.parent / "data"


TINY_SDXL = DATA / "tiny_sdxl"


def fingerprint(folder=TINY_SDXL):
    """Twelve hexadecimal digits that name a U-Net's weights, to tell which model a measurement belongs to."""
    return hashlib.sha256(
        (Path(folder) / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    ).hexdigest()[:12]
