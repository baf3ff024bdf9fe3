"""A pad to draw on with mouse, pen or finger."""

from base64 import b64decode
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from PIL import Image, ImageOps

from blora_nb.figures.grids import picture_grid
from blora_nb.figures.notebook_figure import widget_data
from blora_nb.files.images import ImageSource, centre_square, read_image
from blora_nb.widgets.markup import png_address, png_bytes
from blora_nb.widgets.uploads import picture_from_bytes

PAD_SIDE = 512  # pixels of the picture
SIZES = {"fine": 6, "medium": 14, "broad": 32}  # the pen's, in these pixels
PEN_COLOURS = {
    "black": "#1c1c1e",
    "grey": "#8e8e93",
    "brown": "#8b5a2b",
    "red": "#e5342b",
    "orange": "#ff9500",
    "yellow": "#ffd60a",
    "green": "#2fa84f",
    "light blue": "#4fb8f0",
    "blue": "#2450d8",
    "purple": "#8e44ad",
    "pink": "#ff7eb6",
}
NO_KERNEL = "A pad to draw on; it works while a kernel runs this notebook"


class DrawingPad(anywidget.AnyWidget):
    """White paper to draw on, with a pen, a fill, an eraser, undo and clear.

        pad = DrawingPad()
        pad  # in a cell of its own; draw, then
        train(pipe, pad.picture)

    Panels have one behind "Draw content" and "Draw style"; on Colab it needs a cell of its own.

    Args:
        start: a picture to draw over: a path or a PIL image, fitted into the square.

    Attributes:
        drawn: what is on the paper, as the address of a PNG file that it holds ("data:image/png;…",
            or "" before the first stroke). It changes after every stroke:
            `pad.observe(lambda change: …, "drawn")`. Whether anything is drawn, `picture` says.

    Raises:
        ImageError: `start` cannot be read.
    """

    _esm = Path(__file__).with_name("pad.js")
    _css = Path(__file__).with_name("pad.css")
    side = traitlets.Int(PAD_SIDE).tag(sync=True)
    sizes = traitlets.Dict(SIZES).tag(sync=True)
    colours = traitlets.Dict(PEN_COLOURS).tag(sync=True)
    # not echoed: an older drawing that comes back must not replace a newer one
    drawn = traitlets.Unicode().tag(sync=True, echo_update=False)

    def __init__(self, start: ImageSource | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if start is not None:
            paper = ImageOps.pad(read_image(start), (PAD_SIDE, PAD_SIDE), color="white")
            self.drawn = png_address(png_bytes(paper))

    _ipython_display_ = None  # ipywidgets 7 has one, which would go before the bundle below

    @property
    def picture(self) -> Image.Image | None:
        """The drawing, RGB, `PAD_SIDE` × `PAD_SIDE` pixels, on white; None if nothing is drawn.

        Raises:
            ImageError, ValueError: `drawn` was set to what is no picture.
        """
        if not self.drawn:
            return None
        content = b64decode(self.drawn.partition(",")[2], validate=True)
        picture = centre_square(picture_from_bytes("drawing.png", content)[0], PAD_SIDE)
        is_white = picture.getextrema() == ((255, 255),) * 3
        return None if is_white else picture

    def clear(self) -> None:
        """Take a new sheet of paper."""
        self.drawn = ""

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        # the metadata names Colab's manager of such widgets
        _, metadata = super()._repr_mimebundle_(**kwargs)
        picture = self.picture
        if picture is None:
            return widget_data(self, NO_KERNEL), metadata
        data, about_still = picture_grid([[picture]], caption="A drawing", side=2.2).instead_of(
            self
        )
        return data, metadata | about_still
