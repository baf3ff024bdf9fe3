"""Choosing a checkpoint by its pictures: on a sheet, or in a notebook with a slider."""

import base64
import json

import numpy as np
import pytest
from PIL import Image

from blora_nb.evaluation.metrics import scorer_for
from blora_nb.evaluation.validation import pictures_at, validation_pictures
from blora_nb.figures.checkpoints import checkpoint_grid, write_validation_sheet
from blora_nb.generation import generate
from blora_nb.lora import BLoRA
from blora_nb.training import train
from blora_nb.widgets.picker import CheckpointPicker
from blora_nb.widgets.uploads import picture_from_bytes

pytestmark = pytest.mark.slow
STEPS = ["step 10", "step 20", "step 30"]
IN_GOLD, ROCKET = "A [v] in gold style", "A rocket in [v] style"


@pytest.fixture(scope="module")
def folder(pipe, picture, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train(
        pipe,
        picture,
        progress=False,
        output_dir=folder,
        on_checkpoint=validation_pictures(pipe, "A [v]", 2, IN_GOLD, ROCKET),
        max_train_steps=30,
        checkpointing_steps=10,
    )
    return folder


def test_the_slider_shows_the_pictures_of_a_checkpoint_and_gives_its_weights(pipe, folder):
    picker = CheckpointPicker(folder)
    assert [label for label, _ in picker.slider.options] == STEPS
    assert picker.checkpoint.name == "checkpoint-30"
    picker.slider.value = folder / "checkpoint-10"
    shown = [
        picture_from_bytes("shown", base64.b64decode(text.split('"')[0]))[0]
        for text in picker.shown.value.split("base64,")[1:]
    ]
    first, last = (BLoRA.load(folder / f"checkpoint-{step}") for step in (10, 30))
    assert picker.blora.fingerprint == first.fingerprint != last.fingerprint
    options = {"seeds": [0, 1], "progress": False}
    made = generate(pipe, "A [v]", picker.blora, picker.blora, **options)
    made += generate(pipe, IN_GOLD, content=picker.blora, **options)
    made += generate(pipe, ROCKET, style=picker.blora, **options)
    for prompt in (IN_GOLD, ROCKET):
        assert prompt in picker.shown.value
    assert [p.tobytes() for p in shown] == [p.tobytes() for p in made]
    bundle, about = picker._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "image/png", "application/vnd.jupyter.widget-view+json"}
    assert "3 checkpoints" in bundle["text/plain"] == about["image/png"]["alt"]


@pytest.mark.parametrize(("half", "prompt"), [("content", IN_GOLD), ("style", ROCKET)])
def test_each_half_alone_is_drawn_as_generate_draws_it(pipe, folder, half, prompt):
    files = pictures_at(folder / "checkpoint-20", half)
    blora = BLoRA.load(folder / "checkpoint-20")
    made = generate(pipe, prompt, **{half: blora}, seeds=[0, 1], progress=False)
    assert [Image.open(file).tobytes() for file in files] == [one.tobytes() for one in made]
    assert json.loads(Image.open(files[0]).text["blora_nb"])["half"] == half


def test_drawing_halves_alone_changes_nothing_of_the_training(pipe, picture, folder, tmp_path):
    plain = train(
        pipe,
        picture,
        progress=False,
        output_dir=tmp_path,
        on_checkpoint=validation_pictures(pipe, "A [v]", 1),
        max_train_steps=20,
        checkpointing_steps=10,
    )
    # the training of the folder has a checkpoint more, and the same steps until then
    assert BLoRA.load(folder / "checkpoint-20").fingerprint == plain.fingerprint


def test_the_judge_scores_real_checkpoints(pipe, picture, folder):
    picker = CheckpointPicker(folder, picture, scorer_for(pipe), progress=False)
    assert all(one.halves_apart for one in picker.scores)
    files = pictures_at(folder / "checkpoint-10", "style")
    expected = scorer_for(pipe).style_moved([Image.open(file) for file in files], picture)
    assert picker.scores[0].style_scores == pytest.approx(expected)
    assert picker.blora.fingerprint == BLoRA.load(picker.recommended).fingerprint


def test_the_sheet_has_a_row_for_each_checkpoint(folder):
    sheet = write_validation_sheet(folder)
    again = write_validation_sheet(folder)
    assert sheet.name == "validation.png"
    assert again != sheet
    axes = checkpoint_grid(folder).axes
    assert len(axes) == 18, "both halves, and each alone"
    assert [a.get_ylabel() for a in axes[::6]] == STEPS
    picture = Image.open(folder / "checkpoint-20" / "A_v_seed1.png")
    assert np.array_equal(axes[7].images[0].get_array(), np.asarray(picture))
    assert json.loads(picture.text["blora_nb"])["seed"] == 1


def test_a_folder_without_pictures_says_how_they_are_made(tmp_path):
    with pytest.raises(FileNotFoundError, match="--validation_prompt"):
        CheckpointPicker(tmp_path)
