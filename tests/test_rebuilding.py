"""Has a B-LoRA learned its picture? What is told after a training on the teaching model."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from blora_nb import example_blora, example_picture
from blora_nb.errors import ImageError
from blora_nb.evaluation.rebuilding import psnr, rebuild, rebuilt_in_words
from blora_nb.files.images import remarks_on_square


def test_a_picture_is_compared_with_its_own_b_lora(pipe):
    """The B-LoRA of the star has learned the star, and not the ghost."""
    blora = example_blora(pipe, "star_sunset")
    own = rebuild(pipe, blora, example_picture("star_sunset"))
    other = rebuild(pipe, blora, example_picture("ghost_tiger"))
    assert own.learned
    assert not other.learned
    assert own.image == other.image
    assert str(own).endswith("dB): learned.")
    assert "not learned. The teaching model" in str(other)
    assert not getattr(pipe.unet, "peft_config", None)


def test_a_picture_that_cannot_be_read_is_named(pipe, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    blora = example_blora(pipe, "star_sunset")
    with pytest.raises(ImageError, match="broken.png"):
        rebuild(pipe, blora, broken)
    # after a training it is said, and nothing ends
    said = rebuilt_in_words(pipe, blora, broken, "A [v]")
    assert said.startswith("It could not be drawn again for comparison: ")
    assert "broken.png" in said


def test_other_models_are_refused_with_the_remedy(pipe, monkeypatch):
    monkeypatch.setattr("blora_nb.evaluation.rebuilding.is_teaching_model", lambda _: False)
    with pytest.raises(ValueError, match="scorer_for"):
        rebuild(pipe, example_blora(pipe, "star_sunset"), example_picture("star_sunset"))


def test_of_one_colour_there_is_nothing_to_learn(pipe):
    blora = example_blora(pipe, "star_sunset")
    told = rebuilt_in_words(pipe, blora, Image.new("RGB", (96, 96), "teal"), "A [v]")
    assert told.endswith("it is hardly more than one colour, there is nothing to learn.")


def test_psnr_is_that_of_the_definition():
    black = np.zeros((4, 4, 3))
    assert psnr(black + 0.1, black) == pytest.approx(20)
    assert psnr(black + 1, black) == pytest.approx(0)
    assert psnr(black, black) == 100


@pytest.mark.parametrize(
    ("size", "thing", "words"),
    [
        ((300, 200), (10, 80, 60, 120), "left and right of it, 33% of the picture"),
        ((200, 300), (80, 10, 120, 60), "above and below it, 33% of the picture"),
        ((300, 200), (120, 80, 180, 120), None),  # what is cut off is empty paper
        ((202, 200), (0, 80, 60, 120), None),  # a pixel at each end
    ],
)
def test_what_is_cut_off_is_said(size, thing, words):
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((90, 90, 150, 150), fill="blue")
    draw.rectangle(thing, fill="red")
    said = " ".join(remarks_on_square(picture, 96))
    if words is None:
        assert said == ""
    else:
        assert words in said
        assert "cut off" in said
