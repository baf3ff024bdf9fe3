"""The frontier over the alphas: which points are on it, which one is recommended, how it looks."""

import importlib
import io
import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from blora_nb.assets import DATA
from blora_nb.course.drawings import draw
from blora_nb.errors import BLoRAError, PromptWarning
from blora_nb.evaluation.metrics import (
    balance,
    mean_and_error,
    most_balanced,
    non_dominated,
    scorer_for,
)
from blora_nb.figures import alpha_frontier
from blora_nb.figures.alpha_frontier import Frontier, FrontierPoint, frontier
from blora_nb.figures.frontier_chart import frontier_figure
from blora_nb.files.metadata import picture_metadata
from blora_nb.generation import generate
from blora_nb.lora import BLoRA

PROMPT = "A [c] in [s] style"
CAT, NEON = draw("cat", "wood", 1, 96), draw("flower", "neon", 2, 96)
PICTURES = {"content_picture": CAT, "style_picture": NEON}
QUICK = {"num_inference_steps": 1, "progress": False}
SMALL = {"content_alphas": (0.5, 1), "style_alphas": (0.5, 1), "seeds": 3}

scores = st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=1, max_size=20)


def without_picture(name):
    """The B-LoRA of an example, as a file tells it that does not carry its picture."""
    return BLoRA(BLoRA.load(DATA / "bloras" / f"{name}.safetensors").state_dict)


@pytest.fixture(scope="module")
def halves():
    return {
        "content": without_picture("cat_wood"),
        "style": without_picture("flower_neon"),
    }


class Known:
    """A scorer that reads its numbers from the alphas and the seed that a picture was made with."""

    def __init__(self, numbers):
        self.numbers, self.compared = numbers, []

    def scores(self, images, picture, place):
        self.compared.append(picture)
        made = [image.info["blora_nb"] for image in images]
        names = ("content_alpha", "style_alpha", "seed")
        return [self.numbers[tuple(one[name] for name in names)][place] for one in made]

    def content_kept(self, images, picture):
        return self.scores(images, picture, 0)

    def style_moved(self, images, picture):
        return self.scores(images, picture, 1)


def made_of(numbers, picture=CAT):
    """A `Frontier` of {(content alpha, style alpha): [(content kept, style moved), … by seed]}."""
    points = []
    for (content_alpha, style_alpha), by_seed in numbers.items():
        kept, moved = zip(*by_seed)
        images = (picture,) * len(by_seed)
        points.append(FrontierPoint(content_alpha, style_alpha, kept, moved, images))
    return Frontier(PROMPT, tuple(range(len(by_seed))), tuple(points))


def dominates(one, other):
    return one[0] >= other[0] and one[1] >= other[1] and one != other


@given(scores)
def test_a_point_is_on_the_frontier_or_dominated_by_one_that_is(pairs):
    on_it = [pairs[place] for place in non_dominated(*zip(*pairs))]
    assert on_it
    assert not any(dominates(one, other) for one in on_it for other in on_it)
    off_it = [pair for pair in pairs if pair not in on_it]
    assert all(any(dominates(one, other) for one in on_it) for other in off_it)


@given(scores, st.data())
def test_nothing_is_better_balanced_than_the_recommended_point(pairs, data):
    distances = data.draw(
        st.lists(st.integers(0, 3), min_size=len(pairs), max_size=len(pairs)), label="distances"
    )
    first, second = zip(*pairs)
    best = most_balanced(first, second, distances)
    balances = balance(first, second)
    assert balances[best] == max(balances)
    rounded = [(round(one, 2), round(two, 2)) for one, two in pairs]
    assert not any(dominates(other, rounded[best]) for other in rounded)
    tied = [place for place in range(len(pairs)) if rounded[place] == rounded[best]]
    assert distances[best] == min(distances[place] for place in tied)


def test_mean_and_standard_error():
    assert mean_and_error([0.2, 0.4, 0.6]) == (pytest.approx(0.4), pytest.approx(0.2 / 3**0.5))
    assert mean_and_error([0.3]) == (0.3, None)


def test_the_scale_of_a_score_does_not_decide():
    """Cosines of content may all be higher than those of style."""
    kept, moved = [0.9, 0.8, 0.7], [0.20, 0.29, 0.3]
    assert most_balanced(kept, moved, [0, 0, 0]) == 1
    assert most_balanced([0.1 * one for one in kept], moved, [0, 0, 0]) == 1


def test_known_numbers_give_the_known_frontier_and_recommendation(pipe, halves):
    numbers = {
        (0.5, 0.5, 3): (0.3, 0.3),  # dominated
        (0.5, 1, 3): (0.2, 0.9),
        (1, 0.5, 3): (0.9, 0.2),
        (1, 1, 3): (0.7, 0.6),
    }
    scorer = Known(numbers)
    found = frontier(pipe, **halves, **PICTURES, **SMALL, scorer=scorer, **QUICK)
    made = [(p.content_alpha, p.style_alpha, p.content_kept, p.style_moved) for p in found.points]
    assert made == [(*alphas[:2], *pair) for alphas, pair in numbers.items()]
    assert [(p.content_alpha, p.style_alpha) for p in found.frontier] == [
        (1, 0.5),
        (1, 1),
        (0.5, 1),
    ]
    assert found.best == (1, 1)
    assert found.best_point.content_error is None
    compared = [(one.size, one.tobytes()) for one in scorer.compared]
    assert compared == [(one.size, one.tobytes()) for one in (CAT, NEON)] * 4
    assert "3 of 4 pairs of alphas are on the frontier (1 seed)" in repr(found)


@pytest.mark.slow
def test_on_the_teaching_model(pipe, halves, monkeypatch):
    """The pictures are those of `generate`, the scores the judge's; one prompt is read once."""
    read = []
    read_prompt = alpha_frontier.read_prompt
    monkeypatch.setattr(
        alpha_frontier, "read_prompt", lambda *given: read.append(given) or read_prompt(*given)
    )
    options = {"num_inference_steps": 3, "progress": False}
    found = frontier(pipe, **halves, **PICTURES, **SMALL, **options)
    assert len(read) == 1
    assert len(found.points) == 4
    scorer = scorer_for(pipe)
    for point in found.points:
        alphas = (point.content_alpha, point.style_alpha)
        (image,) = generate(pipe, PROMPT, *halves.values(), *alphas, seeds=3, **options)
        assert image.tobytes() == point.images[0].tobytes()
        assert image.info == point.images[0].info
        assert point.content_scores == pytest.approx(scorer.content_kept([image], CAT))
        assert point.style_scores == pytest.approx(scorer.style_moved([image], NEON))


def test_afterwards_the_recommended_alphas_are_on_the_pipeline(pipe, halves):
    numbers = {(c, s, 3): (c, s) for c in (0.5, 1) for s in (0.5, 1)}
    numbers |= {(0.5, 1, 3): (1, 1), (1, 1, 3): (0.5, 0.5)}
    found = frontier(pipe, **halves, **PICTURES, **SMALL, scorer=Known(numbers), **QUICK)
    assert found.best == (0.5, 1)
    scaling = {
        name: set(module.scaling.values())
        for name, module in pipe.unet.named_modules()
        if hasattr(module, "lora_A")
    }
    by_block = {".attentions.0.": {0.5}, ".attentions.1.": {1.0}}
    for name, values in scaling.items():
        assert values == next(alpha for block, alpha in by_block.items() if block in name)


def test_a_negative_prompt_without_guidance_is_said_to_do_nothing(pipe, halves):
    with pytest.warns(PromptWarning, match="The negative prompt does nothing"):
        frontier(
            pipe,
            **halves,
            **PICTURES,
            **SMALL,
            **QUICK,
            negative_prompt="A cat",
            guidance_scale=1,
        )


def test_equal_scores_give_the_alphas_nearest_1():
    alphas = [(c, s) for c in (0.5, 0.75, 1.25) for s in (0.5, 1.25, 1)]
    found = made_of({pair: [(0.999, 1), (1, 0.998)] for pair in alphas})
    assert found.best in {(0.75, 1), (1.25, 1)}
    assert len(found.frontier) == len(alphas)


def test_the_small_copy_in_a_file_is_compared_with_where_no_picture_is_given(pipe, halves):
    with_picture = {
        half: BLoRA(blora.state_dict, picture_metadata(picture))
        for (half, blora), picture in zip(halves.items(), (CAT, NEON))
    }
    scorer = Known({(1, 1, 0): (1, 1)})
    one = {"content_alphas": [1], "style_alphas": [1], "seeds": 0}
    frontier(pipe, **with_picture, **one, scorer=scorer, **QUICK)
    pictures = {"cat": CAT, "flower": NEON}
    found = scorer_for(pipe).find(scorer.compared, pictures)
    assert found == [("cat", "cat"), ("flower", "flower")]


class Broken:
    """A scorer that returns what it is told to."""

    def __init__(self, returned):
        self.returned = returned

    def content_kept(self, images, picture):
        return self.returned

    style_moved = content_kept


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"content": None}, "content is None. Give both"),
        ({"style": None}, "style is None. Give both"),
        ({"content_picture": None}, "no picture to compare the content with.*content_picture="),
        ({"style_picture": None}, "no picture to compare the style with.*style_picture="),
        ({"content_alphas": ()}, "content_alphas is empty: name at least one"),
        ({"style_alphas": 1}, "style_alphas is a list of numbers"),
        ({"style_alphas": [1, math.nan]}, "style_alphas must be an ordinary number, not nan"),
        ({"seeds": []}, "seeds is empty"),
        ({"scorer": Broken([math.nan])}, "content_kept gave .nan.*Look at the pictures"),
        ({"scorer": Broken([0.5, 0.5])}, "gave 2 scores for 1 pictures"),
        ({"content_alphas": [1e30]}, "At content alpha 1e.30 and style alpha 0.5: NaN.*smaller"),
    ],
)
def test_what_cannot_be_done_is_said_with_a_remedy(pipe, halves, changed, said):
    given = halves | PICTURES | SMALL | {"scorer": Broken([0.5])} | changed
    with pytest.raises(ValueError, match=said):
        frontier(pipe, **given, **QUICK)


def test_a_missing_half_is_named(pipe, halves):
    with pytest.raises(BLoRAError, match="no style half"):
        frontier(pipe, halves["content"], halves["style"].content, **PICTURES, **QUICK)


CLUSTERED = {
    (c, s): [(0.6 + 0.06 * c - 0.05 * s, 0.4 + 0.06 * s - 0.05 * c), (0.6 + 0.05 * c, 0.4)]
    for c in (0.5, 0.75, 1, 1.25)
    for s in (0.5, 0.75, 1, 1.25)
}
PERCENT = {
    pair: [(100 * kept, 100 * moved) for kept, moved in by_seed]
    for pair, by_seed in CLUSTERED.items()
}
SATURATED = {pair: [(1, 1), (1, 1)] for pair in CLUSTERED} | {(0.5, 0.5): [(0, 0), (1, 0)]}
ONE = {(1, 1): [(0.5, 0.5)]}
NEGATIVE = {(1, 1): [(-0.5, 0.1)], (1, 0.5): [(0.2, -0.3)]}


@pytest.mark.parametrize("numbers", [CLUSTERED, PERCENT, SATURATED, ONE, NEGATIVE])
def test_labels_cover_neither_points_nor_each_other(numbers):
    found = made_of(numbers)
    figure = frontier_figure(found)
    figure.draw_without_rendering()
    ax = figure.axes[0]
    texts = [text for text in ax.texts if text.get_text()]
    boxes = [text.get_window_extent() for text in texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    places = ax.transData.transform(
        [(round(p.content_kept, 2), round(p.style_moved, 2)) for p in found.points]
    )
    assert not any(box.contains(*place) for box in boxes for place in places)
    content_alpha, style_alpha = found.best
    best = f"{content_alpha:g} / {style_alpha:g}"
    labels = [text.get_text() for text in texts]
    assert sum(label == best or label.startswith(f"{best} and ") for label in labels) == 1
    on_it = {(round(p.content_kept, 2), round(p.style_moved, 2)) for p in found.frontier}
    dark = [text for text in texts if text.get_color() == "0.15"]
    assert len(dark) == len(on_it), "every place on the frontier has its label"


def test_the_figure_marks_the_recommended_point_and_says_the_rule_and_the_noise():
    found = made_of(CLUSTERED)
    figure = found.figure()
    framed = [ax for ax in figure.axes[1:] if ax.get_frame_on()]
    content_alpha, style_alpha = found.best
    (best,) = framed
    assert best.get_xlabel().startswith(f"content {content_alpha:g}, style {style_alpha:g}\n")
    assert len(figure.axes) == 1 + 4
    assert "one standard error over 2 seeds" in figure.caption
    png, about = found._repr_png_()
    assert Image.open(io.BytesIO(png)).width > 800
    assert about["alt"] == figure.caption
    assert "One seed says nothing of the noise" in made_of(ONE).figure().caption


def test_the_top_gives_the_function_however_often_it_is_asked():
    importlib.import_module("blora_nb.figures.alpha_frontier")
    for _ in range(2):
        from blora_nb import frontier as from_the_top

        assert from_the_top is frontier
