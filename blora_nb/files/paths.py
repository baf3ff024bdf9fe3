"""Where to write: file names that every system takes, folders, names that are still free."""

import re
import tempfile
import unicodedata
from pathlib import Path

# no file names on Windows
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
LONGEST = 120  # bytes of a name, with room for an ending


def safe_name(text: str) -> str:
    """A file name of at most 120 bytes from any text.

    >>> safe_name("A <c>/cat"), safe_name("../nul"), safe_name("?")
    ('A_c_cat', 'picture_nul', 'picture')
    """
    plain = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFKC", text)).strip("._-")
    plain = plain.encode()[:LONGEST].decode(errors="ignore").rstrip("._") or "picture"
    return f"picture_{plain}" if RESERVED.fullmatch(plain) else plain


def writable_folder(folder: str | Path) -> Path:
    """The folder, made if needed; checked by writing to it before any work is done.

    Raises:
        OSError: it cannot be made or written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"Cannot write to the folder {folder} ({error.strerror or error}). Nothing was done "
            "yet; choose another folder."
        ) from None
    return folder


def free_path(folder: str | Path, stem: str, *suffixes: str) -> Path:
    """`folder/stem` with the first suffix; -2, -3, … after the stem if one of them exists."""
    path, number = Path(folder) / stem, 2
    while any(path.with_name(f"{path.name}{suffix}").exists() for suffix in suffixes):
        path = path.with_name(f"{stem}-{number}")
        number += 1
    return path.with_name(f"{path.name}{suffixes[0]}")
