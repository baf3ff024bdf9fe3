"""Which checkpoint to take: the pictures of each, always with the same seeds, behind a slider."""

import html
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from blora_nb.evaluation.checkpoint_scores import CheckpointScores, recommended, score_checkpoints
from blora_nb.evaluation.metrics import Scorer
from blora_nb.evaluation.validation import SHOWN_AS, pictures_by_half
from blora_nb.figures.checkpoints import checkpoint_curve, checkpoint_grid
from blora_nb.figures.notebook_figure import NotebookFigure
from blora_nb.files.images import ImageSource, read_image
from blora_nb.files.saved_images import read_settings
from blora_nb.lora import BLoRA
from blora_nb.running.checkpoints import step_of
from blora_nb.widgets.markup import picture_html, png_address, reduced, small_print

SIDE = 180  # pixels of a picture
CURVE = 640  # pixels of the curve's width, with legend and caption


class CheckpointPicker(widgets.VBox):
    """A slider over the checkpoints of a training, with the pictures that were made at each.

        validate = validation_pictures(pipe, "A [v]", 4)
        train(pipe, "cat.png", output_dir="outputs/cat", on_checkpoint=validate)
        picker = CheckpointPicker("outputs/cat", picture="cat.png", scorer=scorer_for(pipe))
        picker.blora

    Early checkpoints follow other words of a prompt more freely; late ones keep more of the
    picture. With a picture and a scorer, a curve under the slider shows content kept and style
    moved over the steps (`checkpoint_scores.score_checkpoints` says what they mean), and the
    earliest checkpoint that is nearly as good as the best is recommended
    (`checkpoint_scores.recommended`).

    Args:
        folder: the `output_dir` of a training.
        picture: that the B-LoRA was trained on, a path or a PIL image.
        scorer: compares with it, by `content_kept(images, picture)` and `style_moved(images,
            picture)`; as a rule `scorer_for(pipe)`.
        progress: a progress bar over the checkpoints that are scored.

    Attributes:
        checkpoint: the folder of the one chosen. blora: its `BLoRA`.
        scores: a `CheckpointScores` for each checkpoint; empty without any.
        recommended: the folder of the recommended checkpoint, which is chosen first; None without
            scores, when the last is.

    Raises:
        FileNotFoundError: no checkpoint with pictures in the folder.
        ValueError: a picture without a scorer, or a scorer without a picture.
    """

    def __init__(
        self,
        folder: str | Path,
        picture: ImageSource | None = None,
        scorer: Scorer | None = None,
        progress: bool = True,
    ) -> None:
        if (picture is None) != (scorer is None):
            raise ValueError(
                "Pictures are scored by a scorer against the training picture: give both, "
                "picture=… and scorer=scorer_for(pipe), or neither."
            )
        self.folder = folder
        self.pictures = pictures_by_half(folder)
        self.scores: list[CheckpointScores] = []
        if picture is not None and scorer is not None:
            self.scores = score_checkpoints(folder, picture, scorer, progress)
        self.recommended = recommended(self.scores).checkpoint if self.scores else None
        steps = [(f"step {step_of(path)}", path) for path in self.pictures]
        self.slider = widgets.SelectionSlider(
            options=steps,
            value=self.recommended or steps[-1][1],
            description="Checkpoint",
            layout={"width": "420px", "max_width": "100%"},
            style={"description_width": "90px"},
        )
        self.shown = widgets.HTML()
        self.curve_shown = widgets.HTML()
        self.usage = widgets.HTML()
        # checkpoint to the page's image of the curve: moving the slider back is quick
        self.curves: dict[Path, str] = {}
        self.slider.observe(lambda _: self._show_chosen(), "value")
        children = [self.slider, self.curve_shown, self.shown, self.usage]
        super().__init__(children, layout={"padding": "8px"})
        self._show_chosen()

    _ipython_display_ = None  # ipywidgets 7 has one, which would go before the bundle below

    @property
    def checkpoint(self) -> Path:
        return self.slider.value

    @property
    def blora(self) -> BLoRA:
        return BLoRA.load(self.checkpoint)

    def curve(self) -> NotebookFigure:
        """The scores over the steps as a figure, with the chosen checkpoint marked.

        Raises:
            ValueError: there are no scores.
        """
        if not self.scores:
            raise ValueError(
                "The pictures have no scores. Give the picker picture=… (the training picture) and "
                "scorer=scorer_for(pipe)."
            )
        return checkpoint_curve(self.scores, self.checkpoint)

    def _show_curve(self) -> None:
        if not self.scores:
            return
        if self.checkpoint not in self.curves:
            figure = self.curve()
            alt = html.escape(figure.caption)
            source = png_address(figure.png())
            style = f"width:100%;max-width:{CURVE}px;display:block"
            self.curves[self.checkpoint] = f'<img alt="{alt}" src="{source}" style="{style}">'
        self.curve_shown.value = self.curves[self.checkpoint]

    def _show_chosen(self) -> None:
        """Show the pictures of the chosen checkpoint, mark it on the curve, say how it is used."""
        self._show_curve()
        drawn = self.pictures[self.checkpoint]
        self.shown.value = "".join(self._row(half, files) for half, files in drawn.items())
        # with slashes on Windows, too, where "C:\\Users" would be no string of Python
        load = html.escape(f'BLoRA.load("{self.checkpoint.as_posix()}")', quote=False)
        self.usage.value = small_print(f"Use it: <code>{load}</code>")

    def _row(self, half: str, files: list[Path]) -> str:
        """The pictures that one half, or both, made at the chosen checkpoint, with their prompt."""
        cards = []
        for number, file in enumerate(files):
            alt = f"{self.checkpoint.name}, {SHOWN_AS[half]}, picture {number}"
            picture = picture_html(reduced(read_image(file), SIDE), SIDE, alt)
            cards.append(f'<div style="flex:0 1 {SIDE}px">{picture}</div>')
        title = small_print(html.escape(f'{SHOWN_AS[half]}: "{read_settings(files[0])["prompt"]}"'))
        row = "display:flex;flex-wrap:wrap;gap:10px;margin:6px 0"
        return f'{title}<div style="{row}">{"".join(cards)}</div>'

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict]:
        return checkpoint_grid(self.folder).instead_of(self)
