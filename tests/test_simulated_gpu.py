"""The paths that only a GPU takes, followed without one.

No tensor on the wrong device, no wait, no more memory than was counted.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs the C++ compiler g++")
@pytest.mark.skipif(
    torch.version.cuda is not None,
    reason="this PyTorch knows real GPUs; the simulated one is for a PyTorch without",
)
def test_on_a_simulated_gpu():
    """In a process of its own: PyTorch asks only when it is imported which devices there are."""
    path = os.pathsep.join([str(HERE.parent / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "simulated_gpu"]
    command += ["-p", "no:nbval", "-o", "addopts=", str(HERE / "on_a_simulated_gpu.py")]
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-5000:]
