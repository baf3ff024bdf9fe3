"""Which checkpoint to take: the pictures of each, always with the same seeds, behind a slider."""

import html

import ipywidgets as widgets

from blora_nb.figures import checkpoint_grid
from blora_nb.files.images import read_image
from blora_nb.lora import BLoRA
from blora_nb.validation import validated
from blora_nb.widgets.gallery import picture_html, reduced

SIDE = 180  # pixels of a picture


class CheckpointPicker(widgets.VBox):
    """A slider over the checkpoints of a training, with the pictures that were made at each.

        validate = validation_pictures(pipe, "A [v]", 4)
        train(pipe, "cat.png", output_dir="outputs/cat", on_checkpoint=validate)
        picker = CheckpointPicker("outputs/cat")
        picker.blora

    Early checkpoints follow other words of a prompt more freely, late ones keep more of the picture.

    Args:
        folder: the `output_dir` of a training.

    Attributes:
        checkpoint: the folder of the one chosen. blora: its `BLoRA`.

    Raises:
        FileNotFoundError: no checkpoint with pictures in the folder.
    """

    def __init__(self, folder):
        self.folder, self.pictures = folder, validated(folder)
        steps = {f"step {path.name.partition('-')[2]}": path for path in self.pictures}
        self.slider = widgets.SelectionSlider(
            options=list(steps.items()),
            value=list(steps.values())[-1],
            description="Checkpoint",
            layout=widgets.Layout(width="420px"),
            style={"description_width": "90px"},
        )
        self.shown, self.words = widgets.HTML(), widgets.HTML()
        self.slider.observe(lambda _: self._show(), "value")
        super().__init__(
            [self.slider, self.shown, self.words], layout=widgets.Layout(padding="8px")
        )
        self._show()

    _ipython_display_ = None  # ipywidgets 7 has one, which would go before the bundle below

    @property
    def checkpoint(self):
        return self.slider.value

    @property
    def blora(self):
        return BLoRA.load(self.checkpoint)

    def _show(self):
        cards = "".join(
            f'<div style="flex:0 1 {SIDE}px">{picture_html(reduced(read_image(file), SIDE), SIDE, f"{self.checkpoint.name}, picture {number}")}</div>'
            for number, file in enumerate(self.pictures[self.checkpoint])
        )
        self.shown.value = (
            f'<div style="display:flex;flex-wrap:wrap;gap:10px;margin:6px 0">{cards}</div>'
        )
        self.words.value = f'<div style="font-size:12px;opacity:.75;overflow-wrap:anywhere">Use it: <code>BLoRA.load("{html.escape(str(self.checkpoint))}")</code></div>'

    def _repr_mimebundle_(self, **kwargs):
        return checkpoint_grid(self.folder).instead_of(self)
