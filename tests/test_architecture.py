"""The package's floors: a module imports from the floors below its own, or from its own floor."""

import ast
from pathlib import Path

import pytest

import blora_nb

PACKAGE = Path(__file__).parent.parent / "blora_nb"

# from the top down; a name is a module or a folder of blora_nb
FLOORS = (
    ("__main__", "cli"),
    ("widgets",),
    ("course",),
    ("figures",),
    ("evaluation",),
    ("training", "generation", "inspection", "structure"),
    ("instant",),
    ("pipeline",),
    ("running",),
    ("lora", "settings", "sampling", "defaults", "batches", "recipes"),
    ("guards",),
    ("files",),
    ("assets", "blocks", "errors", "registry"),
)
FLOOR = {name: number for number, floor in enumerate(FLOORS) for name in floor}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


def imported(path: Path) -> set[str]:
    """The modules of this package that a file imports, wherever in the file; not for types only."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("blora_nb"):
            folder = PACKAGE.parent / node.module.replace(".", "/")
            if folder.is_dir():
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return found


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_down(path):
    own = FLOOR[module_name(path).split(".")[1]]
    above = [name for name in imported(path) if FLOOR[name.split(".")[1]] < own]
    assert above == []


def test_no_circles():
    edges = {module_name(path): imported(path) for path in MODULES}
    while leaves := [name for name, targets in edges.items() if not targets & edges.keys()]:
        for name in leaves:
            del edges[name]
    assert edges == {}


@pytest.mark.parametrize("name", blora_nb.__all__)
def test_names_at_the_top_are_there(name):
    assert getattr(blora_nb, name)
