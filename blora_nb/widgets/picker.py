"""Which checkpoint to take: the pictures of each, always with the same seeds, behind a slider."""

import html
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from blora_nb.figures import checkpoint_grid
from blora_nb.files.images import read_image
from blora_nb.lora import BLoRA
from blora_nb.validation import validated
from blora_nb.widgets.markup import picture_html, reduced, small_print

SIDE = 180  # pixels of a picture


class CheckpointPicker(widgets.VBox):
    """A slider over the checkpoints of a training, with the pictures that were made at each.

        validate = validation_pictures(pipe, "A [v]", 4)
        train(pipe, "cat.png", output_dir="outputs/cat", on_checkpoint=validate)
        picker = CheckpointPicker("outputs/cat")
        picker.blora

    Early checkpoints follow other words of a prompt more freely; late ones keep more of the
    picture.

    Args:
        folder: the `output_dir` of a training.

    Attributes:
        checkpoint: the folder of the one chosen. blora: its `BLoRA`.

    Raises:
        FileNotFoundError: no checkpoint with pictures in the folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = folder
        self.pictures = validated(folder)
        steps = [(f"step {path.name.partition('-')[2]}", path) for path in self.pictures]
        self.slider = widgets.SelectionSlider(
            options=steps,
            value=steps[-1][1],
            description="Checkpoint",
            layout={"width": "420px"},
            style={"description_width": "90px"},
        )
        self.shown = widgets.HTML()
        self.usage = widgets.HTML()
        self.slider.observe(lambda _: self._show_chosen(), "value")
        super().__init__([self.slider, self.shown, self.usage], layout={"padding": "8px"})
        self._show_chosen()

    _ipython_display_ = None  # ipywidgets 7 has one, which would go before the bundle below

    @property
    def checkpoint(self) -> Path:
        return self.slider.value

    @property
    def blora(self) -> BLoRA:
        return BLoRA.load(self.checkpoint)

    def _show_chosen(self) -> None:
        """Show the pictures of the chosen checkpoint, and how it is used."""
        cards = []
        for number, file in enumerate(self.pictures[self.checkpoint]):
            alt = f"{self.checkpoint.name}, picture {number}"
            picture = picture_html(reduced(read_image(file), SIDE), SIDE, alt)
            cards.append(f'<div style="flex:0 1 {SIDE}px">{picture}</div>')
        row = "display:flex;flex-wrap:wrap;gap:10px;margin:6px 0"
        self.shown.value = f'<div style="{row}">{"".join(cards)}</div>'
        load = html.escape(f'BLoRA.load("{self.checkpoint}")', quote=False)
        self.usage.value = small_print(f"Use it: <code>{load}</code>")

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict]:
        return checkpoint_grid(self.folder).instead_of(self)
