"""The package as pip installs it: a wheel, far from any clone, without a network."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from blora_nb import __version__
from conftest import ROOT

pytestmark = pytest.mark.slow
LARGEST = 60 * 2**20  # bytes; PyPI takes files of up to 100 MiB


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A folder with the sdist, and the wheel that was built from the sdist."""
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(
        ROOT / "blora_nb", source / "blora_nb", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "build", "--outdir"]
    subprocess.run([*build, source / "dist", source], check=True, capture_output=True)
    direct = [*build, source / "direct", "--wheel", source]
    subprocess.run(direct, check=True, capture_output=True)
    return source


def contents(wheel):
    with zipfile.ZipFile(wheel) as opened:
        return {
            name: hashlib.sha256(opened.read(name)).hexdigest()
            for name in opened.namelist()
            if not name.endswith("RECORD")
        }


def test_the_sdist_builds_the_same_wheel(packages):
    (from_sdist,) = packages.glob("dist/*.whl")
    (direct,) = packages.glob("direct/*.whl")
    assert contents(from_sdist) == contents(direct)


def test_it_holds_the_course_and_nothing_that_is_left_over(packages):
    (wheel,) = packages.glob("dist/*.whl")
    names = contents(wheel)
    assert f"-{__version__}-" in wheel.name
    assert wheel.stat().st_size < LARGEST
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "blora_nb"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert {name for name in names if ".dist-info/" not in name} == set(tracked.stdout.split())


def test_pypi_would_show_its_page(packages):
    files = list(packages.glob("dist/*"))
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def installed(packages, bare_python):
    """The folder of the scripts of a Python that has the wheel."""
    (wheel,) = packages.glob("dist/*.whl")
    pip = [bare_python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, wheel], check=True)
    return bare_python.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("somewhere")


def run(command, folder):
    """Run a command where there is no clone, and no network."""
    nowhere = {f"{scheme}_PROXY": "http://127.0.0.1:9" for scheme in ("HTTP", "HTTPS", "ALL")}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=environment | nowhere,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_console_script_trains_and_draws(installed, folder):
    blora = installed / "blora"
    assert "FAIL" not in run([blora, "check"], folder)
    assert run([blora, "examples", "pictures"], folder).count("written") == 9
    assert "stay as they are" in run([blora, "examples", "pictures"], folder)
    picture = "pictures/star_sunset.png"
    steps = ["--max_train_steps", 3]
    run([blora, "train", "--instance_data_dir", picture, "--output_dir", "star", *steps], folder)
    sampling = ["--num_inference_steps", 2, "--seeds", 0, "--output_path", "drawn"]
    halves = ["--content_B_LoRA", "star", "--style_B_LoRA", "star"]
    run([blora, "generate", "--prompt", "A [c] in [s] style", *halves, *sampling], folder)
    assert len(list((folder / "drawn").glob("*.png"))) == 1


def test_python_finds_it_all_in_the_package(installed, folder):
    code = """
import json, sys
import blora_nb
from blora_nb import AlphaPanel, example_blora, load_pipeline, scorer_for
from blora_nb.course import checks
pipe = load_pipeline()
blora = example_blora(pipe, "cat_wood")
panel = AlphaPanel(pipe, content=blora, style=blora)
print(json.dumps([blora_nb.__file__, type(scorer_for(pipe)).__name__, type(panel).__name__]))
"""
    file, scorer, panel = json.loads(
        run([installed / "python", "-c", code], folder).split("\n")[-2]
    )
    assert str(ROOT) not in file
    assert (scorer, panel) == ("JudgeScorer", "AlphaPanel")
    assert "blora" in run([installed / "python", "-m", "blora_nb", "--help"], folder)
