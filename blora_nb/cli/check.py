"""What is installed and what it will run on: a table with a remedy for each fault."""

import importlib.metadata
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from blora_nb.running.device import (
    default_base,
    default_device,
    default_dtype,
    host,
    memory_profile,
)

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "ipywidgets")


class Row(NamedTuple):
    """One line of the table; `remedy` is shown where it is not ok."""

    ok: bool
    what: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = "" if self.ok else f"   -> {self.remedy}"
        return f"[{'OK' if self.ok else 'FAIL':^4}] {self.what:<15} {self.found}{remedy}"


def check() -> list[Row]:
    """The rows of the check table."""
    from blora_nb.assets import TINY_SDXL

    device = default_device()
    dtype = str(default_dtype(device)).removeprefix("torch.")
    choices = "(environment variable BLORA_BASE: tiny, sdxl, or an id or folder)"
    python = sys.version_info >= (3, 11)
    rows = [
        Row(python, "Python", sys.version.split()[0], "install Python 3.11 or later"),
        *map(check_package, PACKAGES),
        Row(True, "host", host()),
        Row(True, "device", f"{device}, {dtype}"),
        Row(True, "base model", f"{default_base()}   {choices}"),
    ]
    if device.startswith("cuda"):
        rows.append(Row(True, "memory profile", memory_profile(device).name))
    here = (TINY_SDXL / "model_index.json").exists()
    found = "data/tiny_sdxl" if here else "missing"
    remedy = "clone the whole repository; data/ is part of it"
    return [*rows, Row(here, "teaching model", found, remedy)]


def check_package(name: str) -> Row:
    """Whether a package is installed in a version that pyproject.toml asks for."""
    wanted = requirements().get(name, Requirement(name))
    remedy = f'pip install "{wanted}"'
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Row(False, name, "not installed", remedy)
    return Row(wanted.specifier.contains(version, prereleases=True), name, version, remedy)


def print_check() -> bool:
    """Print the check table; True if every line is OK."""
    rows = check()
    for row in rows:
        print(row)
    return all(row.ok for row in rows)


def requirements() -> dict[str, Requirement]:
    """What pyproject.toml asks for, by name; nothing where only the module was copied."""
    file = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if not file.exists():
        return {}
    wanted = map(Requirement, tomllib.loads(file.read_text())["project"]["dependencies"])
    return {canonicalize_name(requirement.name): requirement for requirement in wanted}


def install_missing() -> list[str]:
    """Install what pyproject.toml asks for and this Python lacks, and change nothing else.

    For Colab and Kaggle, where another version of torch or numpy would break the session.

    Returns:
        The requirements that were installed.
    """
    here = {
        canonicalize_name(package.metadata["Name"]): package.version
        for package in importlib.metadata.distributions()
        if package.metadata["Name"]
    }
    missing = [str(wanted) for name, wanted in requirements().items() if name not in here]
    if not missing:
        return []
    print("installing", ", ".join(missing), "...")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write("\n".join(f"{name}=={version}" for name, version in here.items()))
        constraints.flush()
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--constraint", constraints.name, *missing], check=True)
    return missing
