"""Where this runs, on which device, in which dtype, and what that device's memory asks for."""

import os
import sys

import torch


def host() -> str:
    """One of "Colab", "Kaggle", "Jupyter" and "Python"."""
    if "google.colab" in sys.modules:
        return "Colab"
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return "Kaggle"
    return "Jupyter" if "ipykernel" in sys.modules else "Python"


def default_base() -> str:
    """The course's base model: "tiny", or what the environment variable BLORA_BASE says."""
    return os.environ.get("BLORA_BASE") or "tiny"


def default_device() -> str:
    """The first of "cuda", "mps" and "cpu" that really computes."""
    for device in ("cuda", "mps"):
        if _is_available(device):
            try:
                (torch.ones(2, device=device) + 1).sum().item()
                return device
            except RuntimeError:  # e.g. a P100 with a PyTorch that has no kernels for it
                continue
    return "cpu"


def check_device(device: torch.device | str) -> None:
    """Raise a ValueError unless PyTorch knows a device of this name and there is one here."""
    try:
        named = torch.device(device)
        kind, index = named.type, named.index or 0
    except RuntimeError:
        kind, index = "", 0
    if kind not in ("cuda", "mps", "cpu"):
        raise ValueError(
            f"{device!r} is no device; name cuda, mps or cpu, or leave it out for the best that "
            "works."
        )
    beyond = kind == "cuda" and index >= torch.cuda.device_count()
    if beyond or not _is_available(kind):
        raise ValueError(f"There is no {device} here. Leave the device out, or name cpu.")


def _is_available(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.is_available()
    return kind == "cpu" or torch.backends.mps.is_available()


def default_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16 where a GPU computes in it, else float16; float32 on a CPU.

    GPUs compute in bfloat16 from capability 8 on; a T4 only emulates it.
    """
    if not str(device).startswith("cuda"):
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16


def needs_4_bits(device: torch.device | str, total: float | None = None) -> bool:
    """Whether SDXL's U-Net must be kept in 4 bits (nf4: 1.7 GiB) instead of 16 (4.8 GiB, counted).

    Args:
        total: bytes of memory; by default what a GPU says, and no limit elsewhere.
    """
    if total is None and str(device).startswith("cuda"):
        total = torch.cuda.get_device_properties(device).total_memory
    return total is not None and total < 11 * 2**30
