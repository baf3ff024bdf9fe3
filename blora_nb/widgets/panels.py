"""The live controls: choose a content and a style, turn the alphas, draw, compare seeds, save."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
from PIL import Image

from blora_nb.evaluation.metrics import ranked, scored, scorer_for
from blora_nb.figures.grids import seed_ranking
from blora_nb.figures.notebook_figure import NotebookFigure
from blora_nb.widgets.markup import WRAPPED, picture_html, reduced
from blora_nb.widgets.panel import NUMBER, Drawing, Panel, check_range

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

COUNTS = 1, 64  # of seeds, the fewest and the most
CARD = 120  # pixels of a picture among the seeds


class AlphaPanel(Panel):
    """Style transfer, text stylization (without `style`) or consistent style (without `content`).

        AlphaPanel(pipe, content="cat.png", style=BLoRA.load("outputs/neon"))

    The alphas are live: settings that were drawn before show at once, others wait for Generate. The
    first picture is drawn when the panel is shown. See `Panel` for the arguments.
    """

    def draw_wanted(self, background: bool | None = None) -> None:
        def work() -> None:
            wanted = self.wanted
            self._show(self.draw(wanted, self.worker.step), wanted)
            done = "Done."
            if self.wanted != wanted:
                done = "Done; the controls have changed since: press Generate to draw again."
            self.worker.say(done, self.remarks_on(wanted.prompt))

        self.worker.start("Drawing", work, background)

    def _answer_change(self) -> None:
        """Go back to a picture that was drawn before, or say that these settings are new."""
        wanted = self.wanted
        if wanted not in self.memory:
            super()._answer_change()
            return
        self._show(self.memory[wanted], wanted)
        if not self.worker.busy:
            self.worker.say("Drawn before.", self._remarks())

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        if self.picture is None and all(chooser.source.blora for chooser in self.choosers.values()):
            # in the running cell: the next one may need the pipeline
            self.draw_wanted(background=False)
        return super()._repr_mimebundle_(**kwargs)


class SeedPanel(Panel):
    """Several seeds of the same settings, ranked by how much content was kept and style moved.

    Not every seed is good; choosing among eight beats training again.

    Args:
        scorer: compares with the picture of each half, by `content_kept(images, picture)` and
            `style_moved(images, picture)`, a number for each image; by default
            `metrics.scorer_for(pipe)`. So every half that is used needs a picture: give
            `Source(name, picture, blora)` where you have a B-LoRA.
        count: how many seeds, counted from the one in the box.

    See `Panel` for the other arguments.

    Attributes:
        order: the seeds, best first.
        scores: seed to {"content_kept": …, "style_moved": …}.
        picked, picture: the seed that was picked, and its picture.

    Raises:
        ValueError: neither a content nor a style, or `count` is not from 1 to 64.
    """

    def __init__(
        self,
        pipe: "StableDiffusionXLPipeline",
        *args: Any,
        scorer: Any = None,
        count: int = 8,
        **kwargs: Any,
    ) -> None:
        self.scorer = scorer
        self.order: list[int] = []
        self.scores: dict[int, dict[str, float]] = {}
        self.images: dict[int, Image.Image] = {}
        check_range("count", count, *COUNTS)
        self.count = widgets.BoundedIntText(
            count, min=COUNTS[0], max=COUNTS[1], description="How many", **NUMBER
        )
        self.cards = widgets.HBox(layout=WRAPPED | {"margin": "14px 0 0 0"})
        super().__init__(pipe, *args, **kwargs)
        if not self.choosers:
            raise ValueError(
                "Seeds are ranked by how much they keep of a picture; give the panel a content, a "
                "style, or both."
            )
        self.seed.description = "First seed"

    def more_controls(self) -> list[widgets.Widget]:
        return [self.count]

    def below(self) -> list[widgets.Widget]:
        return [self.cards]

    def draw_wanted(self) -> None:
        def work() -> None:
            first, count = self.wanted, self.count.value
            # before the drawing: a picture may be missing, the scorer may have to be downloaded
            compared = self._compared(first)
            self.scorer = self.scorer or scorer_for(self.pipe)
            steps = first.num_inference_steps
            images: dict[int, Image.Image] = {}

            def progress(done: int, _: int) -> None:
                self.worker.step(len(images) * steps + done, count * steps)

            for seed in range(first.seed, first.seed + count):
                images[seed] = self.draw(replace(first, seed=seed), progress)
            self._rank(images, first, compared)
            text = (
                f"Seed {self.order[0]} is the best of {len(images)}; the picture you pick is shown "
                "large."
            )
            self.worker.say(text, self.remarks_on(first.prompt))

        self.worker.start("Drawing", work)

    def _rank(
        self, images: dict[int, Image.Image], drawing: Drawing, compared: dict[str, Image.Image]
    ) -> None:
        """Score the pictures, put them in order, and show the best."""
        seeds, drawn = list(images), list(images.values())
        scores = {
            name: scored(self.scorer, name, drawn, picture) for name, picture in compared.items()
        }
        self.images, self.ranking = images, drawing
        self.scores = {
            seed: {name: values[i] for name, values in scores.items()}
            for i, seed in enumerate(seeds)
        }
        self.order = [seeds[i] for i in ranked(*scores.values())]
        self.cards.children = [self._card(place, seed) for place, seed in enumerate(self.order, 1)]
        self.pick(self.order[0])

    def _compared(self, drawing: Drawing) -> dict[str, Image.Image]:
        """The name of each score to the picture it compares with, for the halves that are used."""
        names = {"content_kept": drawing.content_B_LoRA, "style_moved": drawing.style_B_LoRA}
        return {score: self._picture_of(name) for score, name in names.items() if name}

    def _picture_of(self, name: str) -> Image.Image:
        source = self.gallery.sources.get(name)
        picture = source.picture if source else None
        if picture is None:
            raise ValueError(
                f'"{name}" has no picture to compare with. Give the panel '
                f'Source("{name}", picture, blora).'
            )
        return picture

    def _card(self, place: int, seed: int) -> widgets.Widget:
        """One ranked picture with its scores and the button that picks it."""
        lines = [
            f"<div>{_title(name)} {score:.2f}</div>" for name, score in self.scores[seed].items()
        ]
        picture = reduced(self.images[seed], CARD)
        looks = widgets.HTML(
            picture_html(picture, CARD, f"place {place}: seed {seed}")
            + f'<div style="font-size:12px;line-height:1.35;margin-top:3px">{"".join(lines)}</div>'
        )
        button = widgets.Button(
            description=f"{place}. seed {seed}",
            tooltip=f"show the picture of seed {seed} large",
            layout={"width": f"{CARD}px", "margin": "0"},
        )
        button.on_click(lambda _: self.pick(seed))
        layout = {"width": f"{CARD}px", "margin": "0 14px 14px 0"}
        return widgets.VBox([looks, button], layout=layout)

    def pick(self, seed: int) -> None:
        """Show the picture of a seed large, and mark its card."""
        self._show(self.images[seed], replace(self.ranking, seed=seed))
        for card, other in zip(self.cards.children, self.order):
            button = card.children[1]
            button.button_style = "success" if other == seed else ""
            button.icon = "check" if other == seed else ""

    @property
    def picked(self) -> int | None:
        """The seed of the large picture, or None."""
        return self.drawn.seed if self.drawn else None

    def still(self) -> NotebookFigure | None:
        if not self.images or self.drawn is None:
            return super().still()
        images = [self.images[seed] for seed in self.order]
        scores = {
            _title(name): [self.scores[seed][name] for seed in self.order]
            for name in self.scores[self.order[0]]
        }
        seeds = f"picked from seeds {min(self.order)} to {max(self.order)}"
        return seed_ranking(self.order, images, scores, f"{self.drawn.caption}; {seeds}")


def _title(score: str) -> str:
    return score.replace("_", " ")
