"""The drawing pad without a browser; with one: `test_browser.py`, in a panel: `test_panels.py`."""

import base64
import subprocess
import sys
from io import BytesIO

import pytest
from PIL import Image

from blora_nb import DrawingPad
from blora_nb.errors import ImageError
from blora_nb.widgets.markup import png_address, png_bytes
from blora_nb.widgets.pad import PAD_SIDE, SIZES

WHITE = (255, 255, 255)


def sketch(side=PAD_SIDE):
    """White paper with a red square in the middle."""
    image = Image.new("RGB", (side, side), WHITE)
    image.paste("red", (side // 4, side // 4, side // 2, side // 2))
    return image


def address(image):
    return png_address(png_bytes(image))


@pytest.mark.parametrize("drawn", ["", address(Image.new("RGB", (PAD_SIDE, PAD_SIDE), WHITE))])
def test_white_paper_is_no_picture(drawn):
    pad = DrawingPad()
    pad.set_state({"drawn": drawn})
    assert pad.picture is None


@pytest.mark.parametrize("side", [PAD_SIDE, 100])
def test_what_the_page_sends_is_the_picture(side):
    pad, seen = DrawingPad(), []
    pad.observe(lambda _: seen.append(pad.picture), "drawn")
    pad.set_state({"drawn": address(sketch(side))})
    (picture,) = seen
    assert picture.mode == "RGB"
    assert picture.size == (PAD_SIDE, PAD_SIDE)
    assert picture.getpixel((PAD_SIDE // 3, PAD_SIDE // 3)) == (255, 0, 0)
    assert picture.getpixel((5, 5)) == WHITE
    pad.clear()
    assert pad.picture is None
    assert len(seen) == 2


def test_transparent_paper_is_white():
    pad = DrawingPad()
    pad.drawn = address(Image.new("RGBA", (PAD_SIDE, PAD_SIDE), (0, 0, 0, 0)))
    assert pad.picture is None


@pytest.mark.parametrize("content", [b"no picture", png_bytes(sketch())[:200]])
def test_what_is_no_picture_is_an_error(content):
    pad = DrawingPad()
    pad.drawn = png_address(content)
    with pytest.raises(ImageError, match=r"drawing\.png"):
        _ = pad.picture


def test_a_start_picture_is_on_the_paper_whole(tmp_path):
    Image.new("RGB", (300, 100), "blue").save(tmp_path / "wide.png")
    picture = DrawingPad(tmp_path / "wide.png").picture
    assert picture.getpixel((0, PAD_SIDE // 2)) == (0, 0, 255)
    assert picture.getpixel((PAD_SIDE // 2, 0)) == WHITE
    with pytest.raises(ImageError, match="no picture"):
        DrawingPad(tmp_path / "none.png")


def test_the_page_learns_what_it_may_draw_with():
    state = DrawingPad().get_state()
    assert state["side"] == PAD_SIDE
    assert state["sizes"] == SIZES
    assert "export default" in state["_esm"]
    assert ".blora-pad" in state["_css"]
    assert "http" not in state["_esm"] + state["_css"], "nothing is fetched"


def test_a_still_picture_stands_in_for_the_widget():
    pad = DrawingPad()
    empty, _ = pad._repr_mimebundle_()
    assert empty["application/vnd.jupyter.widget-view+json"]["model_id"] == pad.model_id
    assert "image/png" not in empty
    pad.drawn = address(sketch())
    drawn, about = pad._repr_mimebundle_()
    still = Image.open(BytesIO(base64.b64decode(drawn["image/png"]))).convert("RGB")
    assert (255, 0, 0) in {colour for _, colour in still.getcolors(100_000)}
    assert about["image/png"]["alt"]


@pytest.mark.slow
def test_the_command_line_needs_no_widgets():
    code = (
        "import importlib, pkgutil, sys\n"
        "import blora_nb.cli, blora_nb.evaluation.rebuilding, blora_nb.course.examples\n"
        "for module in pkgutil.iter_modules(blora_nb.cli.__path__, 'blora_nb.cli.'):\n"
        "    importlib.import_module(module.name)\n"
        "assert not {'anywidget', 'ipywidgets', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
