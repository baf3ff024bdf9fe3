"""Pictures written with the settings they were made with inside, and these settings read again."""

import json
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from blora_nb.errors import BLoRAError, ImageError, shown
from blora_nb.files.images import opened
from blora_nb.files.json_objects import json_object, parse_json
from blora_nb.files.paths import free_path, safe_name, writable_folder
from blora_nb.files.safe_files import complete_file

FIELD = "blora_nb"  # the text field of a PNG with the settings as JSON


def save_image(image: Image.Image, path: str | Path, settings: dict | None = None) -> Path:
    """Write a PNG with its settings inside (text field "blora_nb", JSON); complete or not at all.

    Args:
        settings: by default what `generate` has noted on the picture.

    Raises:
        FileExistsError: there is such a file already.
    """
    path = Path(path)
    settings = settings or _noted(image)
    info = PngImagePlugin.PngInfo()
    if settings:
        info.add_text(FIELD, json.dumps(settings))
    with complete_file(path) as part:
        image.save(part, format="PNG", pnginfo=info)
    return path


def save_picture(image: Image.Image, folder: str | Path) -> Path:
    """Write a picture of `generate` or `sample` into a folder (made if needed) as PROMPT_seedN.png.

    Its settings are inside, so that `blora generate --like` makes it again. Nothing is
    overwritten: a second picture of the same name gets -2. The path of the file is returned.

    Raises:
        ImageError: the picture does not know what it was made with.
        OSError: the folder cannot be written to.
    """
    settings = _noted(image)
    if not {"prompt", "seed"} <= settings.keys():
        raise ImageError(
            "This picture does not know what it was made with; only those of generate and sample "
            "do. Save it with its own method: picture.save(…)."
        )
    name = f"{safe_name(settings['prompt'])}_seed{settings['seed']}"
    return save_image(image, free_path(writable_folder(folder), name, ".png"), settings)


def _noted(image: Image.Image) -> dict[str, Any]:
    """The settings on a picture of `generate`, or on one of its files opened with PIL."""
    noted = image.info.get(FIELD)
    return noted if isinstance(noted, dict) else json_object(noted or "") or {}


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings that `save_image` put into a picture.

    Raises:
        ImageError: no picture, or none with settings in it.
    """
    with opened(path) as image:
        text = image.text.get(FIELD) if isinstance(image, PngImagePlugin.PngImageFile) else None
    if text is None:
        raise ImageError(
            f"{shown(path, 300)} has no settings inside; only pictures written by `blora generate` "
            "or `save_picture` have them."
        )
    try:
        return parse_json(text, f"The text field of {path}")
    except BLoRAError as error:
        raise ImageError(str(error)) from None
