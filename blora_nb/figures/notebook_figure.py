"""A matplotlib figure as a notebook shows and stores it."""

import io
import textwrap
from base64 import b64encode
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from blora_nb.evaluation.rebuilding import psnr

if TYPE_CHECKING:
    from ipywidgets import Widget

# dB (PSNR) of a figure with few colours to that with all: the lessons' figures, which have to stay
# small, have 30.4 and more; grids of smooth pictures such as photos, which show bands, 25 to 29.9
LOOKS_THE_SAME = 30.0


def widget_data(widget: "Widget", text: str) -> dict[str, Any]:
    """The display data of a widget, with a text for places that show none."""
    view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    return {"text/plain": text, "application/vnd.jupyter.widget-view+json": view}


class NotebookFigure(Figure):
    """A matplotlib figure that any notebook shows as a PNG file.

    Attributes:
        caption: the sentence under the figure, also its text for those who cannot see it.
    """

    caption = ""

    def add_caption(self, caption: str, otherwise: str) -> None:
        """Write a caption under all that has been drawn; without one, `otherwise` is the text."""
        self.caption = caption or otherwise
        if not caption:
            return
        drawn = self.get_tightbbox()  # in inches
        # 15 characters of this size take an inch
        lines = textwrap.wrap(caption, int(15 * max(drawn.width, 5)))
        x = (drawn.x0 + drawn.x1) / 2 / self.get_figwidth()
        y = (drawn.y0 - 0.08) / self.get_figheight()
        # a prompt may have dollar signs, which are no mathematics
        shown = self.text(x, y, "\n".join(lines), ha="center", va="top", fontsize=8, color="0.35")
        shown.set_parse_math(False)

    def savefig(self, *args: Any, **options: Any) -> None:
        """As matplotlib's, but labels and caption outside of the axes always belong to it."""
        super().savefig(*args, **{"bbox_inches": "tight", "pad_inches": 0.05, **options})

    def png(self) -> bytes:
        """The figure as the bytes of a PNG file, with fewer colours where that looks the same."""
        drawn, small = io.BytesIO(), io.BytesIO()
        self.savefig(drawn, format="png")
        # 112 colours, chosen to cover all that occur, keep a notebook small
        all_colours = Image.open(drawn).convert("RGB")
        few_colours = all_colours.quantize(
            112, method=Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE
        )
        both = [np.asarray(one.convert("RGB")) / 255 for one in (few_colours, all_colours)]
        if psnr(*both) < LOOKS_THE_SAME:
            return drawn.getvalue()
        few_colours.save(small, format="PNG", optimize=True)
        return small.getvalue()

    def instead_of(self, widget: "Widget") -> tuple[dict[str, Any], dict[str, Any]]:
        """The display data and metadata of a widget; without a kernel, this figure is shown."""
        data = widget_data(widget, self.caption)
        data["image/png"] = b64encode(self.png()).decode()
        return data, {"image/png": {"alt": self.caption}}

    def _repr_png_(self) -> tuple[bytes, dict[str, str]]:
        return self.png(), {"alt": self.caption}

    def __repr__(self) -> str:
        return self.caption
