"""Where a half comes from: pictures and the B-LoRAs trained from them, and a gallery of these."""

import threading
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import traitlets
from PIL import Image

from blora_nb.assets import DATA
from blora_nb.course.examples import example_names, example_picture
from blora_nb.files.images import read_with_remarks
from blora_nb.files.locating import HUB_ID
from blora_nb.files.metadata import thumbnail
from blora_nb.files.paper import paper_white, with_margin
from blora_nb.lora import BLoRA, mix

MARGIN = 0.1  # of the picture's long side
LARGEST = 4096  # pixels of a side, when a picture is prepared; training needs fewer


@dataclass(frozen=True, eq=False)
class Upload:
    """A picture as it was uploaded, and what was asked to be done with it before it is learned."""

    picture: Image.Image
    white_paper: bool = False
    margin: bool = False

    def prepared(self) -> Image.Image:
        """The picture with all that done; a larger one than `LARGEST` is made smaller first."""
        if not (self.white_paper or self.margin):
            return self.picture
        picture = self.picture.copy()
        # the square around a panorama would not fit into memory
        picture.thumbnail((LARGEST, LARGEST))
        if self.white_paper:
            picture = paper_white(picture)
        return with_margin(picture, MARGIN) if self.margin else picture


@dataclass(frozen=True, eq=False)
class Source:
    """A picture, the B-LoRA trained from it, or both.

    Args:
        remarks: what was left out or assumed when the picture was read.
        upload: what `picture` was made from, as long as that can be changed.
        file: the weights, where a panel has written them; see `kept`.
    """

    name: str
    picture: Image.Image | None = None
    blora: BLoRA | None = None
    remarks: tuple[str, ...] = ()
    upload: Upload | None = None
    file: Path | None = None

    @classmethod
    def of(cls, thing: Any, half: str) -> "Source":
        """A source for a half.

        Args:
            thing: a PIL image, a picture file, a `BLoRA`, its file, folder or id on the hub, a
                mixture (see `generation.generate`), or a `Source`.

        Raises:
            ImageError, BLoRAError: it cannot be read.
        """
        if isinstance(thing, cls):
            return thing
        if isinstance(thing, (list, tuple)):
            thing = mix(half, thing)
        if isinstance(thing, BLoRA):
            return cls(f"{half} B-LoRA", thumbnail(thing.metadata), thing)
        # a PIL image; of anything else, the error says how to make one
        if not isinstance(thing, str | Path):
            picture, remarks = read_with_remarks(thing)
            return cls(f"{half} picture", picture, remarks=tuple(remarks))
        name = Path(thing).stem
        if names_weights(thing):
            blora = BLoRA.load(thing)
            return cls(name, thumbnail(blora.metadata), blora)
        picture, remarks = read_with_remarks(Path(thing))
        return cls(name, picture, remarks=tuple(remarks))


def names_weights(source: str | Path) -> bool:
    """Whether a B-LoRA is named (a file, a folder or an id on the hub) rather than a picture."""
    path = Path(source)
    if path.suffix == ".safetensors" or path.is_dir():
        return True
    picture = path.exists() or path.suffix.lower() in Image.registered_extensions()
    return bool(HUB_ID.fullmatch(str(source))) and not picture


class Gallery(traitlets.HasTraits):
    """Sources by name. What one panel uploads or trains can be chosen in all that share it.

    Attributes:
        remarks: sentences on files that were left out; panels show them.
    """

    sources = traitlets.Dict()

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.remarks: list[str] = []
        # panels remember pictures by these names, so none is given twice
        self._removed: set[str] = set()
        # a training in the background adds to the sources, too
        self._changing = threading.RLock()

    def add(self, source: Source) -> str:
        """Add a source under its name, or with -2, -3, … if that was ever taken.

        Returns:
            The name.
        """
        with self._changing:
            name, number = source.name, 2
            while name in self.sources or name in self._removed:
                name, number = f"{source.name}-{number}", number + 1
            self.sources = {**self.sources, name: replace(source, name=name)}
        return name

    def change(self, name: str, **fields: Any) -> None:
        """Give a source other values of these fields."""
        with self._changing:
            self.sources = {**self.sources, name: replace(self.sources[name], **fields)}

    def remove(self, name: str) -> None:
        """Take a source out."""
        with self._changing:
            self._removed.add(name)
            self.sources = {key: source for key, source in self.sources.items() if key != name}

    def add_drawing(self, picture: Image.Image) -> str:
        """Add a picture as "drawing 1", "drawing 2", …; returns the name."""
        names = (f"drawing {number}" for number in count(1))
        with self._changing:
            taken = {*self.sources, *self._removed}
            free = next(name for name in names if name not in taken)
            return self.add(Source(free, picture))

    def prepare(self, name: str, **asked: bool) -> None:
        """Make the picture of an upload anew.

        Args:
            asked: fields of its `Upload`, e.g. `white_paper=True`.
        """
        with self._changing:
            source = self.sources[name]
            if source.upload is None:
                return
            upload = replace(source.upload, **asked)
            self.change(name, picture=upload.prepared(), upload=upload)

    def add_trained(self, name: str, blora: BLoRA, picture: Image.Image) -> None:
        """Give the named source its B-LoRA, and the picture that this was trained from."""
        self.change(name, picture=picture, blora=blora, upload=None)


def example_gallery() -> Gallery:
    """The example pictures of the course, each with its ready B-LoRA for the teaching model."""
    gallery = Gallery()
    for name in example_names():
        blora = BLoRA.load(DATA / "bloras" / f"{name}.safetensors")
        gallery.add(Source(name.replace("_", " "), example_picture(name), blora))
    return gallery
