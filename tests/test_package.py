"""The package as pip installs it: a wheel, far from any clone, without a network."""

import hashlib
import json
import os
import shutil
import subprocess
import zipfile

import pytest
import yaml

from blora_nb import __version__
from conftest import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (ROOT / ".git").exists(), reason="asks git which files are the package's"
    ),
]
LARGEST = 60 * 2**20  # bytes; PyPI takes files of up to 100 MiB


def commands(job):
    """What a job of the release workflow runs, as one shell script."""
    workflow = yaml.safe_load(
        (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    )
    steps = workflow["jobs"][job]["steps"]
    return "set -e\n" + "\n".join(step["run"] for step in steps if "run" in step)


def run(script, folder, python, **variables):
    """Run a shell script in a folder, with a Python's own programs first."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PATH"] = os.pathsep.join([str(python.parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory, bare_python):
    """A copy of the package's sources in which the release was built."""
    source = tmp_path_factory.mktemp("source")
    for name in tracked("blora_nb", "LICENSE", "README.md", "pyproject.toml"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    run(commands("build"), source, bare_python, GITHUB_REF_NAME=f"v{__version__}")
    return source


def tracked(*paths):
    """The files of the repository below some paths, those among them that are not committed yet."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *paths],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in listed.stdout.split() if (ROOT / name).exists()]


def contents(wheel):
    with zipfile.ZipFile(wheel) as opened:
        return {
            name: hashlib.sha256(opened.read(name)).hexdigest()
            for name in opened.namelist()
            if not name.endswith("RECORD")
        }


def test_the_sdist_builds_the_wheel_that_the_sources_build(packages, bare_python):
    run("python -m build --wheel --outdir direct", packages, bare_python)
    (from_sdist,) = packages.glob("dist/*.whl")
    (direct,) = packages.glob("direct/*.whl")
    assert contents(from_sdist) == contents(direct)


def test_it_holds_the_course_and_nothing_that_is_left_over(packages):
    (wheel,) = packages.glob("dist/*.whl")
    assert f"-{__version__}-" in wheel.name
    assert wheel.stat().st_size < LARGEST
    names = {name for name in contents(wheel) if ".dist-info/" not in name}
    assert names == set(tracked("blora_nb"))


def test_a_tag_with_another_version_is_not_released(packages, bare_python):
    with pytest.raises(AssertionError):
        run(commands("build"), packages, bare_python, GITHUB_REF_NAME="v99.0")


@pytest.fixture(scope="module")
def offline(packages, bare_python, tmp_path_factory):
    """A folder far from any clone; there the release's own test was run, without a network."""
    folder = tmp_path_factory.mktemp("somewhere")
    shutil.copytree(packages / "dist", folder / "dist")
    nowhere = {f"{scheme}_PROXY": "http://127.0.0.1:9" for scheme in ("HTTP", "HTTPS", "ALL")}
    variables = nowhere | {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "TMPDIR": str(folder)}
    printed = run(commands("test"), folder, bare_python, **variables)
    return folder, variables, printed


def test_the_wheel_alone_trains_and_draws(offline):
    folder, _, printed = offline
    assert "FAIL" not in printed
    assert len(list(folder.glob("*/pictures/*.png"))) == 9
    assert len(list(folder.glob("*/drawn/*.png"))) == 4


def test_python_finds_it_all_in_the_package(offline, bare_python):
    folder, variables, _ = offline
    code = """
import json
import blora_nb
from blora_nb import AlphaPanel, example_blora, load_pipeline, scorer_for
from blora_nb.course import checks
pipe = load_pipeline()
blora = example_blora(pipe, "cat_wood")
panel = AlphaPanel(pipe, content=blora, style=blora)
print(json.dumps([blora_nb.__file__, type(scorer_for(pipe)).__name__, type(panel).__name__]))
"""
    (folder / "code.py").write_text(code)
    printed = run("python code.py && python -m blora_nb --help", folder, bare_python, **variables)
    file, scorer, panel = json.loads(next(x for x in printed.splitlines() if x.startswith("[")))
    assert str(ROOT) not in file
    assert (scorer, panel) == ("JudgeScorer", "AlphaPanel")
    assert "usage: blora" in printed
