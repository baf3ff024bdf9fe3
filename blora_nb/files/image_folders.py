"""The pictures in a folder."""

from pathlib import Path

from blora_nb.errors import ImageError, not_there, shown
from blora_nb.files.image_kinds import SUFFIXES, why_unreadable
from blora_nb.files.images import issue_warnings, opened

NO_PICTURES = {".txt", ".caption", ".json", ".jsonl", ".csv", ".npz", ".md", ".zip", ".safetensors"}


def find_images(folder_or_file: str | Path) -> list[Path]:
    """The picture files in a folder, sorted, without hidden files; a file is given back alone.

    Pictures that are left out are named in an `ImageWarning`.

    Raises:
        ImageError: there is no picture, or the folder may not be read.
    """
    path = Path(folder_or_file)
    try:
        if path.is_file():
            return [path]
        if not path.is_dir():
            raise ImageError(not_there("file or folder", path))
        there = _visible(path)
        files = [p for p in there if p.is_file()]
        folders = [p.name for p in there if p.is_dir() and _holds_pictures(p)]
    except OSError as error:
        raise ImageError(
            f"The folder {shown(path, 300)} cannot be looked into ({error.strerror or error})."
        ) from None
    found = [p for p in files if p.suffix.lower() in SUFFIXES]
    remarks = _remarks_on_left_out([p for p in files if p not in found])
    if folders:
        remarks.append(
            f"The pictures in the folders in it ({shown(', '.join(folders), 200)}) are not used; "
            "name one of these folders instead. Repeats, as in 10_fish, have no meaning here."
        )
    if not found:
        supported = f"Supported: {', '.join(sorted(SUFFIXES))}."
        raise ImageError(" ".join([f"No picture in {path}. {supported}", *remarks]))
    issue_warnings([f"{path}: {remark}" for remark in remarks])
    return found


def _remarks_on_left_out(files: list[Path]) -> list[str]:
    """Sentences that name the pictures among files without an ending of a picture, and why."""
    names_of: dict[str, list[str]] = {}
    for file in files:
        if file.suffix.lower() in NO_PICTURES:
            continue
        reason = why_unreadable(file)
        if reason is None and _is_picture(file):
            reason = "is a picture by its content; give it an ending that says so"
        if reason:
            names_of.setdefault(reason, []).append(file.name)
    remarks = []
    for reason, names in names_of.items():
        subject = "each" if len(names) > 1 else "it"
        remarks.append(f"Left out: {shown(', '.join(names), 300)}; {subject} {reason}.")
    return remarks


def _is_picture(file: Path) -> bool:
    """Whether Pillow opens a file as one of the pictures that are read here, whatever its name."""
    try:
        with opened(file):
            return True
    except ImageError:
        return False


def _holds_pictures(folder: Path) -> bool:
    """Whether there is a picture in a folder; no, if it may not be read."""
    try:
        return any(p.suffix.lower() in SUFFIXES for p in _visible(folder))
    except OSError:
        return False


def _visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))
