"""What all panels have: the choosers, prompt, seed and steps, the buttons, and a large picture."""

import html
import os
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Real
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
from PIL import Image
from torch import Tensor

from blora_nb.defaults import defaults_for
from blora_nb.errors import ImageError, several
from blora_nb.figures.grids import picture_grid
from blora_nb.figures.notebook_figure import NotebookFigure, widget_data
from blora_nb.files.images import centre_square
from blora_nb.files.saved_images import save_picture
from blora_nb.generation import generate
from blora_nb.guards.prompts import remarks_on_prompt
from blora_nb.lora import BLoRA
from blora_nb.settings import TrainingSettings
from blora_nb.widgets.chooser import ALPHAS, BUTTONS_INDENT, INDENT, SHORT_NUMBER, HalfChooser
from blora_nb.widgets.gallery import Gallery, Source
from blora_nb.widgets.markup import (
    AUTO,
    EMPTY,
    WRAPPED,
    download_link,
    picture_html,
    png_address,
    small_print,
)
from blora_nb.widgets.preview import LatentPreview, predicted_latents
from blora_nb.widgets.worker import Worker

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

# in pixels: the picture on the page, five for each of the teaching model's, and the controls
SIDE, CONTROLS = 480, 476
# an input for a number, below the others
NUMBER = {
    "layout": {"width": f"calc({INDENT} + 110px)"},
    "style": {"description_width": "calc(100% - 110px)"},
}
SEEDS = 0, 2**31 - 1  # the lowest and the highest
STEPS = 1, 1000
REMEMBERED = 100  # pictures a panel keeps
PREVIEW = 1.0  # seconds of waiting after which a panel shows what is there so far
PROMPTS = {
    ("content", "style"): "A [c] in [s] style",
    ("content",): "A [c] in gold style",
    ("style",): "A rocket in [s] style",
    (): "A star in gold style",
}
PRESS_GENERATE = (
    '<div style="box-sizing:border-box;width:100%;aspect-ratio:1;border-radius:6px;display:flex;'
    f'align-items:center;justify-content:center;{EMPTY}">Press Generate</div>'
)
NO_KERNEL = "Controls for B-LoRA; they work while a kernel runs this notebook"


def check_range(name: str, value: float, lowest: float, highest: float) -> None:
    """Raise a ValueError where a control would bring a number into its range without a word."""
    if not (isinstance(value, Real) and lowest <= value <= highest):
        raise ValueError(f"{name} must be a number from {lowest} to {highest}, not {value!r}.")


@dataclass(frozen=True)
class Drawing:
    """All that decides a picture. Sources are named; what is trained under a name never changes."""

    prompt: str
    content_B_LoRA: str | None
    style_B_LoRA: str | None
    content_alpha: float
    style_alpha: float
    seed: int
    num_inference_steps: int

    @property
    def caption(self) -> str:
        parts = [f'"{self.prompt}"']
        if self.content_B_LoRA:
            parts.append(f"content: {self.content_B_LoRA}, alpha {self.content_alpha:+.2f}")
        if self.style_B_LoRA:
            parts.append(f"style: {self.style_B_LoRA}, alpha {self.style_alpha:+.2f}")
        return "; ".join([*parts, f"seed {self.seed}, {self.num_inference_steps} steps"])


class Panel(widgets.VBox):
    """What all panels have: the choosers, prompt, seed and steps, the buttons, and a large picture.

    Args:
        pipe: from `load_pipeline`.
        content, style: where each half comes from: a picture (file or PIL image, to be trained in
            the panel), a B-LoRA (object, file, folder or hub id), a mixture (a list of (B-LoRA,
            weight)), a `Source` with both, a name in the gallery, or None to leave the half out.
        prompt, seed, content_alpha, style_alpha, num_inference_steps: what the controls show first;
            by default what suits.
        gallery: a `Gallery` to choose from, possibly shared with other panels.
        training_settings: for the Train buttons; by default those that suit the pipeline.
        folder: where Save, Train and uploads of B-LoRAs write; made if needed, and nothing in it
            is overwritten.
        background: see `Worker`.

    Attributes:
        picture: the PIL image shown, or None. drawn: its `Drawing`. errors: every exception so far.

    Raises:
        ValueError: a number is out of the range of its control.
        ImageError, BLoRAError: `content` or `style` cannot be read, or is no name in the gallery.
    """

    def __init__(
        self,
        pipe: "StableDiffusionXLPipeline",
        content: Any = None,
        style: Any = None,
        prompt: str | None = None,
        seed: int = 0,
        content_alpha: float = 1.0,
        style_alpha: float = 1.0,
        num_inference_steps: int | None = None,
        gallery: Gallery | None = None,
        training_settings: TrainingSettings | None = None,
        folder: str | Path = "outputs",
        background: bool | None = None,
    ) -> None:
        suited = defaults_for(pipe).num_inference_steps
        steps = suited if num_inference_steps is None else num_inference_steps
        check_range("seed", seed, *SEEDS)
        check_range("num_inference_steps", steps, *STEPS)
        check_range("content_alpha", content_alpha, *ALPHAS)
        check_range("style_alpha", style_alpha, *ALPHAS)
        self.pipe = pipe
        self.folder = folder
        self.training_settings = training_settings or TrainingSettings.for_pipeline(pipe)
        self.gallery = Gallery() if gallery is None else gallery
        self.worker = Worker(pipe, background, when_done=self._end_work)
        self.memory: dict[Drawing, Image.Image] = {}
        self.picture: Image.Image | None = None
        self.drawn: Drawing | None = None
        self._preview_shown = False
        self._decoder: LatentPreview | None = None

        self.choosers: dict[str, HalfChooser] = {}
        if content is not None:
            self.choosers["content"] = self._chooser("content", content, content_alpha)
        if style is not None:
            self.choosers["style"] = self._chooser("style", style, style_alpha)
        if prompt is None:
            prompt = PROMPTS[tuple(self.choosers)]
        self._make_controls(prompt, seed, steps)
        super().__init__(self._arranged(), layout={"padding": "8px"})
        self.add_class("blora-panel")
        self._observe_controls()
        self.worker.say("Ready.", self._remarks())
        notes = "".join(f"<div>Note: {html.escape(text)}</div>" for text in self.gallery.remarks)
        self.left_out.value = small_print(notes) if notes else ""
        self._show(None, None)

    _ipython_display_ = None  # ipywidgets 7 has one, which would go before the bundle below

    def _chooser(self, half: str, thing: Any, alpha: float) -> HalfChooser:
        name = thing
        if not isinstance(thing, str) or thing not in self.gallery.sources:
            name = self.gallery.add(self._source(half, thing))
        return HalfChooser(
            half, self.gallery, name, alpha, self.worker, self.training_settings, self.folder
        )

    def _source(self, half: str, thing: Any) -> Source:
        """`Source.of`; where a text names no file, the error offers the names in the gallery."""
        try:
            return Source.of(thing, half)
        except ImageError as error:
            names = list(self.gallery.sources)
            if not isinstance(thing, str) or not names or os.path.exists(thing):
                raise
            near = get_close_matches(thing, names, cutoff=0.5)
            raise ImageError(f"{error} The gallery has {several(near or names)}.") from None

    def _make_controls(self, prompt: str, seed: int, steps: int) -> None:
        indented = {"description_width": INDENT}
        self.worker.progress.style.description_width = INDENT
        self.prompt = widgets.Text(
            prompt, description="Prompt", continuous_update=False, layout=AUTO, style=indented
        )
        self.seed = widgets.BoundedIntText(
            seed, min=SEEDS[0], max=SEEDS[1], description="Seed", **NUMBER
        )
        self.steps = widgets.BoundedIntText(
            steps,
            min=STEPS[0],
            max=STEPS[1],
            description="Steps",
            layout={"width": SHORT_NUMBER},
            style={"description_width": "calc(100% - 80px)"},
        )
        self.generate = widgets.Button(
            description="Generate", icon="paint-brush", button_style="primary", layout=AUTO
        )
        self.save = widgets.Button(description="Save", icon="download", disabled=True, layout=AUTO)
        self.large = widgets.HTML()
        self.caption = widgets.HTML()
        self.saved = widgets.HTML()
        self.left_out = widgets.HTML()

    def _arranged(self) -> list[widgets.Widget]:
        """The rows: controls beside the picture (above it on a narrow page), and what is below."""
        numbers = widgets.HBox([self.seed, self.steps, *self.more_controls()], layout=WRAPPED)
        buttons = widgets.HBox(
            [self.generate, self.worker.cancel, self.save],
            layout=WRAPPED | {"margin": f"6px 0 6px {BUTTONS_INDENT}"},
        )
        rows = [*self.choosers.values(), self.prompt, numbers, buttons, self.worker]
        controls = widgets.VBox(
            [*rows, self.saved, self.left_out],
            layout={"flex": f"0 1 {CONTROLS}px", "max_width": "100%", "margin": "0 24px 0 0"},
        )
        large = widgets.VBox(
            [self.large, self.caption], layout={"flex": "1 1 260px", "max_width": f"{SIDE}px"}
        )
        top = widgets.HBox([controls, large], layout=WRAPPED | {"align_items": "flex-start"})
        return [top, *self.below()]

    def _observe_controls(self) -> None:
        self.worker.buttons.append(self.generate)
        self.generate.on_click(lambda _: self.draw_wanted())
        self.save.on_click(lambda _: self._save())
        controls = [self.prompt, self.seed, self.steps]
        for chooser in self.choosers.values():
            controls += [chooser.choice, chooser.alpha]
        for control in controls:
            control.observe(lambda _: self._control_moved(), "value")

    def _control_moved(self) -> None:
        """Answer, unless a chooser offers new sources and will stand again where it stood."""
        if not any(chooser.offering for chooser in self.choosers.values()):
            self._answer_change()

    def more_controls(self) -> list[widgets.Widget]:
        """Further controls beside seed and steps."""
        return []

    def below(self) -> list[widgets.Widget]:
        """Widgets under the controls and the picture."""
        return []

    def draw_wanted(self) -> None:
        """Draw what the controls ask for; called by the Generate button."""
        raise NotImplementedError

    @property
    def errors(self) -> list[Exception]:
        return self.worker.errors

    @property
    def wanted(self) -> Drawing:
        """The `Drawing` that the controls ask for."""
        names = {half: chooser.choice.value for half, chooser in self.choosers.items()}
        alphas = {half: round(chooser.alpha.value, 4) for half, chooser in self.choosers.items()}
        return Drawing(
            self.prompt.value,
            names.get("content"),
            names.get("style"),
            alphas.get("content", 0.0),
            alphas.get("style", 0.0),
            self.seed.value,
            self.steps.value,
        )

    def draw(self, wanted: Drawing, progress: Callable[[int, int], None]) -> Image.Image:
        """The picture of a `Drawing`, from memory or drawn now.

        Raises:
            ValueError: a chosen picture has no B-LoRA yet, or was forgotten meanwhile.
        """
        if wanted not in self.memory:
            content = self._blora("content", wanted.content_B_LoRA)
            style = self._blora("style", wanted.style_B_LoRA)
            self._last_preview = monotonic()
            self._latents_before: Tensor | None = None
            pictures = generate(
                self.pipe,
                wanted.prompt,
                content,
                style,
                wanted.content_alpha,
                wanted.style_alpha,
                seeds=wanted.seed,
                num_inference_steps=wanted.num_inference_steps,
                progress=progress,
                preview=self._preview,
            )
            self.memory[wanted] = pictures[0]
            if len(self.memory) > REMEMBERED:
                del self.memory[next(iter(self.memory))]
        return self.memory[wanted]

    def _blora(self, half: str, name: str | None) -> BLoRA | None:
        if name is None:
            return None
        if name not in self.gallery.sources:
            raise ValueError(f'"{name}" has been forgotten since. Choose another {half}.')
        blora = self.gallery.sources[name].blora
        if blora is None:
            raise ValueError(
                f'The {half} picture "{name}" has not been learned yet. Press "Train {half}" first.'
            )
        return blora

    def _preview(self, _: int, step: int, latents: Tensor) -> None:
        """Show now and then what a slow picture looks like so far."""
        if monotonic() - self._last_preview > PREVIEW:
            self._decoder = self._decoder or LatentPreview(self.pipe)
            clean = predicted_latents(self.pipe.scheduler, self._latents_before, latents, step)
            picture = self._decoder(clean)[0]
            self.large.value = picture_html(picture, SIDE, f"so far, after step {step + 1}")
            self.caption.value = ""
            self._preview_shown = True
            self._last_preview = monotonic()
        self._latents_before = latents

    def _show(self, picture: Image.Image | None, drawn: Drawing | None) -> None:
        """Put a picture (or none) in the large place, and say what it is."""
        self.picture, self.drawn = picture, drawn
        self._preview_shown = False
        self.save.disabled = picture is None
        self.saved.value = ""
        caption = drawn.caption if drawn else ""
        self.large.value = picture_html(picture, SIDE, caption) if picture else PRESS_GENERATE
        self.caption.value = small_print(html.escape(caption))

    def _answer_change(self) -> None:
        """Say, after a control was moved, that the picture is not of these settings."""
        if not self.worker.busy:
            self.worker.say("New settings: press Generate.", self._remarks())

    def _remarks(self) -> list[str]:
        """Sentences on what is chosen and typed: pictures not learned yet, and the prompt."""
        pictures = [remark for chooser in self.choosers.values() for remark in chooser.remarks()]
        return [*dict.fromkeys(pictures), *self.remarks_on(self.prompt.value)]

    def remarks_on(self, prompt: str) -> list[str]:
        """Sentences on the words of a prompt, or that there are none."""
        if prompt.strip():
            return remarks_on_prompt(self.pipe, prompt)
        return [
            "The prompt is empty, so nothing says what to draw. Type one, for instance "
            f'"{PROMPTS[tuple(self.choosers)]}".'
        ]

    def _end_work(self) -> None:
        """Set the buttons; after a cancelled drawing, go back to the picture that was there."""
        if self._preview_shown:
            self._show(self.picture, self.drawn)
        for chooser in self.choosers.values():
            chooser.show_chosen()

    def _save(self) -> None:
        if self.picture is None:
            return
        try:
            path = save_picture(self.picture, self.folder)
        except Exception as error:
            self.worker.show(error)
            return
        self.worker.say(f"Saved as {path}, with its settings inside.")
        self.saved.value = download_link(path.name, png_address(path.read_bytes()))

    def still(self) -> NotebookFigure | None:
        """A figure of what went in and what came out, for places where widgets do not show."""
        # the controls may have been moved since it was drawn
        shown = self.drawn or self.wanted
        names = {"content": shown.content_B_LoRA, "style": shown.style_B_LoRA}
        sources = {half: self.gallery.sources.get(name) for half, name in names.items()}
        pictures = {
            half: centre_square(source.picture, SIDE)
            for half, source in sources.items()
            if source and source.picture
        }
        if self.picture:
            pictures["result"] = self.picture
        if not pictures:
            return None
        caption = self.drawn.caption if self.drawn else NO_KERNEL
        return picture_grid([list(pictures.values())], None, list(pictures), caption, side=2.2)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        still = self.still()
        return still.instead_of(self) if still else widget_data(self, "Controls for B-LoRA")
