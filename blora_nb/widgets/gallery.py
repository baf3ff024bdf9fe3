"""Where a half comes from: pictures and the B-LoRAs trained from them, a gallery of these, and the controls that choose one."""

import base64
import html
import io
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import ipywidgets as widgets
import traitlets
from PIL import Image

from blora_nb.assets import DATA
from blora_nb.course.examples import example_names, example_picture
from blora_nb.defaults import native_resolution
from blora_nb.errors import ImageError
from blora_nb.files.cards import THUMBNAIL
from blora_nb.files.images import (
    centre_square,
    free_path,
    read_with_remarks,
    remarks_on_square,
    safe_name,
)
from blora_nb.files.safe_files import HUB_ID
from blora_nb.guards.prompts import remarks_on_prompt
from blora_nb.lora import BLoRA, mix
from blora_nb.training import train

SIDE, LABEL = 96, 94  # pixels: of a source's picture, of the words before a control
INDENT = SIDE + 12 + LABEL  # where the inputs begin, under each other


@dataclass(frozen=True, eq=False)
class Source:
    """A picture, the B-LoRA trained from it, or both."""

    name: str
    picture: Image.Image | None = None
    blora: BLoRA | None = None
    remarks: tuple[str, ...] = ()  # on the picture: what was left out or assumed when it was read

    @classmethod
    def of(cls, thing, half):
        """A source for a half, made of a PIL image, a picture file, a `BLoRA`, its file, folder or id on the hub, a mixture (see `generation.generate`), or a `Source`.

        Raises:
            ImageError, BLoRAError: it cannot be read.
        """
        if isinstance(thing, cls):
            return thing
        if isinstance(thing, (list, tuple)):
            thing = mix(half, thing)
        if isinstance(thing, BLoRA):
            return cls(f"{half} B-LoRA", thumbnail_of(thing), thing)
        if isinstance(thing, Image.Image):
            picture, remarks = read_with_remarks(thing)
            return cls(f"{half} picture", picture, remarks=tuple(remarks))
        path = Path(thing)
        if (
            path.suffix == ".safetensors"
            or path.is_dir()
            or (
                HUB_ID.fullmatch(str(thing))
                and not path.exists()
                and path.suffix.lower() not in Image.registered_extensions()
            )
        ):
            blora = BLoRA.load(thing)
            return cls(path.stem, thumbnail_of(blora), blora)
        picture, remarks = read_with_remarks(path)
        return cls(path.stem, picture, remarks=tuple(remarks))


def thumbnail_of(blora):
    """The small copy of its picture that a B-LoRA's file may hold, or None."""
    data = blora.metadata.get("modelspec.thumbnail", "")
    try:
        if not THUMBNAIL.fullmatch(data):
            return None
        return read_bytes("thumbnail", base64.b64decode(data.split(",")[1]))
    except ValueError:  # damaged; the weights are none the worse for it
        return None


class Gallery(traitlets.HasTraits):
    """Sources by name, which several panels can share: what is uploaded or trained in one can be chosen in all."""

    sources = traitlets.Dict()

    def add(self, source):
        """Add a source under its name, or with -2, -3, … appended when that is taken; returns the name."""
        name, number = source.name, 2
        while name in self.sources:
            name, number = f"{source.name}-{number}", number + 1
        self.sources = {**self.sources, name: replace(source, name=name)}
        return name

    def trained(self, name, blora):
        """Give the named picture its B-LoRA."""
        self.sources = {**self.sources, name: replace(self.sources[name], blora=blora)}


def example_gallery():
    """The example pictures of this repository, each with its ready B-LoRA for the teaching model."""
    gallery = Gallery()
    for name in example_names():
        gallery.add(
            Source(
                name.replace("_", " "),
                example_picture(name),
                BLoRA.load(DATA / "bloras" / f"{name}.safetensors"),
            )
        )
    return gallery


def picture_html(picture, side, alt):
    """An HTML picture of `side` pixels with a text for those who cannot see it; small pictures are enlarged crisply."""
    data = base64.b64encode(png_bytes(picture)).decode()
    rendering = "pixelated" if picture.width <= side else "auto"
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}" style="width:100%;max-width:{side}px;image-rendering:{rendering};border-radius:4px;display:block;margin:0">'


def reduced(picture, side):
    """A copy of a picture for a place of `side` pixels, sharp on screens with two points a pixel; a page gets dozens of them."""
    small = picture.copy()
    small.thumbnail((2 * side, 2 * side))
    return small


def png_bytes(picture):
    """A picture as the bytes of a PNG file."""
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def read_bytes(name, content):
    """The picture in the bytes of a file; error messages call it by its name.

    Raises:
        ImageError: it is no picture, or a damaged one.
    """
    return read_bytes_with_remarks(name, content)[0]


def read_bytes_with_remarks(name, content):
    """Like `read_bytes`: (the picture, the remarks of `images.read_with_remarks` on it).

    Raises:
        ImageError: it is no picture, or a damaged one.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / safe_name(name)
        path.write_bytes(content)
        try:
            picture, remarks = read_with_remarks(path)
            return picture, [remark.replace(str(path), name) for remark in remarks]
        except ImageError as error:
            raise ImageError(str(error).replace(str(path), name)) from error


def uploaded_files(upload):
    """(name, bytes) of what a `FileUpload` holds, in ipywidgets 7 (a dictionary by name) as in 8 (a tuple)."""
    if isinstance(upload.value, dict):
        return [(name, bytes(file["content"])) for name, file in upload.value.items()]
    return [(file["name"], bytes(file["content"])) for file in upload.value]


class HalfChooser(widgets.VBox):
    """The controls of one half: which source, an own picture, training, alpha.

    Args:
        half: "content" or "style". chosen: a name in the gallery. worker: a `Worker`, which does the training.
        training_settings: a `TrainingSettings`, or None for those that suit the pipeline.
        folder: where freshly trained weights are written.
    """

    def __init__(self, half, gallery, chosen, alpha, worker, training_settings, folder):
        self.half, self.gallery, self.worker, self.training_settings, self.folder = (
            half,
            gallery,
            worker,
            training_settings,
            folder,
        )
        wide, label = widgets.Layout(width="auto"), {"description_width": f"{LABEL}px"}
        self.choice = widgets.Dropdown(description=half.capitalize(), layout=wide, style=label)
        self.alpha = widgets.FloatSlider(
            alpha,
            min=-2,
            max=2,
            step=0.05,
            description=f"{half.capitalize()} alpha",
            continuous_update=False,
            readout_format="+.2f",
            layout=wide,
            style=label,
        )
        self.upload = widgets.FileUpload(
            accept="image/*",
            multiple=False,
            description=f"Own {half}",
            layout=widgets.Layout(width="auto"),
        )
        self.train = widgets.Button(
            description=f"Train {half}", layout=widgets.Layout(width="auto")
        )
        self.thumbnail = widgets.HTML(layout=widgets.Layout(min_width=f"{SIDE + 8}px"))
        self._fill_choice()
        self.choice.value = chosen
        self.choice.observe(lambda _: self.show(), "value")
        self.upload.observe(self._uploaded, "value")
        self.train.on_click(self._train)
        gallery.observe(lambda _: self._fill_choice(), "sources")
        worker.buttons.append(self.train)
        buttons = widgets.HBox(
            [self.upload, self.train],
            layout=widgets.Layout(margin=f"0 0 0 {LABEL + 8}px", flex_flow="row wrap"),
        )
        beside = widgets.VBox(
            [self.choice, buttons, self.alpha], layout=widgets.Layout(flex="1 1 auto")
        )
        super().__init__(
            [widgets.HBox([self.thumbnail, beside])], layout=widgets.Layout(margin="0 0 10px 0")
        )
        self.show()

    @property
    def source(self):
        """The chosen `Source`."""
        return self.gallery.sources[self.choice.value]

    def show(self):
        """Show the chosen picture, and offer training where there is no B-LoRA of it yet."""
        if self.source.picture:
            picture = centre_square(self.source.picture, 2 * SIDE)
            self.thumbnail.value = picture_html(
                picture, SIDE, f"{self.half} picture: {self.source.name}"
            )
        else:
            self.thumbnail.value = f'<div style="width:{SIDE}px;height:{SIDE}px;border:1px dashed #999;border-radius:4px;line-height:{SIDE}px;text-align:center;opacity:.75">no picture</div>'
        if not self.worker.busy:
            self.train.disabled = self.source.blora is not None
            self.train.button_style = "" if self.train.disabled else "primary"

    def remarks(self):
        """Sentences on the chosen picture, and on the prompt that it would be learnt with."""
        source = self.source
        if source.blora is not None or source.picture is None:
            return list(source.remarks)
        pipe, settings = self.worker.pipe, self.training_settings
        side = settings.resolution if settings else native_resolution(pipe)
        prompt = settings.instance_prompt if settings else None
        square = remarks_on_square(source.picture, side, source.name)
        return [*source.remarks, *square, *remarks_on_prompt(pipe, prompt)]

    def _fill_choice(self):
        """Offer all sources of the gallery, and keep the chosen one."""
        chosen = self.choice.value
        if tuple(self.gallery.sources) != self.choice.options:
            self.choice.options = tuple(self.gallery.sources)
            self.choice.value = chosen or self.choice.options[0]
        self.show()

    def _uploaded(self, _):
        for name, content in uploaded_files(self.upload):
            try:
                picture, remarks = read_bytes_with_remarks(name, content)
            except Exception as error:
                self.worker.show(error)
            else:
                source = Source(Path(name).stem or "picture", picture, remarks=tuple(remarks))
                self.choice.value = self.gallery.add(source)
                text = f'Press "{self.train.description}" to learn {name}.'
                self.worker.say(text, self.remarks())

    def _train(self, _):
        source, remarks = self.source, self.remarks()

        def work():
            blora = train(
                self.worker.pipe, source.picture, self.training_settings, progress=self.worker.step
            )
            self.gallery.trained(source.name, blora)  # first, so that a full disk does not lose it
            path = blora.save(free_path(self.folder, safe_name(source.name), ".safetensors"))
            self.worker.say(f"{source.name} is learnt, and kept in {path}.", remarks)

        self.worker.start(f"Learning {source.name}", work)
