"""What becomes of a prompt's words, said wherever a prompt can be typed."""

import logging
import warnings

import pytest

from blora_nb.errors import PromptWarning
from blora_nb.generation import generate
from blora_nb.guards.prompts import quiet_libraries, remarks_on_prompt, unknown_words, unused_words
from blora_nb.inspection import prompt_per_block
from blora_nb.settings import TrainingSettings
from blora_nb.training import train
from blora_nb.widgets.gallery import example_gallery
from blora_nb.widgets.panels import AlphaPanel
from conftest import ROOT

PICTURE = ROOT / "blora_nb" / "data" / "examples" / "star_sunset.png"

LONG = 6 * "A cat with a red star and a blue moon " + "and in the house of gold in neon style"
ONE_STEP = {"num_inference_steps": 1, "progress": False}


def test_words_that_are_cut_off_are_named_as_they_are_typed(pipe):
    assert unused_words(pipe, LONG) == "the house of gold in neon style"  # 62 pieces are read
    assert unused_words(pipe, "a " * 62) == ""
    assert unused_words(pipe, "a " * 62 + "CAT ") == "CAT"
    assert unused_words(pipe, "a " * 60 + "[v] cat") == "[v] cat", "a placeholder is shown whole"
    assert unused_words(pipe, "a " * 61 + "zeppelin, cat") == "zeppelin, cat", "a word, too"
    assert unused_words(pipe, "") == ""


def test_words_that_the_teaching_model_never_learned_are_named(pipe):
    prompt = "A [v] zeppelin in [s] style, <xyz> Velcro 猫 zeppelin!"
    assert unknown_words(pipe, prompt) == ["zeppelin", "Velcro", "猫"]
    assert unknown_words(pipe, "A cat in neon style with a [wxy] star, ü x 7") == []
    (remark,) = remarks_on_prompt(pipe, "a " * 62 + "zeppelin")
    assert "zeppelin" in remark
    assert "never learned" not in remark, "what is cut off is not said twice"


def test_a_large_vocabulary_spells_no_word(pipe, monkeypatch):
    monkeypatch.setattr("blora_nb.guards.prompts.SMALL", 10)
    assert unknown_words(pipe, "A zeppelin") == []


def draw_with_a_block(pipe, picture):
    with prompt_per_block(pipe, {"mid_block.attentions.0": LONG}):
        pass


def draw_away_from(pipe, picture):
    generate(pipe, "A cat", negative_prompt=LONG, **ONE_STEP)


ONE_TRAINING_STEP = {"progress": False, "max_train_steps": 1}


def learn_with(pipe, picture):
    train(pipe, picture, instance_prompt=LONG, **ONE_TRAINING_STEP)


PLACES = {
    "prompt": lambda pipe, picture: generate(pipe, LONG, **ONE_STEP),
    "negative": draw_away_from,
    "training": learn_with,
    "caption": lambda pipe, picture: train(pipe, {PICTURE: LONG}, **ONE_TRAINING_STEP),
    "block": draw_with_a_block,
}


@pytest.fixture
def said_by_diffusers(caplog):
    logging.getLogger("diffusers").addHandler(caplog.handler)
    yield caplog
    logging.getLogger("diffusers").removeHandler(caplog.handler)


@pytest.mark.parametrize("place", PLACES)
def test_it_is_said_wherever_a_prompt_can_be_typed(pipe, picture, said_by_diffusers, place):
    """And what the libraries say of it is not."""
    with pytest.warns(PromptWarning, match='not used: "the house of gold in neon style"'):
        PLACES[place](pipe, picture)
    assert "truncated" not in said_by_diffusers.text
    assert "Token indices" not in said_by_diffusers.text


def test_nothing_is_said_of_a_prompt_that_is_understood(pipe):
    with warnings.catch_warnings():
        warnings.simplefilter("error", PromptWarning)
        generate(pipe, "A [c] in [s] style with a red star", negative_prompt="blue", **ONE_STEP)


def test_the_libraries_speak_again_afterwards():
    from diffusers.utils import logging as diffusers_logging

    before = diffusers_logging.get_verbosity()
    with quiet_libraries():
        assert diffusers_logging.get_verbosity() == logging.ERROR
    assert diffusers_logging.get_verbosity() == before


def test_panels_say_it_in_their_status(pipe, tmp_path):
    settings = TrainingSettings.for_pipeline(pipe, max_train_steps=1)
    panel = AlphaPanel(
        pipe,
        "star sunset",
        "flower neon",
        gallery=example_gallery(),
        num_inference_steps=1,
        folder=tmp_path,
        prompt=LONG,
        training_settings=settings,
        background=False,
    )
    assert "the house of gold in neon style" in panel.worker.status.value
    panel.generate.click()
    assert "Done." in panel.worker.status.value
    assert "Note: The text encoder reads 62" in panel.worker.status.value
    panel.prompt.value = "A zeppelin"
    assert "never learned the word zeppelin" in panel.worker.status.value
    panel.prompt.value = "A cat"
    assert "Note" not in panel.worker.status.value


def test_panels_say_what_is_wrong_with_an_uploaded_picture(pipe, tmp_path):
    from PIL import Image

    from test_panels import png, upload

    red = Image.new("RGB", (9, 9), "red")
    panel = AlphaPanel(pipe, content=red, folder=tmp_path, background=False)
    assert "nothing in it" in panel.worker.status.value
    upload(panel.choosers["content"].upload, "tiny.png", png(Image.effect_noise((12, 12), 90)))
    said = panel.worker.status.value
    assert "tiny" in said
    assert "8.0 times" in said
    assert "nothing in it" not in said
