"""The controls of one half: which source, an own picture or drawing, training, alpha, files."""

import html
from base64 import b64encode
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import ipywidgets as widgets
from PIL import Image

from blora_nb.defaults import TEACHING_MODEL_LEARNS, is_teaching_model
from blora_nb.errors import TrainingError
from blora_nb.evaluation.rebuilding import rebuilt_in_words
from blora_nb.files.image_kinds import SUFFIXES
from blora_nb.files.images import centre_square, remarks_on_square
from blora_nb.files.metadata import thumbnail
from blora_nb.generation import sample
from blora_nb.guards.prompts import remarks_on_prompt
from blora_nb.lora import BLoRA
from blora_nb.running.device import host
from blora_nb.settings import TrainingSettings
from blora_nb.training import train
from blora_nb.widgets.gallery import Gallery, Source, Upload
from blora_nb.widgets.kept import files_of, forget, keep, size_of, weights_file
from blora_nb.widgets.markup import AUTO, EMPTY, WRAPPED, download_link, picture_html, small_print
from blora_nb.widgets.pad import DrawingPad
from blora_nb.widgets.uploads import WEIGHTS, blora_from_bytes, picture_from_bytes, take_uploaded
from blora_nb.widgets.worker import Worker

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

# in pixels: a source's picture, the words before a control, the least width of the controls
SIDE, LABEL, CONTROLS = 96, 94, 300
ALPHAS = -2, 2  # from the left end of the slider to the right
LARGEST_LINK = 10_000_000  # bytes of a file that a page takes as a link


def wide_or_narrow(wide: int, narrow: int, width: int) -> str:
    """A length in CSS: `wide` pixels in a place of at least `width` pixels, otherwise `narrow`."""
    if wide < narrow:
        return f"clamp({wide}px, ({width}px - 100%) * 1000, {narrow}px)"
    return f"clamp({narrow}px, (100% - {width - 1}px) * 1000, {wide}px)"


# where the inputs begin; on a narrow page the controls stand below the picture
INDENT = wide_or_narrow(SIDE + 12 + LABEL, LABEL, SIDE + 12 + CONTROLS)
INDENTED = {"margin": f"0 0 0 {wide_or_narrow(LABEL + 8, 0, CONTROLS)}"}
# of a row of buttons below the choosers
BUTTONS_INDENT = wide_or_narrow(SIDE + 12 + LABEL + 8, 0, SIDE + 12 + CONTROLS)
# of a short number: beside another, or below it on a narrow page
SHORT_NUMBER = wide_or_narrow(130, LABEL + 80, SIDE + 12 + CONTROLS)
NARROW = AUTO | {"padding": "0 8px"}  # of buttons, so that two of them fit in a row

NO_PICTURE = (
    f'<div style="width:{SIDE}px;height:{SIDE}px;line-height:{SIDE}px;text-align:center;'
    f'border-radius:4px;{EMPTY}">no picture</div>'
)


class HalfChooser(widgets.VBox):
    """The controls of one half.

    Args:
        half: "content" or "style".
        chosen: a name in the gallery.
        worker: does the training.
        folder: where trained and uploaded weights are written.

    Attributes:
        offering: True while new sources are offered: for a moment another one seems to be chosen.
    """

    def __init__(
        self,
        half: str,
        gallery: Gallery,
        chosen: str,
        alpha: float,
        worker: Worker,
        training_settings: TrainingSettings,
        folder: str | Path,
    ) -> None:
        self.half = half
        self.gallery = gallery
        self.worker = worker
        self.training_settings = training_settings
        self.folder = folder
        self.offering = False
        title = half.capitalize()
        label = {"description_width": f"{LABEL}px"}
        self.choice = widgets.Dropdown(description=title, layout=AUTO, style=label)
        self.alpha = widgets.FloatSlider(
            alpha,
            min=ALPHAS[0],
            max=ALPHAS[1],
            step=0.05,
            description=f"{title} alpha",
            continuous_update=False,
            readout_format="+.2f",
            layout=AUTO,
            style=label,
        )
        own = f"Upload {half}"
        accept = f"image/*,{WEIGHTS}"
        self.upload = widgets.FileUpload(accept=accept, multiple=True, description=own, layout=AUTO)
        self.draw = widgets.ToggleButton(description=f"Draw {half}", layout=AUTO)
        self.train = widgets.Button(description=f"Train {half}", layout=AUTO)
        preparations = {"white_paper": "make the paper white", "margin": "add a margin"}
        self.boxes = {
            name: widgets.Checkbox(description=f"{title}: {what}", indent=False, layout=AUTO)
            for name, what in preparations.items()
        }
        self.preparation = widgets.VBox(list(self.boxes.values()), layout=INDENTED)
        self.download = widgets.Button(description=f"Download {half}", layout=NARROW)
        self.link = widgets.HTML()
        self.forget = widgets.Button(description=f"Forget {half}", layout=NARROW)
        self.question = widgets.HTML()
        self.really_forget = widgets.Button(
            description=f"Delete {half}", button_style="danger", layout=NARROW
        )
        self.keep = widgets.Button(description=f"Keep {half}", layout=NARROW)
        self.confirmation = widgets.VBox(
            [self.question, widgets.HBox([self.really_forget, self.keep], layout=WRAPPED)],
            layout={"display": "none"},
        )
        self.pad: DrawingPad | None = None
        self.use_drawing = widgets.Button(description="Use this drawing", layout=AUTO)
        self.below = widgets.VBox(layout={"align_items": "flex-start"})
        self.thumbnail = widgets.HTML(layout={"min_width": f"{SIDE + 8}px"})
        super().__init__([self._arranged(), self.below], layout={"margin": "0 0 10px 0"})

        # the source that link and question are about
        self._files_shown_of = chosen
        self._offer_sources()
        self.choice.value = chosen
        self.show_chosen()
        self.choice.observe(lambda _: self.show_chosen(), "value")
        self.upload.observe(lambda _: self._add_uploaded(), "value")
        self.draw.observe(lambda _: self._show_pad(), "value")
        self.use_drawing.on_click(lambda _: self._add_drawing())
        for name, box in self.boxes.items():
            box.observe(lambda change, name=name: self._prepare(name, change.new), "value")
        self.train.on_click(lambda _: self._train())
        self.download.on_click(lambda _: self._offer_download())
        self.forget.on_click(lambda _: self._ask_to_forget())
        self.keep.on_click(lambda _: self._close_question())
        self.really_forget.on_click(lambda _: self._forget())
        gallery.observe(lambda _: self._offer_sources(), "sources")
        worker.buttons += [self.train, self.forget, self.really_forget]

    def _arranged(self) -> widgets.Widget:
        """The thumbnail, and the controls beside it (below it on a narrow page)."""
        # Colab shows pads in cells of their own, but none inside of a panel
        draw = [] if host() == "Colab" else [self.draw]
        buttons = [self.upload, *draw, self.train, self.download, self.forget]
        files = widgets.VBox([self.link, self.confirmation], layout=INDENTED)
        row = widgets.HBox(buttons, layout=WRAPPED | INDENTED)
        rows = [self.choice, row, files, self.preparation, self.alpha]
        controls = widgets.VBox(rows, layout={"flex": f"1 1 {CONTROLS}px"})
        return widgets.HBox([self.thumbnail, controls], layout=WRAPPED)

    @property
    def source(self) -> Source:
        """The chosen source; an empty one at the moment when it is forgotten."""
        name = self.choice.value
        return self.gallery.sources.get(name) or Source(name)

    def show_chosen(self) -> None:
        """Show the chosen picture, and offer training if there is no B-LoRA of it yet."""
        if self.offering:
            return
        source = self.source
        self.thumbnail.value = NO_PICTURE
        if source.picture:
            picture = centre_square(source.picture, 2 * SIDE)
            alt = f"{self.half} picture: {source.name}"
            self.thumbnail.value = picture_html(picture, SIDE, alt)
        self.preparation.layout.display = "" if source.upload else "none"
        for name, box in self.boxes.items():
            box.value = bool(source.upload and getattr(source.upload, name))
        self.train.layout.display = "none" if source.blora else ""
        self.download.layout.display = "" if source.blora else "none"
        self.forget.layout.display = "" if source.file else "none"
        if self._files_shown_of != source.name:
            self._files_shown_of = source.name
            self.link.value = ""
            self._close_question()
        if not self.worker.busy:
            self.train.disabled = source.blora is not None
            self.train.button_style = "" if self.train.disabled else "primary"

    def remarks(self) -> list[str]:
        """Sentences on the chosen picture, and on the prompt that it would be trained with."""
        source = self.source
        if source.blora is not None:
            lacking = []
            if self.half not in source.blora.halves:
                (other,) = source.blora.halves
                lacking = [f"{source.name} has no {self.half} half; choose it as {other}."]
            return [*source.remarks, *lacking]
        if source.picture is None:
            return list(source.remarks)
        pipe, prompt = self.worker.pipe, self.training_settings.instance_prompt
        square = remarks_on_square(source.picture, self.training_settings.resolution, source.name)
        limits = [TEACHING_MODEL_LEARNS] if is_teaching_model(pipe) else []
        return [*source.remarks, *square, *limits, *remarks_on_prompt(pipe, prompt)]

    def _offer_sources(self) -> None:
        """Offer all sources of the gallery, and keep the chosen one if it is still there."""
        names = tuple(self.gallery.sources)
        chosen = self.choice.value
        if names != self.choice.options:
            # new options choose the first, until the value is put back
            self.offering = chosen in names
            try:
                self.choice.options = names
                self.choice.value = chosen if self.offering else names[0]
            finally:
                self.offering = False
        self.show_chosen()

    def _add_uploaded(self) -> None:
        """Put uploaded pictures and B-LoRAs into the gallery, and choose the last of them.

        A picture with the same name as a B-LoRA, but for the ending, is shown as its picture.
        """
        files = [(Path(name), content) for name, content in take_uploaded(self.upload)]
        stems = {path.stem for path, _ in files if path.suffix.lower() == WEIGHTS}
        # of weights, by their stem, the picture that came with them
        beside: dict[str, tuple[str, bytes]] = {}
        others = []
        for path, content in files:
            if path.suffix.lower() in SUFFIXES and path.stem in stems - beside.keys():
                beside[path.stem] = path.name, content
            else:
                others.append((path, content))
        errors: list[Exception] = []
        for path, content in others:
            try:
                if path.suffix.lower() == WEIGHTS:
                    self._add_weights(path.name, content, beside.get(path.stem))
                else:
                    self._add_picture(path.name, content)
            except Exception as error:
                errors.append(error)
        if len(errors) > 1:
            errors = [ValueError(" ".join(map(str, errors)))]
        # last, so that what was added does not hide it
        for problem in errors:
            self.worker.show(problem)

    def _add_picture(self, name: str, content: bytes) -> None:
        """Put an uploaded picture into the gallery, and choose it."""
        picture, remarks = picture_from_bytes(name, content)
        stem = Path(name).stem or "picture"
        source = Source(stem, picture, remarks=tuple(remarks), upload=Upload(picture))
        self.choice.value = self.gallery.add(source)
        self._say_how_to_learn(name)

    def _add_weights(self, name: str, content: bytes, beside: tuple[str, bytes] | None) -> None:
        """Put an uploaded B-LoRA into the gallery, choose it, and keep it in the folder.

        Args:
            beside: name and content of the picture that came with it.
        """
        blora = blora_from_bytes(name, content, self.worker.pipe)
        picture, square, remarks = thumbnail(blora.metadata), None, list(blora.notes)
        if beside:
            picture, more = picture_from_bytes(*beside)
            square = centre_square(picture, self.training_settings.resolution)
            remarks += more
        added = self.gallery.add(Source(Path(name).stem, picture, blora, tuple(remarks)))
        self.choice.value = added
        path = keep(self.gallery, added, self.folder, square)
        self.worker.say(f"{name} is a B-LoRA; it is kept in {path}.", self.remarks())

    def _say_how_to_learn(self, name: str) -> None:
        """Name the button that trains, and say what is known of the chosen picture."""
        text = f'Press "{self.train.description}" to teach the model {name}.'
        self.worker.say(text, self.remarks())

    def _prepare(self, name: str, wanted: bool) -> None:
        """Make the chosen upload's picture anew, unless the box only followed the choice."""
        upload = self.source.upload
        if upload is None or getattr(upload, name) == wanted:
            return
        try:
            self.gallery.prepare(self.choice.value, **{name: wanted})
        except Exception as error:
            # the box follows the picture, which is as it was
            self.show_chosen()
            self.worker.show(error)
            return
        self._say_how_to_learn(self.choice.value)

    def _offer_download(self) -> None:
        """Show a link to the chosen B-LoRA, or say where its file lies if that is too large."""
        source = self.source
        if source.blora is None:
            return
        try:
            size = size_of(source.blora)
            if size > LARGEST_LINK:
                file = source.file
                if file is None or not file.exists():
                    file = keep(self.gallery, source.name, self.folder)
                self.link.value = small_print(
                    html.escape(
                        f"{file.name} is {size / 1e6:.0f} MB, too large for a download link. Copy "
                        f"it from {file.resolve().parent}"
                    )
                )
                return
            name, content = weights_file(source, source.blora)
        except OSError as error:
            self.worker.show(error)
            return
        address = f"data:application/octet-stream;base64,{b64encode(content).decode()}"
        self.link.value = download_link(name, address)

    def _ask_to_forget(self) -> None:
        """Name the files that would be deleted, and wait for a second click."""
        if self._is_only_choice():
            return
        name = self.choice.value
        files = " and ".join(file.name for file in files_of(self.source))
        question = html.escape(f'Delete "{name}" for good ({files or "its files are gone"})?')
        self.question.value = (
            f'<div style="line-height:1.4;overflow-wrap:anywhere">{question}</div>'
        )
        self.confirmation.layout.display = ""

    def _is_only_choice(self) -> bool:
        """Whether the gallery would be empty without the chosen source; the status says so then."""
        if len(self.gallery.sources) > 1:
            return False
        name = self.choice.value
        self._close_question()
        self.worker.say(f"{name} is the only choice; it stays until there is another.")
        return True

    def _close_question(self) -> None:
        self.confirmation.layout.display = "none"

    def _forget(self) -> None:
        """Delete the chosen source and its files."""
        name = self.choice.value
        # the others may have been forgotten since the question
        if self.confirmation.layout.display == "none" or self._is_only_choice():
            return
        try:
            forget(self.gallery, name)
        except OSError as error:
            self.worker.show(error)
            return
        self.worker.say(f"{name} is forgotten, and its files are deleted.", self.remarks())

    def _show_pad(self) -> None:
        """Show the pad below the other controls, or hide it; it is made when first asked for."""
        if self.pad is None:
            self.pad = DrawingPad()
            self.pad.observe(lambda _: self._offer_drawing(), "drawn")
            self._offer_drawing()
            self.below.children = [self.pad, self.use_drawing]
        self.below.layout.display = "" if self.draw.value else "none"

    def _offer_drawing(self) -> None:
        """Let the button be pressed as soon as something is drawn."""
        self.use_drawing.disabled = self._drawing() is None
        self.use_drawing.button_style = "" if self.use_drawing.disabled else "primary"

    def _drawing(self) -> Image.Image | None:
        """What is on the pad; None if nothing is drawn, or nobody asked for the pad."""
        return self.pad.picture if self.pad else None

    def _add_drawing(self) -> None:
        """Put what is drawn into the gallery, choose it, and hide the pad."""
        picture = self._drawing()
        if picture is None:
            return
        name = self.gallery.add_drawing(picture)
        self.choice.value = name
        self.draw.value = False
        self._say_how_to_learn(name)

    def _train(self) -> None:
        """Train the B-LoRA of the chosen picture, write it, and add it to the gallery."""
        # as at the click: another may be chosen while this one waits for the pipeline
        name, picture = self.source.name, self.source.picture
        remarks = [remark for remark in self.remarks() if remark != TEACHING_MODEL_LEARNS]

        def work() -> None:
            # another panel with the same gallery may have trained or deleted it since the click
            source = self.gallery.sources.get(name)
            if source is None:
                self.worker.say(f"{name} has been forgotten since.", self.remarks())
                return
            if source.blora is not None:
                self.worker.say(f"{name} has been learned already.", self.remarks())
                return
            if picture is None:
                self.worker.say(f"{name} has no picture to learn from; upload or draw one.")
                return
            self.worker.doing = f"Learning {name}"
            blora = self._train_blora(name, picture)
            # before a full disk could lose it
            self.gallery.add_trained(name, blora, picture)
            square = centre_square(picture, self.training_settings.resolution)
            path = keep(self.gallery, name, self.folder, square)
            said = f"{name} is trained, and kept in {path}."
            if is_teaching_model(self.worker.pipe):
                pipe, prompt = self.worker.pipe, self.training_settings.instance_prompt
                said = f"{said} {rebuilt_in_words(pipe, blora, picture, prompt)}"
            self.worker.say(said, remarks)

        self.worker.start("Learning", work)

    def _train_blora(self, name: str, picture: Image.Image) -> BLoRA:
        """The B-LoRA of a picture; the teaching model shows on the way what it draws so far."""
        pipe, progress, settings = self.worker.pipe, self.worker.step, self.training_settings
        if not is_teaching_model(pipe):
            return train(pipe, picture, settings, progress)

        def look(pipe: "StableDiffusionXLPipeline", checkpoint: Path) -> None:
            try:
                (drawn,) = sample(pipe, settings.instance_prompt, progress=False)
            except ValueError:  # NaN: the training itself says so if it goes on like this
                return
            if self.choice.value == name:
                alt = f"what the model has learned of {name} so far"
                self.thumbnail.value = picture_html(drawn, SIDE, alt)

        folder, needed = mkdtemp(), False
        try:
            return train(pipe, picture, settings, progress, folder, on_checkpoint=look)
        except TrainingError:
            # it names the file in there with the last good weights
            needed = True
            raise
        finally:
            if not needed:
                rmtree(folder, ignore_errors=True)
            self.show_chosen()
