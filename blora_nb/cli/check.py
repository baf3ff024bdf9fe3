"""Is everything installed that is needed, and on what does it run: a table that says so."""

import importlib.metadata
import sys
from pathlib import Path

from blora_nb.running.device import (
    default_base,
    default_device,
    default_dtype,
    host,
    memory_profile,
)

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "ipywidgets")


def check():
    """Rows (state, what, found, remedy) of the check table; the state is "OK" or "FAIL"."""
    from blora_nb.assets import TINY_SDXL

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

    file = Path(__file__).resolve().parents[2] / "pyproject.toml"
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
