"""Files are written completely or not at all, and opened without running code that is in them."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

import safetensors

from blora_nb.errors import BLoRAError, shown
from blora_nb.files.json_objects import parse_json

LARGEST = 4 * 2**30  # bytes of float32 that a B-LoRA may take; SDXL at rank 64 takes 113 MB
LONGEST_HEADER = 16 * 2**20  # bytes; a LoRA of all of SDXL has about 0.5 MB
# endings of files of weights that can run code when they are opened
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
WHY_NOT_OPENED = (
    "Such files can run code when they are opened, so it was not; look for a .safetensors file of "
    "the same weights"
)
# how files of other kinds begin
NO_SAFETENSORS = {
    b"PK": f"is a zip or pickle checkpoint (.ckpt, .pt, .bin). {WHY_NOT_OPENED}",
    b"\x80": f"is a pickle. {WHY_NOT_OPENED}",
    b"version ": "is only the Git LFS pointer to the weights; get them with: git lfs pull",
    b"\x89PNG": "is a picture (PNG), not the B-LoRA of one",
    b"\xff\xd8\xff": "is a picture (JPEG), not the B-LoRA of one",
    b"<": "is a web page, probably saved in place of the weights; download the file itself",
}
REMEDY = "Copy or download it again; other formats are not opened."


class NotWritten(OSError):
    """A file that could not be written; the message says which one, why, and what to do."""


@contextmanager
def complete_file(path: str | Path, replace: bool = False) -> Iterator[Path]:
    """A path to write to; the file is at its place, whole, if the block ends without an error.

    Args:
        replace: whether it takes the place of an older one.

    Raises:
        FileExistsError: there is such a file already.
        NotWritten: the disk is full or read-only, or the folder is not there.
    """
    path = Path(path)
    if os.path.lexists(path) and not replace:
        raise FileExistsError(f"{path} exists already. Choose another name, or remove it first.")
    part = path.with_name(f"{path.name[:40]}{token_hex(4)}.part")
    try:
        part.touch(exist_ok=False)
        mode = part.stat().st_mode
        yield part
        part.chmod(mode)  # safetensors lets nobody else read what it writes
        if replace:
            os.replace(part, path)
        else:
            _put(part, path)
    except (FileExistsError, NotWritten):
        raise
    except (OSError, safetensors.SafetensorError) as error:
        why = getattr(error, "strerror", None) or str(error)
        trouble = NotWritten(
            f"{path} cannot be written ({why}). Make room there, or name another place."
        )
        trouble.strerror = why
        raise trouble from None
    finally:
        with suppress(OSError):  # not there, or on a disk that cannot be read any more
            part.unlink()


def _put(part: Path, path: Path) -> None:
    """Give a finished file its name, unless another program has written that file meanwhile."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise FileExistsError(
            f"{path} was written by another program meanwhile. Choose another name, or remove it "
            "first."
        ) from None
    except OSError:  # a file system without hard links
        os.replace(part, path)


def read_json(path: Path) -> dict:
    """A small JSON object from a file; a BLoRAError if it is too large, or no such thing."""
    with open(path, "rb") as file:
        data = file.read(LONGEST_HEADER + 1)
    if len(data) > LONGEST_HEADER:
        return parse_json("", path)
    # PowerShell writes UTF-16; what cannot be decoded is replaced by what is no JSON
    return parse_json(data.decode(json.detect_encoding(data), errors="replace"), path)


@contextmanager
def open_weights(path: Path) -> Iterator[safetensors.safe_open]:
    """A safetensors file, opened; a BLoRAError if it is not complete. Nothing is read ahead."""
    try:
        _check_start(path)
        with safetensors.safe_open(path, "pt") as opened:
            yield opened
    except BLoRAError:
        raise
    except (safetensors.SafetensorError, OSError, MemoryError, RuntimeError) as error:
        # what the reader raises for headers that contradict themselves or name dtypes PyTorch lacks
        raise BLoRAError(
            f"{path} is not a complete safetensors file ({shown(error, 200)}). {REMEDY}"
        ) from None


def _check_start(path: Path) -> None:
    """Raise a BLoRAError, before the header is read, unless its length is possible."""
    with open(path, "rb") as file:
        start = file.read(8)
    size, header = os.stat(path).st_size, int.from_bytes(start, "little")
    if header <= LONGEST_HEADER and len(start) == 8 and header + 8 <= size:
        return
    for mark, what in NO_SAFETENSORS.items():
        if start.startswith(mark) and header > LONGEST_HEADER:
            raise BLoRAError(f"{path} is not a complete safetensors file: it {what}.")
    why = f"its header would have {header:,} bytes and the file has {size:,}"
    if not size:
        why = "it is empty"
    raise BLoRAError(f"{path} is not a complete safetensors file ({why}). {REMEDY}")
