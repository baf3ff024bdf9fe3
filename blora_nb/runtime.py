"""Where am I running, on which device, in which dtype; and a table that says so."""

import importlib.metadata
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "ipywidgets")


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


def check():
    """Rows (state, what, found, remedy) of the check table; the state is "OK" or "FAIL"."""
    from .models import TINY_SDXL

    device = default_device()
    rows = [
        (
            "OK" if sys.version_info >= (3, 11) else "FAIL",
            "Python",
            sys.version.split()[0],
            "install Python 3.11 or later",
        )
    ]
    wanted = requirements()
    for package in PACKAGES:
        remedy = f'pip install "{wanted.get(package, package)}"'
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            rows.append(("FAIL", package, "not installed", remedy))
            continue
        fits = package not in wanted or wanted[package].specifier.contains(
            version, prereleases=True
        )
        rows.append(("OK" if fits else "FAIL", package, version, remedy))
    rows.append(("OK", "host", host(), ""))
    rows.append(
        ("OK", "device", f"{device}, {str(default_dtype(device)).removeprefix('torch.')}", "")
    )
    rows.append(
        (
            "OK",
            "base model",
            f"{default_base()}   (environment variable BLORA_BASE: tiny, sdxl, or an id or folder)",
            "",
        )
    )
    if device.startswith("cuda"):
        rows.append(("OK", "memory profile", memory_profile(device).name, ""))
    here = (TINY_SDXL / "model_index.json").exists()
    rows.append(
        (
            "OK" if here else "FAIL",
            "teaching model",
            "data/tiny_sdxl" if here else "missing",
            "clone the whole repository; data/ is part of it",
        )
    )
    return rows


def print_check():
    """Print the check table; True if every line is OK."""
    rows = check()
    for state, what, found, remedy in rows:
        print(f"[{state:^4}] {what:<15} {found}" + (f"   -> {remedy}" if state == "FAIL" else ""))
    return all(row[0] == "OK" for row in rows)


def requirements():
    """Name to `packaging` Requirement of everything pyproject.toml asks for; none where only the module was copied."""
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    file = Path(__file__).resolve().parent.parent / "pyproject.toml"
    wanted = (
        [Requirement(text) for text in tomllib.loads(file.read_text())["project"]["dependencies"]]
        if file.exists()
        else []
    )
    return {canonicalize_name(requirement.name): requirement for requirement in wanted}


def install_missing():
    """Install what pyproject.toml asks for and this Python lacks; what is there, torch and numpy above all, stays as it is.

    For Colab and Kaggle, where a wrong torch costs the session. Returns the requirements that were installed.
    """
    import subprocess
    import tempfile

    from packaging.utils import canonicalize_name

    here = {
        canonicalize_name(d.metadata["Name"]): d.version
        for d in importlib.metadata.distributions()
        if d.metadata["Name"]
    }
    missing = [str(wanted) for name, wanted in requirements().items() if name not in here]
    if missing:
        print("installing", ", ".join(missing), "...")
        with tempfile.NamedTemporaryFile(
            "w", suffix=".txt"
        ) as constraints:  # nothing that is there may move
            constraints.write("\n".join(f"{name}=={version}" for name, version in here.items()))
            constraints.flush()
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    "--disable-pip-version-check",
                    "--constraint",
                    constraints.name,
                    *missing,
                ],
                check=True,
            )
    return missing
