"""Where am I running, on which device, in which dtype; and a table that says so."""

import os
import sys
from dataclasses import dataclass

import torch


def host():
    """ "Colab", "Kaggle", "Jupyter" or "Python"."""
    if "google.colab" in sys.modules:
        return "Colab"
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return "Kaggle"
    return "Jupyter" if "ipykernel" in sys.modules else "Python"


def default_base():
    """The base model of the course: "tiny", or what the environment variable BLORA_BASE says ("sdxl", an id, a folder)."""
    return os.environ.get("BLORA_BASE") or "tiny"


def default_device():
    """ "cuda", "mps" or "cpu", the first that really computes."""
    for device, there in (
        ("cuda", torch.cuda.is_available),
        ("mps", torch.backends.mps.is_available),
    ):
        if there():
            try:
                (torch.ones(2, device=device) + 1).sum().item()
                return device
            except RuntimeError:  # e.g. a P100 with a PyTorch that has no kernels for it
                continue
    return "cpu"


def check_device(device):
    """Raise a ValueError unless PyTorch knows a device of this name and there is one here."""
    try:
        kind = torch.device(device).type
        there = {
            "cuda": torch.cuda.is_available,
            "mps": torch.backends.mps.is_available,
            "cpu": lambda: True,
        }[kind]()
    except (RuntimeError, KeyError):
        raise ValueError(
            f"{device!r} is no device; name cuda, mps or cpu, or leave it out for the best that works."
        ) from None
    if not there:
        raise ValueError(f"There is no {device} here. Leave the device out, or name cpu.")


def default_dtype(device):
    """bfloat16 where the GPU computes in it (capability 8 and up; a T4 only emulates it), else float16; float32 on a CPU."""
    if not str(device).startswith("cuda"):
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16


@dataclass(frozen=True)
class MemoryProfile:
    """What a device's memory asks of the base model. Gradient checkpointing is chosen later, by what is then still free."""

    name: str
    quantization: str | None  # of the frozen U-Net
    vae_tiling: bool


PROFILES = (  # from so many GiB on; SDXL's U-Net takes 4.8 GiB in 16 bits and 1.7 in nf4 (counted)
    (22, MemoryProfile("24 GB and more", None, False)),
    (11, MemoryProfile("T4 and other cards of 12 to 16 GB", None, False)),
    (0, MemoryProfile("8 GB", "nf4", True)),
)


def memory_profile(device, total=None):
    """The `MemoryProfile` for a device; `total` bytes of memory instead of what the device says."""
    if total is None:
        total = (
            torch.cuda.get_device_properties(device).total_memory
            if str(device).startswith("cuda")
            else float("inf")
        )
    return next(profile for least, profile in PROFILES if total >= least * 2**30)
