"""What is installed and what it will run on: a table with a remedy for each fault."""

import importlib.metadata
import sys
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from blora_nb.running.device import default_base, default_device, default_dtype, host, needs_4_bits

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
    from blora_nb.assets import INSTALL_AGAIN, TINY_SDXL

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
        bits = 4 if needs_4_bits(device) else 16
        rows.append(Row(True, "memory", f"has room for SDXL in {bits} bits"))
    here = (TINY_SDXL / "model_index.json").exists()
    found = "in the package" if here else "missing"
    remedy = f"install the package again: {INSTALL_AGAIN}"
    return [*rows, Row(here, "teaching model", found, remedy)]


def check_package(name: str) -> Row:
    """Whether a package is installed in a version that this one asks for."""
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
    """What the package asks for, by name; nothing where only the module was copied."""
    try:
        wanted = map(Requirement, importlib.metadata.requires("blora-nb") or [])
    except importlib.metadata.PackageNotFoundError:
        return {}
    here = [r for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    return {canonicalize_name(requirement.name): requirement for requirement in here}
