"""What panels have trained, in a folder: written, read again by a later page, deleted."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from blora_nb.errors import ImageError, shown
from blora_nb.files.images import read_with_remarks
from blora_nb.files.metadata import thumbnail
from blora_nb.files.paths import free_path, safe_name
from blora_nb.files.safe_files import complete_file
from blora_nb.lora import BLoRA
from blora_nb.widgets.gallery import Gallery, Source
from blora_nb.widgets.uploads import WEIGHTS, load_fitting

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

PICTURE = ".png"
NAME = "name"  # the entry of a file's header with the name in the gallery
MOST_REMARKS = 3


def keep(
    gallery: Gallery, name: str, folder: str | Path, square: Image.Image | None = None
) -> Path:
    """Write the B-LoRA of a source into a folder, and its picture beside it as a PNG.

    Both files have the same stem; each is complete or not there, and nothing is overwritten.

    Args:
        square: what it was trained on; None to write no picture.

    Returns:
        The path of the weights.

    Raises:
        ValueError: the source has no B-LoRA.
        OSError: the folder cannot be made or written to.
    """
    source = gallery.sources[name]
    if source.blora is None:
        raise ValueError(f'"{name}" has no B-LoRA yet; train it first.')
    # a copy: the caller's own B-LoRA keeps its metadata
    blora = replace(source.blora, metadata=source.blora.metadata | {NAME: name})
    file = blora.save(free_path(folder, safe_name(name), WEIGHTS, PICTURE))
    gallery.change(name, blora=blora, file=file)
    if square:
        with complete_file(file.with_suffix(PICTURE)) as part:
            square.save(part, format="PNG")
    return file


def load_kept(gallery: Gallery, folder: str | Path, pipe: "StableDiffusionXLPipeline") -> Gallery:
    """Add the B-LoRAs in a folder, with the pictures that `keep` wrote beside them; newest last.

    A file that cannot be read, or does not fit the pipeline, is left out, and `gallery.remarks`
    says so. Without the folder there is nothing to add.

    Returns:
        The same gallery.
    """
    remarks = []
    for file in _by_age(Path(folder)):
        try:
            gallery.add(_kept_source(file, pipe))
        # one bad file must not take a page down, whatever is wrong with it
        except Exception as error:
            remarks.append(f"Left out: {str(error).replace(str(file), file.name)}")
    if len(remarks) > MOST_REMARKS:
        more = len(remarks) - MOST_REMARKS
        remarks[MOST_REMARKS:] = [f"{more} more files in {folder} were left out."]
    gallery.remarks += remarks
    return gallery


def files_of(source: Source) -> list[Path]:
    """The files that `keep` has written for a source, as far as they are there."""
    if source.file is None:
        return []
    files = [source.file, source.file.with_suffix(PICTURE)]
    return [file for file in files if file.exists()]


def forget(gallery: Gallery, name: str) -> None:
    """Delete the files of a source, and take it out of the gallery.

    Raises:
        OSError: a file cannot be deleted; the source stays.
    """
    for file in files_of(gallery.sources[name]):
        file.unlink(missing_ok=True)
    gallery.remove(name)


def weights_file(source: Source, blora: BLoRA) -> tuple[str, bytes]:
    """The name and content of a safetensors file with the B-LoRA of a source."""
    if source.file and source.file.exists():
        return source.file.name, source.file.read_bytes()
    name = f"{safe_name(source.name)}{WEIGHTS}"
    with tempfile.TemporaryDirectory() as folder:
        return name, blora.copy().save(Path(folder) / name).read_bytes()


def size_of(blora: BLoRA) -> int:
    """About how many bytes the file of a B-LoRA has."""
    return sum(tensor.numel() * 4 for tensor in blora.state_dict.values())


def _by_age(folder: Path) -> list[Path]:
    """The files of weights in a folder, the oldest first; none where there is no folder."""
    aged = []
    for file in sorted(folder.glob(f"*{WEIGHTS}")):
        try:
            if file.is_file() and not file.name.startswith("."):
                aged.append((file.stat().st_mtime_ns, file))
        # deleted by another page meanwhile
        except OSError:
            continue
    return [file for _, file in sorted(aged)]


def _kept_source(file: Path, pipe: "StableDiffusionXLPipeline") -> Source:
    """What is in a file of weights and the picture beside it.

    Raises:
        BLoRAError: the weights cannot be used here.
    """
    blora = load_fitting(file, pipe)
    name = shown(blora.metadata.get(NAME, ""))
    # not if somebody gave the file another name since
    if not name or not file.stem.startswith(safe_name(name)):
        name = file.stem
    picture, remarks = _picture_beside(file, blora)
    return Source(name, picture, blora, (*blora.notes, *remarks), file=file)


def _picture_beside(file: Path, blora: BLoRA) -> tuple[Image.Image | None, list[str]]:
    """The picture beside a file of weights, or else the small one inside; and remarks."""
    beside = file.with_suffix(PICTURE)
    if not beside.exists():
        return thumbnail(blora.metadata), []
    try:
        return read_with_remarks(beside)
    except ImageError as error:
        return thumbnail(blora.metadata), [str(error).replace(str(beside), beside.name)]
