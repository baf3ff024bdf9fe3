"""The controls of one half: which source, an own picture or drawing, training, alpha."""

from pathlib import Path

import ipywidgets as widgets
from PIL import Image

from blora_nb.defaults import TEACHING_MODEL_LEARNS, is_teaching_model, native_resolution
from blora_nb.files.images import centre_square, remarks_on_square
from blora_nb.files.paths import free_path, safe_name
from blora_nb.guards.prompts import remarks_on_prompt
from blora_nb.lora import BLoRA
from blora_nb.rebuilding import rebuild
from blora_nb.running.device import host
from blora_nb.settings import TrainingSettings
from blora_nb.training import train
from blora_nb.widgets.gallery import Gallery, Source, Upload
from blora_nb.widgets.markup import AUTO, EMPTY, WRAPPED, picture_html
from blora_nb.widgets.pad import DrawingPad
from blora_nb.widgets.uploads import picture_from_bytes, uploaded_files
from blora_nb.widgets.worker import Worker

# in pixels: a source's picture, the words before a control, the least width of the controls
SIDE, LABEL, CONTROLS = 96, 94, 300


def wide_or_narrow(wide: int, narrow: int, width: int) -> str:
    """A length in CSS: `wide` pixels in a place of at least `width` pixels, otherwise `narrow`."""
    return f"clamp({narrow}px, (100% - {width - 1}px) * 1000, {wide}px)"


# where the inputs begin; on a narrow page the controls stand below the picture
INDENT = wide_or_narrow(SIDE + 12 + LABEL, LABEL, SIDE + 12 + CONTROLS)
INDENTED = {"margin": f"0 0 0 {LABEL + 8}px"}
BOXES_INDENTED = {"margin": f"0 0 0 {wide_or_narrow(LABEL + 8, 0, CONTROLS)}"}

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
        training_settings: None for those that suit the pipeline.
        folder: where freshly trained weights are written.
    """

    def __init__(
        self,
        half: str,
        gallery: Gallery,
        chosen: str,
        alpha: float,
        worker: Worker,
        training_settings: TrainingSettings | None,
        folder: str | Path,
    ) -> None:
        self.half = half
        self.gallery = gallery
        self.worker = worker
        self.training_settings = training_settings
        self.folder = folder
        title = half.capitalize()
        label = {"description_width": f"{LABEL}px"}
        self.choice = widgets.Dropdown(description=title, layout=AUTO, style=label)
        self.alpha = widgets.FloatSlider(
            alpha,
            min=-2,
            max=2,
            step=0.05,
            description=f"{title} alpha",
            continuous_update=False,
            readout_format="+.2f",
            layout=AUTO,
            style=label,
        )
        own = f"Own {half}"
        self.upload = widgets.FileUpload(accept="image/*", description=own, layout=AUTO)
        self.draw = widgets.ToggleButton(description=f"Draw {half}", layout=AUTO)
        self.train = widgets.Button(description=f"Train {half}", layout=AUTO)
        self.boxes = {
            "white_paper": self._box(f"{title}: paper made white"),
            "margin": self._box(f"{title}: add a margin"),
        }
        self.preparation = widgets.VBox(list(self.boxes.values()), layout=BOXES_INDENTED)
        self.pad: DrawingPad | None = None
        self.use_drawing = widgets.Button(description="Use this drawing", layout=AUTO)
        self.below = widgets.VBox(layout={"align_items": "flex-start"})
        self.thumbnail = widgets.HTML(layout={"min_width": f"{SIDE + 8}px"})
        super().__init__([self._arranged(), self.below], layout={"margin": "0 0 10px 0"})

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
        gallery.observe(lambda _: self._offer_sources(), "sources")
        worker.buttons.append(self.train)

    @staticmethod
    def _box(description: str) -> widgets.Checkbox:
        return widgets.Checkbox(False, description=description, indent=False, layout=AUTO)

    def _arranged(self) -> widgets.Widget:
        """The thumbnail, and the controls beside it (below it on a narrow page)."""
        # Colab shows pads in cells of their own, but none inside of a panel
        draw = [] if host() == "Colab" else [self.draw]
        buttons = widgets.HBox([self.upload, *draw, self.train], layout=WRAPPED | INDENTED)
        rows = [self.choice, buttons, self.preparation, self.alpha]
        controls = widgets.VBox(rows, layout={"flex": f"1 1 {CONTROLS}px"})
        return widgets.HBox([self.thumbnail, controls], layout=WRAPPED)

    @property
    def source(self) -> Source:
        """The chosen source."""
        return self.gallery.sources[self.choice.value]

    def show_chosen(self) -> None:
        """Show the chosen picture, and offer training if there is no B-LoRA of it yet."""
        source = self.source
        self.thumbnail.value = NO_PICTURE
        if source.picture:
            picture = centre_square(source.picture, 2 * SIDE)
            alt = f"{self.half} picture: {source.name}"
            self.thumbnail.value = picture_html(picture, SIDE, alt)
        self.preparation.layout.display = "" if source.upload else "none"
        for name, box in self.boxes.items():
            box.value = bool(source.upload and getattr(source.upload, name))
        if not self.worker.busy:
            self.train.disabled = source.blora is not None
            self.train.button_style = "" if self.train.disabled else "primary"

    def remarks(self) -> list[str]:
        """Sentences on the chosen picture, and on the prompt that it would be trained with."""
        source = self.source
        if source.blora is not None or source.picture is None:
            return list(source.remarks)
        pipe, settings = self.worker.pipe, self.training_settings
        side = settings.resolution if settings else native_resolution(pipe)
        prompt = settings.instance_prompt if settings else None
        square = remarks_on_square(source.picture, side, source.name)
        limits = [TEACHING_MODEL_LEARNS] if is_teaching_model(pipe) else []
        return [*source.remarks, *square, *limits, *remarks_on_prompt(pipe, prompt)]

    def _offer_sources(self) -> None:
        """Offer all sources of the gallery, and keep the chosen one."""
        names = tuple(self.gallery.sources)
        chosen = self.choice.value
        if names != self.choice.options:
            self.choice.options = names
            self.choice.value = chosen or names[0]
        self.show_chosen()

    def _add_uploaded(self) -> None:
        """Put an uploaded picture into the gallery, and choose it."""
        for name, content in uploaded_files(self.upload):
            try:
                picture, remarks = picture_from_bytes(name, content)
            except Exception as error:
                self.worker.show(error)
            else:
                source = Source(
                    Path(name).stem or "picture",
                    picture,
                    remarks=tuple(remarks),
                    upload=Upload(picture),
                )
                self.choice.value = self.gallery.add(source)
                self._say_how_to_learn(name)

    def _say_how_to_learn(self, name: str) -> None:
        """Name the button that trains, and say what is known of the chosen picture."""
        text = f'Press "{self.train.description}" to learn {name}.'
        self.worker.say(text, self.remarks())

    def _prepare(self, name: str, wanted: bool) -> None:
        """Make the chosen upload's picture anew, unless the box only followed the choice."""
        upload = self.source.upload
        if upload is None or getattr(upload, name) == wanted:
            return
        self.gallery.prepare(self.choice.value, **{name: wanted})
        self._say_how_to_learn(self.choice.value)

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
        source = self.source
        remarks = [remark for remark in self.remarks() if remark != TEACHING_MODEL_LEARNS]
        pipe, settings = self.worker.pipe, self.training_settings
        picture = source.picture
        if picture is None:
            return

        def work() -> None:
            blora = train(pipe, picture, settings, progress=self.worker.step)
            # before a full disk could lose it
            self.gallery.add_trained(source.name, blora, picture)
            path = blora.save(free_path(self.folder, safe_name(source.name), ".safetensors"))
            said = f"{source.name} is trained, and kept in {path}."
            if is_teaching_model(pipe):
                said = f"{said} {self._rebuilt(blora, picture)}"
            self.worker.say(said, remarks)

        self.worker.start(f"Learning {source.name}", work)

    def _rebuilt(self, blora: BLoRA, picture: Image.Image) -> str:
        """A sentence on how near a trained B-LoRA comes to its picture."""
        settings = self.training_settings
        prompt = settings.instance_prompt if settings else "A [v]"
        try:
            return f"It is {rebuild(self.worker.pipe, blora, picture, prompt)}"
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            return f"It was not drawn again, to compare: {error}"
