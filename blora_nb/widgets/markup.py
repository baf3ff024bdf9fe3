"""What the page shows: pictures and small print as HTML, and the layout of controls."""

import html
import io
from base64 import b64encode

from PIL import Image

EMPTY = "border:1px dashed #999;opacity:.75"
AUTO = {"width": "auto"}
WRAPPED = {"flex_flow": "row wrap"}  # of a row of controls, on a narrow page


def picture_html(picture: Image.Image, side: int, alt: str) -> str:
    """A picture of at most `side` pixels, with a text for those who cannot see it.

    Small pictures are enlarged crisply.
    """
    rendering = "pixelated" if picture.width <= side else "auto"
    style = (
        f"width:100%;max-width:{side}px;image-rendering:{rendering};border-radius:4px;"
        "display:block;margin:0"
    )
    source = png_address(png_bytes(picture))
    return f'<img alt="{html.escape(alt)}" src="{source}" style="{style}">'


def reduced(picture: Image.Image, side: int) -> Image.Image:
    """A copy for a place of `side` pixels, sharp on screens with two points a pixel.

    A page holds dozens of them.
    """
    small = picture.copy()
    small.thumbnail((2 * side, 2 * side))
    return small


def png_bytes(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def png_address(content: bytes) -> str:
    """The bytes of a PNG file as an address that holds them."""
    return f"data:image/png;base64,{b64encode(content).decode()}"


def download_link(name: str, address: str) -> str:
    """A link that puts the file at an address into the browser's downloads, under a name."""
    text = html.escape(name)
    style = "display:inline-block;line-height:1.4;text-decoration:underline;overflow-wrap:anywhere"
    return f'<a download="{text}" href="{address}" style="{style}">Download {text}</a>'


def small_print(markup: str) -> str:
    style = "line-height:1.4;font-size:12px;overflow-wrap:anywhere;opacity:.75"
    return f'<div style="{style}">{markup}</div>'
