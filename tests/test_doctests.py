"""The examples in docstrings give what they say."""

import doctest
from importlib import import_module

from conftest import ROOT

MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "blora_nb").rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


def test_examples_in_docstrings():
    results = [doctest.testmod(import_module(name)) for name in MODULES]
    assert sum(result.failed for result in results) == 0
    assert sum(result.attempted for result in results) >= 5
