"""Choosing a checkpoint by its pictures: on a sheet, or in a notebook with a slider."""

import base64
import json

import numpy as np
import pytest
from PIL import Image

from blora_nb.figures import checkpoint_grid, write_validation_sheet
from blora_nb.generation import generate
from blora_nb.lora import BLoRA
from blora_nb.training import train
from blora_nb.validation import validation_pictures
from blora_nb.widgets.picker import CheckpointPicker
from blora_nb.widgets.uploads import picture_from_bytes

pytestmark = pytest.mark.slow
STEPS = ["step 10", "step 20", "step 30"]


@pytest.fixture(scope="module")
def folder(pipe, picture, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train(
        pipe,
        picture,
        progress=False,
        output_dir=folder,
        on_checkpoint=validation_pictures(pipe, "A [v]", 2),
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
    made = generate(pipe, "A [v]", picker.blora, picker.blora, seeds=[0, 1], progress=False)
    assert [p.tobytes() for p in shown] == [p.tobytes() for p in made]
    bundle, about = picker._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "image/png", "application/vnd.jupyter.widget-view+json"}
    assert "3 checkpoints" in bundle["text/plain"] == about["image/png"]["alt"]


def test_the_sheet_has_a_row_for_each_checkpoint(folder):
    sheet = write_validation_sheet(folder)
    again = write_validation_sheet(folder)
    assert sheet.name == "validation.png"
    assert again != sheet
    axes = checkpoint_grid(folder).axes
    assert len(axes) == 6
    assert [a.get_ylabel() for a in axes[::2]] == STEPS
    picture = Image.open(folder / "checkpoint-20" / "A_v_seed1.png")
    assert np.array_equal(axes[3].images[0].get_array(), np.asarray(picture))
    assert json.loads(picture.text["blora_nb"])["seed"] == 1


def test_a_folder_without_pictures_says_how_they_are_made(tmp_path):
    with pytest.raises(FileNotFoundError, match="--validation_prompt"):
        CheckpointPicker(tmp_path)
