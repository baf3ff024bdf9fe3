import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

# Sums in one order, here and in the processes that tests start; and faster for models this small.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A run in the background ignores Ctrl-C, and so would every process it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
# the scripts of the teaching model, of the measurements, of the notebooks
sys.path[:0] = [str(ROOT / folder) for folder in ("data", "benchmarks", "notebooks")]


@pytest.fixture(autouse=True)
def seed():
    """Random numbers that a test draws without a seed of its own are the same in every run."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def pipe():
    from blora_nb.pipeline import load_pipeline

    return load_pipeline(device="cpu")


@pytest.fixture
def fresh():
    """A pipeline of the test's own, which it may spoil."""
    from blora_nb.pipeline import load_pipeline

    return load_pipeline(device="cpu")


@pytest.fixture(scope="session")
def judge():
    from blora_nb.evaluation.metrics import Judge

    return Judge.load()


@pytest.fixture(scope="session")
def picture():
    from blora_nb.course.drawings import draw

    return draw("star", "sunset", 5, 512)


@pytest.fixture(scope="session")
def blora(pipe, picture):
    """A B-LoRA trained for real, with the default settings."""
    from blora_nb.training import train

    return train(pipe, picture, progress=False)


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """A Python that sees the packages of this one, as Colab's has many, but not the course."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    site = next((folder / "lib").glob("python3*")) / "site-packages"
    (site / "packages_of_the_host.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"
