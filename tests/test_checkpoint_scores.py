"""Scores of the pictures at each checkpoint: what they mean, and what they advise.

The checkpoints hold pictures only, of one colour, which a scorer with known numbers reads.
"""

import os

import pytest
from PIL import Image

from blora_nb.evaluation.checkpoint_scores import recommended, score_checkpoints
from blora_nb.evaluation.validation import pictures_at
from blora_nb.figures.checkpoints import checkpoint_curve
from blora_nb.files.saved_images import save_image
from blora_nb.widgets.picker import CheckpointPicker

TRAINED_ON = Image.effect_noise((32, 32), 90).convert("RGB")
# step to (content kept, style moved)
RISING = {10: (0, 0), 20: (40, 30), 30: (96, 98), 40: (100, 100), 50: (100, 90)}


class ByColour:
    """Content kept is the red of a picture in percent, style moved its green."""

    def __init__(self):
        self.compared = set()

    def content_kept(self, images, picture):
        self.compared.add(picture.tobytes())
        return [image.getpixel((0, 0))[0] / 100 for image in images]

    def style_moved(self, images, picture):
        return [image.getpixel((0, 0))[1] / 100 for image in images]


def write(path, red, green, blue=0):
    picture = Image.new("RGB", (8, 8), (red, green, blue))
    save_image(picture, path, {"prompt": "A [v]", "seed": 0})


def trained(folder, scores, count=2):
    """Checkpoints whose pictures of both halves have these scores in percent."""
    for step, (kept, moved) in scores.items():
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir()
        for seed in range(count):
            write(checkpoint / f"A_v_seed{seed}.png", kept, moved, seed)
    return folder


def score(folder, scorer, picture=TRAINED_ON):
    return score_checkpoints(folder, picture, scorer, progress=False)


def test_known_pictures_have_the_known_scores(tmp_path):
    scorer = ByColour()
    scores = score(trained(tmp_path, RISING), scorer)
    assert scorer.compared == {TRAINED_ON.tobytes()}
    assert [one.step for one in scores] == list(RISING)
    means = [(one.content_kept, one.style_moved) for one in scores]
    assert means == [(kept / 100, moved / 100) for kept, moved in RISING.values()]
    assert not any(one.halves_apart for one in scores)


def test_each_half_is_scored_on_its_own_pictures_where_all_have_them(tmp_path):
    trained(tmp_path, RISING)
    for number, step in enumerate(RISING):
        write(tmp_path / f"checkpoint-{step}" / "A_v_in_gold_style_seed0_content.png", 11, 0)
        write(tmp_path / f"checkpoint-{step}" / "A_rocket_seed0_style.png", 0, 22, number)
    scores = score(tmp_path, ByColour())
    assert {(one.content_scores, one.style_scores) for one in scores} == {((0.11,), (0.22,))}
    assert all(one.halves_apart for one in scores)
    assert [len(drawn["both"]) for drawn in CheckpointPicker(tmp_path).pictures.values()] == [2] * 5
    (tmp_path / "checkpoint-30" / "A_rocket_seed0_style.png").unlink()
    assert not any(one.halves_apart for one in score(tmp_path, ByColour()))


@pytest.mark.parametrize(
    ("scores", "step"),
    [
        (RISING, 30),
        ({10: (90, 10), 20: (50, 50), 30: (10, 90)}, 20),
        ({10: (100, 100), 20: (100, 99)}, 10),
        ({10: (20, 30)}, 10),
    ],
)
def test_the_earliest_nearly_as_good_as_the_best_is_recommended(tmp_path, scores, step):
    assert recommended(score(trained(tmp_path, scores), ByColour())).step == step


def test_the_picker_shows_the_curve_and_begins_at_the_recommended_checkpoint(tmp_path):
    trained(tmp_path, RISING)
    without = CheckpointPicker(tmp_path)
    assert without.checkpoint.name == "checkpoint-50"
    assert without.curve_shown.value == ""
    with pytest.raises(ValueError, match="no scores. Give the picker picture"):
        without.curve()
    picker = CheckpointPicker(tmp_path, TRAINED_ON, ByColour(), progress=False)
    assert picker.checkpoint == picker.recommended == tmp_path / "checkpoint-30"
    at_30 = picker.curve_shown.value
    assert "<img alt=" in at_30
    assert "Recommended: step 30" in at_30
    picker.slider.value = tmp_path / "checkpoint-50"
    assert "<img alt=" in picker.curve_shown.value != at_30


@pytest.mark.parametrize("given", [{"picture": TRAINED_ON}, {"scorer": ByColour()}])
def test_a_picture_and_a_scorer_go_together(tmp_path, given):
    with pytest.raises(ValueError, match="give both"):
        CheckpointPicker(trained(tmp_path, RISING), **given)


@pytest.mark.parametrize("count", [1, 2])
def test_the_curve_marks_the_chosen_and_the_recommended(tmp_path, count):
    scores = score(trained(tmp_path, RISING, count), ByColour())
    figure = checkpoint_curve(scores, tmp_path / "checkpoint-20")
    (ax,) = figure.axes
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines["recommended"].get_xdata()) == [30, 30]
    assert list(lines["recommended"].get_ydata()) == [0.96, 0.98]
    assert list(lines["chosen"].get_xdata()) == [20, 20]
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["content kept", "style moved", "recommended", "chosen"]
    noise = "one standard error over 2 pictures" if count > 1 else "says nothing of the noise"
    assert noise in figure.caption
    assert "how far the training picture is drawn again" in figure.caption
    assert ax.get_ylim()[0] == 0
    assert ax.get_ylim()[1] > 1


def test_no_scores_are_no_recommendation():
    with pytest.raises(ValueError, match="call score_checkpoints"):
        recommended([])


def test_a_negative_score_is_on_the_curve(tmp_path):
    trained(tmp_path, RISING)

    class Cosines(ByColour):
        def content_kept(self, images, picture):
            return [score - 0.5 for score in super().content_kept(images, picture)]

    figure = checkpoint_curve(score(tmp_path, Cosines()))
    assert figure.axes[0].get_ylim()[0] < -0.5


def test_of_two_prompts_the_last_drawn_counts(tmp_path):
    folder = tmp_path / "checkpoint-10"
    folder.mkdir()
    write(folder / "A_v_seed0.png", 10, 10)
    write(folder / "A_star_seed0.png", 90, 90)
    os.utime(folder / "A_v_seed0.png", (1, 1))
    assert [file.name for file in pictures_at(folder)] == ["A_star_seed0.png"]
