"""Which B-LoRAs to train: from which pictures, with which prompts, into which folders."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path

from blora_nb.errors import ImageWarning, several
from blora_nb.files.image_folders import find_images
from blora_nb.files.images import read_with_remarks
from blora_nb.files.locating import FILE_NAME
from blora_nb.lora import BLoRA

MANIFEST = "manifest.json"
CAPTION = '{"file_name": "dog1.jpg", "text": "A [v] dog in the snow"}'


@dataclass(frozen=True)
class Job:
    """One B-LoRA to train.

    Args:
        pictures: path to prompt, or to None for the instance prompt.
        folder: where its weights and checkpoints are written.
        content: the source of a content half to keep, if any.
    """

    pictures: dict[Path, str | None]
    folder: Path
    content: Path | str | None = None

    @property
    def finished(self) -> bool:
        return (self.folder / FILE_NAME).exists()

    @property
    def has_captions(self) -> bool:
        return any(self.pictures.values())

    @property
    def picture_names(self) -> list[str]:
        return [path.name for path in self.pictures]

    def __str__(self) -> str:
        return ", ".join(map(str, self.pictures))


def plan(
    instance_data_dir: str | Path,
    output_dir: str | Path,
    together: bool = False,
    captions_file: str | Path | None = None,
    content: str | Path | None = None,
) -> list[Job]:
    """The jobs for a picture or a folder of pictures.

    Every picture and content half is read once, so that a broken one shows before the work.

    Args:
        content: the content half to keep: a B-LoRA's file or folder, or for several pictures the
            folder that an earlier training of them left.

    Raises:
        ImageError: no picture, or a broken one. BLoRAError: no content half.
        ValueError: captions that fit no picture, or two pictures of one name.
    """
    paths = find_images(instance_data_dir)
    for path in paths:
        read_with_remarks(path)  # the remarks are given where the picture is trained on
    captions = read_captions(captions_file, paths) if captions_file else {}
    if captions_file and not together:
        raise ValueError("A captions file is for one B-LoRA from all pictures: add --together.")
    unused = None if captions_file else unused_captions(paths)
    if unused:
        warnings.warn(unused, ImageWarning, stacklevel=2)
    output_dir = Path(output_dir)
    # of several pictures that were trained before, one may be left
    of_several = (output_dir / MANIFEST).exists()
    if together or (len(paths) == 1 and not of_several):
        check_content(content)
        return [Job({path: captions.get(path) for path in paths}, output_dir, content)]
    check_folder_names(paths)
    jobs = []
    for path in paths:
        half = Path(content) / path.stem if content else None
        check_content(half)
        jobs.append(Job({path: None}, output_dir / path.stem, half))
    return jobs


def check_folder_names(paths: Sequence[Path]) -> None:
    """Raise a ValueError where two pictures, or one and the manifest, would get the same folder."""
    # macOS and Windows take Cat and cat for one folder
    stems = [path.stem.casefold() for path in paths]
    if MANIFEST in stems:
        raise ValueError(
            f"{paths[stems.index(MANIFEST)].name} would get a folder where the list of all "
            f"B-LoRAs, {MANIFEST}, is written. Rename it."
        )
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice is not None:
        same = [path.name for path, stem in zip(paths, stems) if stem == twice]
        raise ValueError(
            f"{' and '.join(same[:2])} have the same name but for the ending or for capital "
            "letters; their B-LoRAs would get the same folder. Rename one."
        )


def check_content(source: str | Path | None) -> None:
    """Read a content half, to see that there is one.

    Raises:
        BLoRAError: it has none. ValueError: there is no folder of that picture.
    """
    if isinstance(source, Path) and not source.exists():
        raise ValueError(
            f"The folder of the first training, {source.parent}, has no B-LoRA of {source.name}. "
            "Train that picture first, or name the folder that an earlier training of these "
            "pictures left."
        )
    if source:
        _ = BLoRA.load(source).content


def read_captions(file: str | Path, paths: Sequence[Path]) -> dict[Path, str]:
    """The prompt of each picture, from a file with a JSON object in each line.

    Such lines are in the metadata.jsonl of the `datasets` library, too:
    {"file_name": "dog1.jpg", "text": "A [v] dog in the snow"}

    Raises:
        ValueError: the file cannot be read, or does not have one prompt for each picture.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8 text. Save it as UTF-8.") from None
    except OSError as error:
        why = error.strerror or error
        raise ValueError(f"The captions file {file} cannot be read ({why}).") from None
    path_of = {path.name: path for path in paths}
    captions: dict[Path, str] = {}
    line_of: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        here = f"{file}, line {number}:"
        try:
            row = json.loads(line)
            name, text = row["file_name"], row["text"]
            if not (isinstance(name, str) and isinstance(text, str) and text.strip()):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{here} expected something like {CAPTION}, not: {line[:80]}"
            ) from None
        if name not in path_of:
            raise ValueError(f"{here} there is no picture {name}.")
        if name in line_of:
            raise ValueError(
                f"{here} {name} has a caption already, in line {line_of[name]}. Remove one of the "
                "two."
            )
        line_of[name] = number
        captions[path_of[name]] = text
    missing = [path.name for path in paths if path not in captions]
    if missing:
        raise ValueError(f"{file} has no caption for {', '.join(missing)}.")
    return captions


def unused_captions(paths: Sequence[Path]) -> str | None:
    """A sentence about captions that lie beside the pictures and are not used; None without any."""
    beside = [path.with_suffix(end) for path in paths for end in (".txt", ".caption")]
    beside += [path.with_name(path.name + ".txt") for path in paths]
    # as the `datasets` library has them
    beside += [path.parent / f"metadata.{end}" for path in paths[:1] for end in ("jsonl", "csv")]
    # unlike `Path.is_file` it takes a name that is too long
    names = [path.name for path in dict.fromkeys(beside) if isfile(path)]
    if not names:
        return None
    return (
        f"The captions beside the pictures ({several(names)}) are not used: all pictures have the "
        "instance prompt. For a prompt of its own for each, with --together, write a "
        f"--captions_file with lines like {CAPTION}."
    )
