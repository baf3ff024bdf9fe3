"""The command for a machine with a GPU (benchmarks/gpu.py), without one."""

import json
import os
import shutil
import subprocess
import sys
import time

import diffusers
import psutil
import pytest
import torch

import gpu_packages
import gpu_table
from conftest import ROOT
from gpu_parts import PARTS

SCRIPT = str(ROOT / "benchmarks" / "gpu.py")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU here")


def started(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, SCRIPT, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


@without_gpu
def test_without_a_gpu_it_ends_with_the_remedy(tmp_path):
    process = started("--output", tmp_path / "gpu.json")
    _, errors = process.communicate()
    assert process.returncode == 2
    assert "finds no NVIDIA GPU here, and nothing was measured" in errors
    assert "--simulate" in errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_no_part_has_is_refused():
    process = started("--part", "train fp17")
    _, errors = process.communicate()
    assert process.returncode == 2
    assert "no part's name begins with 'train fp17'; --list" in errors


def test_names_of_parts_are_their_own_and_stand_in_a_table():
    names = [part.name for part in PARTS]
    assert len(set(names)) == len(names)
    kinds = {kind for kinds in gpu_table.TABLES for kind in kinds}
    assert {part.kind for part in PARTS} == kinds | {"base"}


def test_what_is_missing_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "packages are missing: peft." in gpu_packages.not_installed()
    assert "--wheels FOLDER" in gpu_packages.not_installed()


def test_pytorch_is_never_installed():
    asked = gpu_packages.requirements(ROOT / "pyproject.toml")
    assert any(line.startswith("diffusers>=") for line in asked)
    assert any(line.startswith("bitsandbytes>=") for line in asked)
    assert not [line for line in asked if line.startswith(("torch>", "torch="))]


@pytest.mark.parametrize(
    ("there", "asked", "enough"),
    [
        ("5.23.0", "x>=5.15", True),
        ("5.9.1", "x>=5.15", False),
        ("2.13.0+cpu", "x>=2.13", True),
        ("1.0", "x", True),
    ],
)
def test_only_what_is_missing_or_too_old_is_installed(monkeypatch, there, asked, enough):
    monkeypatch.setattr(gpu_packages, "version", lambda name: there)
    assert gpu_packages.satisfied(asked) == enough


def test_a_row_that_failed_says_why_and_what_it_was_made_with():
    found = {"state": "failed", "why": "out of memory: CUDA out of memory."}
    found["made with"] = {"device": "a card", "torch": "2", "diffusers": "1"}
    part = PARTS[3]
    results = {"device": "a card", "simulated": False, "size": "full", "parts": {part.name: found}}
    text = gpu_table.document(results)
    assert "not measured: out of memory: CUDA out of memory. | a card | 2 | 1 |" in text
    assert "Not run yet: " in text


@pytest.mark.slow
@without_gpu
@pytest.mark.skipif(not shutil.which("g++"), reason="needs the C++ compiler g++")
@pytest.mark.skipif(torch.version.cuda is not None, reason="a PyTorch that knows real GPUs")
def test_a_dry_run_is_killed_and_goes_on(tmp_path):
    """With SIGKILL, after which nothing can be tidied up; torchao and bitsandbytes are missing."""
    hidden = "import sys\nsys.modules['torchao'] = sys.modules['bitsandbytes'] = None\n"
    (tmp_path / "sitecustomize.py").write_text(hidden)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    output = tmp_path / "gpu.json"
    parts = ["train fp16", "train int8", "generate bf16", "train bf16, kept in 8 bits by torchao"]
    command = ["--simulate", "--size", "small", "--output", output]
    command += [word for name in parts for word in ("--part", name)]

    def found():
        return json.loads(output.read_text(encoding="utf-8"))["parts"] if output.exists() else {}

    process = started(*command, PYTHONPATH=path)
    while process.poll() is None and "train int8" not in found():
        time.sleep(0.2)
    own = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    assert not psutil.wait_procs(own, timeout=60)[1], "a part outlived its command"
    first = found()
    assert list(first) == ["train fp16", "train int8"]
    assert first["train fp16"]["state"] == "followed", first["train fp16"]
    assert first["train fp16"]["numbers"]["seconds a step"] is None

    process = started(*command, PYTHONPATH=path)
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "train fp16: followed" not in printed
    assert "generate bf16: followed, seconds a picture: not measured" in printed
    assert found()["train fp16"] == first["train fp16"]
    assert list(found()) == parts
    for name, package in (("train int8", "bitsandbytes"), (parts[-1], "torchao")):
        why = f"the package {package} is missing ({sys.executable} -m pip install {package})"
        assert found()[name]["why"] == why
        assert f"not measured: {why}" in output.with_suffix(".md").read_text(encoding="utf-8")
    text = output.with_suffix(".md").read_text(encoding="utf-8")
    assert text.startswith("# Dry run")
    versions = f"simulated GPU | {torch.__version__} | {diffusers.__version__} |"
    assert text.count(versions) == len(parts)
    assert text in printed
    assert sorted(file.name for file in tmp_path.iterdir() if file.suffix == ".part") == []
