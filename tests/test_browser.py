"""A panel in JupyterLab, and the app page in Voilà, used in a real browser."""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path

import nbformat
import pytest
from PIL import Image, ImageColor

from blora_nb.assets import DATA
from blora_nb.course import drawings
from blora_nb.lora import BLoRA
from blora_nb.widgets.pad import PEN_COLOURS
from conftest import ROOT

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


WHITE, BLACK, RED, GREEN = (
    ImageColor.getrgb(colour)
    for colour in ("#ffffff", *(PEN_COLOURS[name] for name in ("black", "red", "green")))
)


def find_chromium():
    """The path of a Chromium or Chrome, installed now where that can be done, or None."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found and hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (
            ["apt-get", "update", "-qq"],
            ["apt-get", "install", "-qq", "-y", "--no-install-recommends", "chromium"],
        ):
            subprocess.run(
                command,
                capture_output=True,
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            )
        found = shutil.which("chromium")
    return found


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed; pip install -e .[test]"
    )
    path = find_chromium()
    if path is None:
        pytest.skip(
            "no Chromium or Chrome here, and it cannot be installed without root and apt-get"
        )
    with playwright.sync_playwright() as p:
        running = p.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()


@contextmanager
def served(arguments, folder, path):
    """A server of the Jupyter family in a process of its own; yields the address of `path`.

    It has no configuration but ours.
    """
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    names = ["JUPYTER_CONFIG_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR"]
    names += ["JUPYTER_RUNTIME_DIR", "IPYTHONDIR"]
    own = dict.fromkeys(names, str(folder / ".config"))
    log = folder / "server.log"
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments, "--no-browser", f"--port={port}"],
            cwd=folder,
            env={**os.environ, **own},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        end = time.time() + 60
        while process.poll() is None and time.time() < end:
            try:
                urllib.request.urlopen(f"http://localhost:{port}/static/nothing", timeout=1)
            except urllib.error.HTTPError:
                # it answers
                break
            except OSError:
                time.sleep(0.2)
        else:
            raise AssertionError(log.read_text(encoding="utf-8"))
        yield f"http://localhost:{port}/{path}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def lab(folder):
    """The arguments that serve a folder in JupyterLab."""
    return [
        "jupyterlab",
        "--allow-root",
        "--IdentityProvider.token=",
        f"--ServerApp.root_dir={folder}",
        "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]


@pytest.fixture
def serve():
    """`served`, until the page is closed."""
    with ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(served(*arguments))


@pytest.fixture
def page(browser, serve, request, tmp_path):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(60_000)
    yield page
    # what it looked like at the end, for whoever has to find out why
    page.screenshot(path=tmp_path / f"{request.node.name}.png")
    page.close()


def shown(panel):
    """The large picture, as the browser has it."""
    source = panel.locator('img[alt*="seed"]').get_attribute("src")
    return Image.open(BytesIO(base64.b64decode(source.split(",")[1])))


def press(panel, name):
    panel.get_by_role("button", name=name).click()


def says(panel, text, timeout=60_000):
    panel.get_by_role("status").filter(has_text=text).wait_for(timeout=timeout)


def drag(page, panel, slider, share):
    """Drag the handle of a slider, by mouse, by a share of its length."""
    track = panel.locator(".widget-slider", has_text=slider).locator(".noUi-base")
    # waits until the page no longer moves
    track.locator(".noUi-handle").hover()
    handle, length = track.locator(".noUi-handle").bounding_box(), track.bounding_box()["width"]
    x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + share * length, y, steps=5)
    page.mouse.up()


def set_number(panel, name, value):
    panel.get_by_label(name, exact=True).fill(str(value))
    panel.get_by_label(name, exact=True).press("Tab")


def upload(page, panel, button, name, content):
    upload_several(page, panel, button, {name: content})


def upload_several(page, panel, button, files):
    """Choose files, name to content, all at once."""
    with page.expect_file_chooser() as chooser:
        panel.get_by_role("button", name=button).click()
    chooser.value.set_files(
        [
            {"name": name, "mimeType": "image/png", "buffer": content}
            for name, content in files.items()
        ]
    )


def download(page, panel, name):
    """Click on a link; the name and content of the file that the browser then has."""
    with page.expect_download() as started:
        panel.get_by_role("link", name=name).click()
    return started.value.suggested_filename, Path(started.value.path()).read_bytes()


def stroke(page, pad, *places):
    """Draw a line with the mouse through places on the paper, (0, 0) to (1, 1)."""
    paper = pad.locator("canvas")
    paper.scroll_into_view_if_needed()
    box = paper.bounding_box()
    x, y, width, height = (box[name] for name in ("x", "y", "width", "height"))
    for number, (across, down) in enumerate(places):
        page.mouse.move(x + across * width, y + down * height, steps=5)
        if number == 0:
            page.mouse.down()
    page.mouse.up()


def swipe(page, pad, *places):
    """Draw a line with a finger."""
    box = pad.locator("canvas").bounding_box()
    x, y, width, height = (box[name] for name in ("x", "y", "width", "height"))
    touch = page.context.new_cdp_session(page)
    for number, (across, down) in enumerate(places):
        point = {"x": x + across * width, "y": y + down * height}
        kind = "touchMove" if number else "touchStart"
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def on_paper(pad):
    """The drawing, RGB, as the browser has it."""
    address = pad.locator("canvas").evaluate("canvas => canvas.toDataURL()")
    return Image.open(BytesIO(base64.b64decode(address.split(",")[1]))).convert("RGB")


def colour_at(pad, across, down):
    drawn = on_paper(pad)
    return drawn.getpixel((int(across * drawn.width), int(down * drawn.height)))


def requests_elsewhere(page):
    """A list that fills with the addresses of other hosts that the page asks from now on.

    What the browser refuses to ask, by the server's Content-Security-Policy, is taken off again.
    """
    elsewhere = []

    def refused(request):
        if request.failure == "csp":
            elsewhere.remove(request.url)

    def note(request):
        if not request.url.startswith(("http://localhost:", "data:", "blob:")):
            elsewhere.append(request.url)

    page.on("request", note)
    page.on("requestfailed", refused)
    return elsewhere


def use(page, panel):
    """Generate, drag, see the picture change, go back, cancel; generate from the keyboard."""
    set_number(panel, "Seed", 11)
    # so that "Done" below is not that of an earlier picture
    says(panel, "press Generate")
    press(panel, "Generate")
    says(panel, "Done")
    first = shown(panel)
    assert first.size == (96, 96)
    assert panel.locator('img[alt*="seed"]').bounding_box()["width"] > 300

    seen = panel.locator('img[alt*="seed"]').screenshot()
    drag(page, panel, "Style alpha", -0.2)
    says(panel, "press Generate")
    assert shown(panel).tobytes() == first.tobytes()
    press(panel, "Generate")
    says(panel, "Done")
    assert shown(panel).tobytes() != first.tobytes()
    assert panel.locator('img[alt*="seed"]').screenshot() != seen
    drag(page, panel, "Style alpha", 0.2)
    says(panel, "Drawn before")
    assert shown(panel).tobytes() == first.tobytes()

    set_number(panel, "Steps", 1000)
    press(panel, "Generate")
    says(panel, "of 1000")
    press(panel, "Cancel")
    says(panel, "Cancelled", 30_000)
    assert shown(panel).tobytes() == first.tobytes()
    page.wait_for_timeout(500)
    says(panel, "Cancelled", 1000)

    set_number(panel, "Steps", 3)
    panel.locator(".noUi-handle").first.press("ArrowLeft")
    panel.get_by_label("Prompt", exact=True).fill("<b>A very odd</b> prompt")
    panel.get_by_role("button", name="Generate").press("Enter")
    says(panel, "Done.")
    described = panel.locator('img[alt*="seed"]').get_attribute("alt")
    assert described.startswith('"<b>A very odd</b> prompt"; content: ')
    assert "alpha +0.95" in described
    assert "3 steps" in described


@pytest.mark.browser
@pytest.mark.slow
def test_the_panel_of_lesson_3_in_jupyterlab(page, serve, tmp_path):
    """Every cell of the lesson as far as the panel; nbval runs those after it."""
    lesson = nbformat.read(ROOT / "notebooks" / "03_style_transfer.ipynb", as_version=4)
    last = next(n for n, cell in enumerate(lesson.cells) if "AlphaPanel(" in cell.source)
    lesson.cells = lesson.cells[: last + 1]
    (tmp_path / "notebooks").mkdir()
    nbformat.write(lesson, tmp_path / "notebooks" / "03_style_transfer.ipynb")
    page.goto(serve(lab(tmp_path), tmp_path, "lab/tree/notebooks/03_style_transfer.ipynb"))
    idle = page.get_by_text("Python 3 (ipykernel) | Idle")
    idle.wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    panel = page.locator(".blora-panel")
    panel.wait_for(timeout=600_000)
    idle.wait_for(timeout=600_000)
    panel.scroll_into_view_if_needed()
    use(page, panel)


PAD_CELLS = (
    "from blora_nb import DrawingPad\npad = DrawingPad()\npad",
    "pad.picture.save('drawn.png')",
)


@pytest.mark.browser
@pytest.mark.slow
def test_the_pad_in_jupyterlab(page, serve, tmp_path):
    """Drawn by mouse, chosen by keyboard, and saved by the next cell."""
    cells = [nbformat.v4.new_code_cell(source) for source in PAD_CELLS]
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, tmp_path / "pad.ipynb")
    page.goto(serve(lab(tmp_path), tmp_path, "lab/tree/pad.ipynb"))
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    page.locator(".jp-Cell").first.click()
    elsewhere = requests_elsewhere(page)
    page.keyboard.press("Shift+Enter")
    pad = page.locator(".blora-pad")
    pad.wait_for()
    stroke(page, pad, (0.2, 0.5), (0.8, 0.5))
    page.keyboard.press("Control+z")
    assert colour_at(pad, 0.5, 0.5) == WHITE, "the paper itself hears it"
    stroke(page, pad, (0.2, 0.5), (0.8, 0.5))
    pad.get_by_role("button", name="red", exact=True).press("Enter")
    pad.get_by_role("button", name="Fill").press("Space")
    stroke(page, pad, (0.5, 0.2))
    assert colour_at(pad, 0.1, 0.9) == RED
    assert colour_at(pad, 0.5, 0.5) == BLACK
    pad.get_by_role("button", name="Fill").press("Control+z")
    assert colour_at(pad, 0.1, 0.9) == WHITE
    pad.get_by_role("button", name="Clear").click()
    assert colour_at(pad, 0.5, 0.5) == WHITE
    pad.get_by_role("button", name="Undo").click()

    page.locator(".jp-Cell .cm-content").nth(1).click()
    page.keyboard.press("Shift+Enter")
    file = tmp_path / "drawn.png"
    end = time.time() + 30
    while not file.exists() and time.time() < end:
        page.wait_for_timeout(200)
    page.wait_for_timeout(500)
    assert Image.open(file).tobytes() == on_paper(pad).tobytes()
    assert elsewhere == []


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 1280])
def test_a_drawing_on_the_app_page(page, serve, tmp_path, width):
    """Drawn, undone, drawn again, used, learned; on a phone's page with a finger."""
    shutil.copytree(ROOT / "app", tmp_path / "app")
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(serve(["voila", "blora.ipynb"], tmp_path / "app", ""))
    panel = page.locator(".blora-panel:visible")
    panel.wait_for()
    elsewhere = requests_elsewhere(page)
    press(panel, "Draw content")
    pad = panel.locator(".blora-pad")
    pad.wait_for()
    box = pad.bounding_box()
    assert box["x"] + box["width"] <= width
    paper = pad.locator("canvas").bounding_box()
    assert paper["width"] == pytest.approx(paper["height"], abs=1)
    assert panel.get_by_role("button", name="Use this drawing").is_disabled()

    draw = swipe if width < 400 else stroke
    pad.locator("canvas").scroll_into_view_if_needed()
    draw(page, pad, (0.2, 0.2), (0.5, 0.2), (0.8, 0.2))
    assert colour_at(pad, 0.5, 0.2) == BLACK
    pad.get_by_role("button", name="Undo").click()
    assert colour_at(pad, 0.5, 0.2) == WHITE
    pad.get_by_role("button", name="green").click()
    pad.get_by_role("button", name="broad pen").click()
    draw(page, pad, (0.2, 0.6), (0.5, 0.6), (0.8, 0.6))
    assert colour_at(pad, 0.5, 0.6) == GREEN
    page.screenshot(path=tmp_path / f"pad_{width}.png")
    press(panel, "Use this drawing")
    says(panel, "to teach the model drawing 1")
    assert not pad.is_visible()
    assert panel.get_by_label("Content", exact=True).input_value() == "drawing 1"
    picture = panel.get_by_alt_text("content picture: drawing 1").get_attribute("src")
    used = Image.open(BytesIO(base64.b64decode(picture.split(",")[1])))
    near = zip(used.getpixel((used.width // 2, int(0.6 * used.height))), GREEN)
    assert all(abs(one - other) < 8 for one, other in near)
    press(panel, "Train content")
    says(panel, "step")
    press(panel, "Cancel")
    says(panel, "Cancelled")
    press(panel, "Draw content")
    assert colour_at(pad, 0.5, 0.6) == GREEN
    assert elsewhere == []


@pytest.mark.browser
@pytest.mark.slow
def test_the_app_page(page, serve, tmp_path):
    """The page of `make app`: its own tabs, an upload that is no picture, and one that is."""
    shutil.copytree(ROOT / "app", tmp_path / "app")
    elsewhere = requests_elsewhere(page)
    page.goto(serve(["voila", "blora.ipynb"], tmp_path / "app", ""))
    panel = page.locator(".blora-panel:visible")
    panel.wait_for()
    panel.get_by_alt_text("seed 0, 12 steps").wait_for()
    assert elsewhere == []
    use(page, panel)

    page.get_by_role("tab", name="Text stylization").click()
    panel.get_by_alt_text("seed 0, 12 steps").wait_for()
    upload(page, panel, "Upload content", "broken.png", b"no picture")
    says(panel, "broken.png cannot be read")
    # 12 MB, more than Jupyter's servers take without app/voila.json
    picture = BytesIO()
    Image.new("RGB", (2500, 1600), "orange").save(picture, "BMP")
    upload(page, panel, "Upload content", "orange.bmp", picture.getvalue())
    says(panel, "to teach the model orange.bmp")
    press(panel, "Train content")
    says(panel, "step")
    press(panel, "Cancel")
    says(panel, "Cancelled")
    page.get_by_text("965 objects").click()
    page.get_by_text("abacus, accordion").wait_for()


@pytest.mark.browser
@pytest.mark.slow
def test_what_the_app_page_keeps(page, serve, tmp_path):
    """B-LoRAs are brought, downloaded, there again after a reload, and forgotten; on a phone."""
    width = 380
    shutil.copytree(ROOT / "app", tmp_path / "app")
    kept = tmp_path / "outputs" / "app"
    star = BLoRA.load(DATA / "bloras" / "star_sunset.safetensors")
    star.save(kept / "yesterday.safetensors")
    (kept / "broken.safetensors").write_bytes(b"no weights")
    picture = BytesIO()
    drawings.draw("star", "sunset", 5, 96).save(picture, "PNG")
    page.set_viewport_size({"width": width, "height": 900})
    address = serve(["voila", "blora.ipynb"], tmp_path / "app", "")
    page.goto(address)
    panel = page.locator(".blora-panel:visible")
    panel.wait_for()
    assert "broken.safetensors" in panel.inner_text()
    panel.get_by_label("Content", exact=True).select_option("yesterday")

    weights = (kept / "yesterday.safetensors").read_bytes()
    files = {"my star.safetensors": weights, "my star.png": picture.getvalue()}
    upload_several(page, panel, "Upload content", files)
    says(panel, "my star.safetensors is a B-LoRA")
    assert panel.get_by_label("Content", exact=True).input_value() == "my star"
    panel.get_by_alt_text("content picture: my star").wait_for()
    upload(page, panel, "Upload style", "old.ckpt", b"PK anything")
    says(panel, "old.ckpt is not opened")

    press(panel, "Download content")
    name, content = download(page, panel, "my_star")
    assert name == "my_star.safetensors"
    assert content == (kept / name).read_bytes()
    set_number(panel, "Steps", 2)
    says(panel, "press Generate")
    press(panel, "Generate")
    says(panel, "Done")
    press(panel, "Save")
    name, content = download(page, panel, "seed0.png")
    assert content == (kept / name).read_bytes()
    settings = json.loads(Image.open(BytesIO(content)).text["blora_nb"])
    assert settings["num_inference_steps"] == 2
    page.screenshot(path=tmp_path / "kept.png", full_page=True)

    page.goto(address)
    panel.wait_for()
    panel.get_by_label("Content", exact=True).select_option("my star")
    panel.get_by_alt_text("content picture: my star").wait_for()
    press(panel, "Forget content")
    press(panel, "Delete content")
    says(panel, "my star is forgotten")
    assert sorted(file.name for file in kept.glob("*.safetensors")) == [
        "broken.safetensors",
        "yesterday.safetensors",
    ]
    page.goto(address)
    panel.wait_for()
    offered = panel.get_by_label("Content", exact=True).inner_text()
    assert "yesterday" in offered
    assert "my star" not in offered
    assert page.evaluate("document.documentElement.scrollWidth") <= width
