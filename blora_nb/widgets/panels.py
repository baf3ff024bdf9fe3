"""The live controls: choose a content and a style, turn the alphas, draw, compare seeds, save."""

import html
from base64 import b64encode
from dataclasses import dataclass, replace
from time import monotonic

import ipywidgets as widgets

from blora_nb.defaults import defaults_for
from blora_nb.figures import picture_grid, seed_ranking, widget_data
from blora_nb.files.images import centre_square, save_picture
from blora_nb.generation import generate
from blora_nb.guards.prompts import remarks_on_prompt
from blora_nb.metrics import ranked, scorer_for
from blora_nb.widgets.gallery import INDENT, Gallery, HalfChooser, Source, picture_html, reduced
from blora_nb.widgets.preview import LatentPreview, predicted_latents
from blora_nb.widgets.worker import Worker

SIDE, CONTROLS = (
    480,
    476,
)  # pixels: of the picture on the page, five for each of the teaching model's, and of the controls
CARD = 120  # pixels of a picture among the seeds
REMEMBERED = 100  # pictures a panel keeps
PREVIEW = 1.0  # seconds of waiting after which a panel shows what is there so far
PROMPTS = {
    ("content", "style"): "A [c] in [s] style",
    ("content",): "A [c] in gold style",
    ("style",): "A rocket in [s] style",
    (): "A star in gold style",
}


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
    def caption(self):
        halves = (
            ("content", self.content_B_LoRA, self.content_alpha),
            ("style", self.style_B_LoRA, self.style_alpha),
        )
        used = [f"{half}: {name}, alpha {alpha:+.2f}" for half, name, alpha in halves if name]
        return "; ".join(
            [f'"{self.prompt}"', *used, f"seed {self.seed}, {self.num_inference_steps} steps"]
        )


class Panel(widgets.VBox):
    """What all panels have: the choosers, prompt, seed and steps, Generate, Cancel and Save, and a large picture.

    Args:
        pipe: from `load_pipeline`.
        content, style: where each half comes from: a picture (file or PIL image, to be trained in the panel), a B-LoRA
            (object, file, folder or hub id) or a mixture (a list of (B-LoRA, weight)), a `Source` with both, a name in the gallery, or None to leave the half out.
        prompt, seed, content_alpha, style_alpha, num_inference_steps: what the controls show first; by default what suits.
        gallery: a `Gallery` to choose from, possibly shared with other panels.
        training_settings: for the Train buttons; by default those that suit the pipeline.
        folder: where Save and Train write; made if needed, and nothing in it is overwritten.
        background: see `Worker`.

    Attributes:
        picture: the PIL image shown, or None. drawn: its `Drawing`. errors: every exception so far.
    """

    def __init__(
        self,
        pipe,
        content=None,
        style=None,
        prompt=None,
        seed=0,
        content_alpha=1.0,
        style_alpha=1.0,
        num_inference_steps=None,
        gallery=None,
        training_settings=None,
        folder="outputs",
        background=None,
    ):
        self.pipe, self.folder, self.memory, self.picture, self.drawn, self.decoder = (
            pipe,
            folder,
            {},
            None,
            None,
            None,
        )
        self.gallery = Gallery() if gallery is None else gallery
        self.worker = Worker(pipe, background)
        self.choosers = {}
        for half, thing, alpha in (
            ("content", content, content_alpha),
            ("style", style, style_alpha),
        ):
            if thing is not None:
                in_gallery = isinstance(thing, str) and thing in self.gallery.sources
                name = thing if in_gallery else self.gallery.add(Source.of(thing, half))
                self.choosers[half] = HalfChooser(
                    half, self.gallery, name, alpha, self.worker, training_settings, folder
                )

        label, wide = {"description_width": f"{INDENT}px"}, widgets.Layout(width="auto")
        self.worker.progress.style.description_width = f"{INDENT}px"
        self.prompt = widgets.Text(
            PROMPTS[tuple(self.choosers)] if prompt is None else prompt,
            description="Prompt",
            continuous_update=False,
            layout=wide,
            style=label,
        )
        self.seed = widgets.BoundedIntText(
            seed,
            min=0,
            max=2**31 - 1,
            description="Seed",
            layout=widgets.Layout(width=f"{INDENT + 110}px"),
            style=label,
        )
        self.steps = widgets.BoundedIntText(
            num_inference_steps or defaults_for(pipe).num_inference_steps,
            min=1,
            max=1000,
            description="Steps",
            layout=widgets.Layout(width="130px"),
            style={"description_width": "50px"},
        )
        self.generate = widgets.Button(
            description="Generate",
            icon="paint-brush",
            button_style="primary",
            layout=widgets.Layout(width="auto"),
        )
        self.save = widgets.Button(
            description="Save", icon="download", disabled=True, layout=widgets.Layout(width="auto")
        )
        self.large, self.caption, self.saved = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.worker.buttons.append(self.generate)
        self.worker.after = self._after_work
        self.generate.on_click(lambda _: self._generate())
        self.save.on_click(lambda _: self._save())
        super().__init__(self._arranged(), layout=widgets.Layout(padding="8px"))
        for control in [
            self.prompt,
            self.seed,
            self.steps,
            *(c for chooser in self.choosers.values() for c in (chooser.choice, chooser.alpha)),
        ]:
            control.observe(self._changed, "value")
        self.add_class("blora-panel")
        self.worker.say("Ready.", self._remarks())
        self._show(None, None)

    _ipython_display_ = None  # ipywidgets 7 has one, which would go before the bundle below

    def _arranged(self):
        """The rows of the panel: controls beside the picture, or above it where the page is narrow, and what is below."""
        numbers = widgets.HBox(
            [self.seed, self.steps, *self.more_controls()],
            layout=widgets.Layout(flex_flow="row wrap"),
        )
        buttons = widgets.HBox(
            [self.generate, self.worker.cancel, self.save],
            layout=widgets.Layout(margin=f"6px 0 6px {INDENT + 8}px", flex_flow="row wrap"),
        )
        controls = widgets.VBox(
            [*self.choosers.values(), self.prompt, numbers, buttons, self.worker, self.saved],
            layout=widgets.Layout(flex=f"0 1 {CONTROLS}px", max_width="100%", margin="0 24px 0 0"),
        )
        shown = widgets.VBox(
            [self.large, self.caption],
            layout=widgets.Layout(flex="1 1 260px", max_width=f"{SIDE}px"),
        )
        return [
            widgets.HBox(
                [controls, shown],
                layout=widgets.Layout(flex_flow="row wrap", align_items="flex-start"),
            ),
            *self.below(),
        ]

    def more_controls(self):
        """Further controls beside seed and steps."""
        return []

    def below(self):
        """Widgets under the controls and the picture."""
        return []

    @property
    def errors(self):
        return self.worker.errors

    def settings(self):
        """The `Drawing` the controls ask for."""
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

    def draw(self, wanted, progress):
        """The picture of a `Drawing`, from memory or drawn now.

        Raises:
            ValueError: a chosen picture has no B-LoRA yet.
        """
        if wanted not in self.memory:
            bloras = {
                half: self._blora(half, name)
                for half, name in (
                    ("content", wanted.content_B_LoRA),
                    ("style", wanted.style_B_LoRA),
                )
                if name
            }
            self.looked, self.before = monotonic(), None
            self.memory[wanted] = generate(
                self.pipe,
                wanted.prompt,
                content_alpha=wanted.content_alpha,
                style_alpha=wanted.style_alpha,
                seeds=wanted.seed,
                num_inference_steps=wanted.num_inference_steps,
                progress=progress,
                preview=self._preview,
                **bloras,
            )[0]
            if len(self.memory) > REMEMBERED:
                del self.memory[next(iter(self.memory))]
        return self.memory[wanted]

    def _preview(self, _, step, latents):
        """Show what a slow picture looks like so far, now and then."""
        if monotonic() - self.looked > PREVIEW:
            self.decoder = self.decoder or LatentPreview(self.pipe)
            self.large.value = picture_html(
                self.decoder(predicted_latents(self.pipe.scheduler, self.before, latents, step))[0],
                SIDE,
                f"so far, after step {step + 1}",
            )
            self.caption.value, self.previewing, self.looked = "", True, monotonic()
        self.before = latents

    def _blora(self, half, name):
        blora = self.gallery.sources[name].blora
        if blora is None:
            raise ValueError(
                f'The {half} picture "{name}" is not learnt yet. Press "Train {half}" first.'
            )
        return blora

    def _show(self, picture, drawn):
        """Put a picture (or none) in the large place, and say what it is."""
        self.picture, self.drawn, self.previewing = picture, drawn, False
        self.save.disabled = picture is None
        self.saved.value = ""
        if picture is None:
            self.large.value = '<div style="box-sizing:border-box;width:100%;aspect-ratio:1;border:1px dashed #999;border-radius:6px;display:flex;align-items:center;justify-content:center;opacity:.75">Press Generate</div>'
        else:
            self.large.value = picture_html(picture, SIDE, drawn.caption)
        self.caption.value = f'<div style="line-height:1.4;font-size:12px;overflow-wrap:anywhere;opacity:.75">{html.escape(drawn.caption if drawn else "")}</div>'

    def _changed(self, _):
        """A control was moved."""
        if not self.worker.busy:
            self.worker.say("New settings: press Generate.", self._remarks())

    def _remarks(self):
        """Sentences on what is chosen and typed: pictures not learnt yet, and the prompt."""
        pictures = [remark for chooser in self.choosers.values() for remark in chooser.remarks()]
        return [*pictures, *remarks_on_prompt(self.pipe, self.prompt.value)]

    def _after_work(self):
        if self.previewing:  # cancelled, say: back to the picture that was there
            self._show(self.picture, self.drawn)
        for chooser in self.choosers.values():
            chooser.show()

    def _save(self):
        try:
            path = save_picture(self.picture, self.folder)
        except Exception as error:
            self.worker.show(error)
        else:
            self.worker.say(f"Saved as {path}, with its settings inside.")
            link = f"data:image/png;base64,{b64encode(path.read_bytes()).decode()}"
            self.saved.value = f'<a download="{html.escape(path.name)}" href="{link}" style="text-decoration:underline">Download {html.escape(path.name)}</a>'

    def still(self):
        """A figure of the pictures that went in and the one that came out, for places where widgets do not show."""
        pictures = {
            half: centre_square(chooser.source.picture, SIDE)
            for half, chooser in self.choosers.items()
            if chooser.source.picture
        }
        if self.picture:
            pictures["result"] = self.picture
        caption = (
            self.drawn.caption
            if self.drawn
            else "Controls for B-LoRA; they work while a kernel runs this notebook"
        )
        return (
            picture_grid([list(pictures.values())], None, list(pictures), caption, side=2.2)
            if pictures
            else None
        )

    def _repr_mimebundle_(self, **kwargs):
        still = self.still()
        return still.instead_of(self) if still else widget_data(self, "Controls for B-LoRA")


class AlphaPanel(Panel):
    """Style transfer, text stylization (`style` left out) or consistent style (`content` left out), with live alphas.

        AlphaPanel(pipe, content="cat.png", style=BLoRA.load("outputs/neon"))

    The first picture is drawn when the panel is shown. Settings that were drawn before show at once; others wait for
    Generate. See `Panel` for the arguments.
    """

    def _repr_mimebundle_(self, **kwargs):
        if self.picture is None and all(chooser.source.blora for chooser in self.choosers.values()):
            self._generate(
                background=False
            )  # in the running cell: the next one may need the pipeline
        return super()._repr_mimebundle_(**kwargs)

    def _changed(self, _):
        """Go back to a picture that was drawn before, or say that these settings are new."""
        wanted = self.settings()
        if wanted in self.memory:
            self._show(self.memory[wanted], wanted)
        if not self.worker.busy:
            before = "Drawn before." if wanted in self.memory else "New settings: press Generate."
            self.worker.say(before, self._remarks())

    def _generate(self, background=None):
        def work():
            wanted = self.settings()
            self._show(self.draw(wanted, self.worker.step), wanted)
            moved = "Done; the controls have moved on since: press Generate for what they say now."
            remarks = remarks_on_prompt(self.pipe, wanted.prompt)
            self.worker.say("Done." if self.settings() == wanted else moved, remarks)

        self.worker.start("Drawing", work, background)


class SeedPanel(Panel):
    """Several seeds of the same settings, ranked by how much content was kept and style moved; pick one.

    Not every seed is good; choosing among eight beats training again.

    Args:
        scorer: compares with the picture that lent the half, by `content_kept(images, picture)` and
            `style_moved(images, picture)`, a number for each image; by default `metrics.scorer_for(pipe)`. So every half
            that is used needs a picture: give `Source(name, picture, blora)` where you have a B-LoRA.
        count: how many seeds, counted from the one in the box.

    Attributes:
        order: the seeds, best first. scores: seed to {"content_kept": …, "style_moved": …}. picked, picture: the picked one.
    """

    def __init__(self, pipe, *args, scorer=None, count=8, **kwargs):
        self.scorer, self.first_count, self.order, self.scores, self.images = (
            scorer,
            count,
            [],
            {},
            {},
        )
        super().__init__(pipe, *args, **kwargs)
        if not self.choosers:
            raise ValueError(
                "Seeds are ranked by what they keep of a picture; give the panel a content, a style, or both."
            )
        self.seed.description = "First seed"

    def more_controls(self):
        self.count = widgets.BoundedIntText(
            self.first_count,
            min=1,
            max=64,
            description="How many",
            layout=widgets.Layout(width=f"{INDENT + 110}px"),
            style={"description_width": f"{INDENT}px"},
        )
        return [self.count]

    def below(self):
        self.cards = widgets.HBox(layout=widgets.Layout(flex_flow="row wrap", margin="14px 0 0 0"))
        return [self.cards]

    def _generate(self):
        def work():
            drawing, count, images = self.settings(), self.count.value, {}
            steps = drawing.num_inference_steps
            for number in range(count):
                seed = drawing.seed + number
                images[seed] = self.draw(
                    replace(drawing, seed=seed),
                    lambda done, _: self.worker.step(number * steps + done, count * steps),
                )
            self._rank(images, drawing)
            best = f"Seed {self.order[0]} is the best of {len(images)}"
            remarks = remarks_on_prompt(self.pipe, drawing.prompt)
            self.worker.say(f"{best}; the picture you pick is shown large.", remarks)

        self.worker.start("Drawing", work)

    def _rank(self, images, drawing):
        """Score the pictures, put them in order, and show the best."""
        scores = self._score(list(images.values()), drawing)
        seeds = list(images)
        self.images, self.ranking = images, drawing
        self.scores = {
            seed: {name: values[i] for name, values in scores.items()}
            for i, seed in enumerate(seeds)
        }
        self.order = [seeds[i] for i in ranked(*scores.values())]
        self.cards.children = [self._card(place, seed) for place, seed in enumerate(self.order, 1)]
        self.pick(self.order[0])

    def _score(self, images, drawing):
        """Name of each score to its numbers, for the halves that were used."""
        self.scorer = self.scorer or scorer_for(self.pipe)
        scores = {}
        halves = (
            ("content_kept", self.scorer.content_kept, drawing.content_B_LoRA),
            ("style_moved", self.scorer.style_moved, drawing.style_B_LoRA),
        )
        for name, method, source in halves:
            if source:
                picture = self.gallery.sources[source].picture
                if picture is None:
                    raise ValueError(
                        f'"{source}" has no picture to compare with. Give the panel Source("{source}", picture, blora).'
                    )
                scores[name] = method(images, picture)
        return scores

    def _card(self, place, seed):
        """One ranked picture with its numbers and the button that picks it."""
        lines = "".join(
            f"<div>{name.replace('_', ' ')} {value:.2f}</div>"
            for name, value in self.scores[seed].items()
        )
        shown = widgets.HTML(
            picture_html(reduced(self.images[seed], CARD), CARD, f"place {place}: seed {seed}")
            + f'<div style="font-size:12px;line-height:1.35;margin-top:3px">{lines}</div>'
        )
        button = widgets.Button(
            description=f"{place}. seed {seed}",
            tooltip=f"show the picture of seed {seed} large",
            layout=widgets.Layout(width=f"{CARD}px", margin="0"),
        )
        button.on_click(lambda _: self.pick(seed))
        return widgets.VBox(
            [shown, button], layout=widgets.Layout(width=f"{CARD}px", margin="0 14px 14px 0")
        )

    def pick(self, seed):
        """Show the picture of a seed large."""
        self._show(self.images[seed], replace(self.ranking, seed=seed))
        for card, other in zip(self.cards.children, self.order):
            card.children[1].button_style, card.children[1].icon = (
                ("success", "check") if other == seed else ("", "")
            )

    @property
    def picked(self):
        """The seed of the large picture, or None."""
        return self.drawn.seed if self.drawn else None

    def still(self):
        if not self.images:
            return super().still()
        scores = {
            name.replace("_", " "): [self.scores[seed][name] for seed in self.order]
            for name in self.scores[self.order[0]]
        }
        return seed_ranking(
            self.order,
            [self.images[seed] for seed in self.order],
            scores,
            f"{self.drawn.caption}; picked among seeds {min(self.order)} to {max(self.order)}",
        )
