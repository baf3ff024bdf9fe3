"""Pictures out of bytes: what a browser uploads, and what a file of weights holds."""

import tempfile
from pathlib import Path

import ipywidgets as widgets
from PIL import Image

from blora_nb.errors import ImageError
from blora_nb.files.images import read_with_remarks, safe_name


def uploaded_files(upload: widgets.FileUpload) -> list[tuple[str, bytes]]:
    """(name, content) of what was uploaded, in ipywidgets 7 (a dictionary) as in 8 (a tuple)."""
    if isinstance(upload.value, dict):
        return [(name, bytes(file["content"])) for name, file in upload.value.items()]
    return [(file["name"], bytes(file["content"])) for file in upload.value]


def picture_from_bytes(name: str, content: bytes) -> tuple[Image.Image, list[str]]:
    """The picture in the bytes of a file, and the remarks of `read_with_remarks` on it.

    Errors and remarks call it by its name.

    Raises:
        ImageError: it is no picture, or a damaged one.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / safe_name(name)
        path.write_bytes(content)
        try:
            picture, remarks = read_with_remarks(path)
        except ImageError as error:
            raise ImageError(str(error).replace(str(path), name)) from error
    return picture, [remark.replace(str(path), name) for remark in remarks]
