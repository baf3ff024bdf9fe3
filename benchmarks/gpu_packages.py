"""Which packages `gpu.py` needs, which are missing, and how wheels in a folder become packages.

Only the standard library is used here, so that it runs where nothing is installed but PyTorch.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

# what measuring needs of pyproject.toml's dependencies, and the modules they bring
REQUIRED = {
    "numpy": "numpy",
    "pillow": "PIL",
    "tqdm": "tqdm",
    "packaging": "packaging",
    "psutil": "psutil",
    "safetensors": "safetensors",
    "huggingface-hub": "huggingface_hub",
    "transformers": "transformers",
    "accelerate": "accelerate",
    "peft": "peft",
    "diffusers": "diffusers",
}
# without which some rows say so
OPTIONAL = ("bitsandbytes", "torchao")


def missing(modules: Iterable[str]) -> list[str]:
    """Those that cannot be imported here."""
    return [name for name in modules if find_spec(name) is None]


def requirements(pyproject: Path) -> list[str]:
    """The packages above with the versions that pyproject.toml asks for, without PyTorch."""
    import tomllib

    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    asked = project["dependencies"] + project["optional-dependencies"]["gpu"]

    def with_version(name: str) -> str:
        return next((line for line in asked if line.startswith(name + ">")), name)

    return [with_version(name) for name in (*REQUIRED, *OPTIONAL)]


def satisfied(requirement: str) -> bool:
    """Whether a package is there, and not older than "name>=version" asks for."""
    name, _, least = requirement.partition(">=")
    try:
        there = version(name)
    except PackageNotFoundError:
        return False
    numbers = [[int(n) for n in re.findall(r"\d+", text)[:3]] for text in (there, least)]
    return numbers[0] >= numbers[1]


def install(wheels: Path, pyproject: Path) -> list[str]:
    """Install what is missing or too old from a folder of wheels, without a network.

    PyTorch stays as it is: its version is held by a constraint. What is there and new enough is
    left alone.

    Returns:
        A sentence for each package that could not be installed.
    """
    refused = []
    with tempfile.TemporaryDirectory() as folder:
        held = Path(folder) / "constraints.txt"
        held.write_text(f"torch=={version('torch')}\n")
        options = ["--no-index", "--find-links", str(wheels), "--constraint", str(held)]
        pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
        for requirement in requirements(pyproject):
            if satisfied(requirement):
                continue
            done = subprocess.run([*pip, *options, requirement], capture_output=True, text=True)
            if done.returncode:
                last = done.stderr.strip().split("\n")[-1]
                refused.append(f"{requirement} was not installed: {last}")
    return refused


def no_start() -> str:
    """Why not even packages can be installed into this Python; empty where they can."""
    # Python's own from 3.11 on
    if missing(["tomllib"]):
        return "Python 3.11 or later is needed; start the script with one."
    if missing(["torch"]):
        return "PyTorch is missing. Install one for CUDA, as pytorch.org says under Get started."
    return ""


def not_installed() -> str:
    """Which packages are missing, with the remedy; empty where all are there."""
    names = [package for package, module in REQUIRED.items() if missing([module])]
    if names:
        return (
            f"These packages are missing: {', '.join(names)}. Put their wheels into a folder and "
            'name it with --wheels FOLDER, or, with a network: pip install -e ".[gpu]"'
        )
    return ""


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
