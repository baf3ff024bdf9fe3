"""A training is finished for a picture, prompt, settings and base; else what differs is said."""

import json
import shutil

import pytest
from PIL import Image
from safetensors import safe_open

from blora_nb.files.locating import FILE_NAME
from blora_nb.lora import BLoRA
from blora_nb.settings import TrainingSettings
from blora_nb.training import train
from conftest import ROOT
from helpers import refused, run, run_here, succeeded

EXAMPLES = ROOT / "blora_nb" / "data" / "examples"
SHORT = ["--max_train_steps", 2, "--rank", 4, "--train_batch_size", 1, "--checkpointing_steps", 1]


def again(source, out, *more, settings=SHORT):
    arguments = ["train", "--instance_data_dir", source, "--output_dir", out, *settings]
    return run_here(*arguments, "--resume_from_checkpoint", "latest", *more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a picture and the training of two steps that is finished for it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "p").mkdir()
    shutil.copy(EXAMPLES / "star_sunset.png", folder / "p" / "cat.png")
    succeeded(again(folder / "p" / "cat.png", folder / "out"))
    return folder


@pytest.fixture
def cat(finished, tmp_path):
    """The picture of a copy of that folder, in tmp_path."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path / "p" / "cat.png"


def test_a_picture_that_was_replaced_is_not_finished(cat, tmp_path):
    file = tmp_path / "out" / FILE_NAME
    kept = file.read_bytes()
    assert "finished already" in succeeded(again(cat, tmp_path / "out")).stdout
    shutil.copy(EXAMPLES / "cat_wood.png", cat)
    done = refused(again(cat, tmp_path / "out"), "another picture", "move this folder away")
    assert "finished already" not in done.stdout
    assert file.read_bytes() == kept


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--instance_prompt", "A [w] fish"], r"instance_prompt was A [v] and is A [w] fish"),
        (["--rank", 8], "rank was 4 and is 8"),
        (["--seed", 7], "seed was 0 and is 7"),
        (["--learning_rate", "1e-4"], "learning_rate"),
        (["--max_train_steps", 1], "it had 2 training steps and 1 are asked for"),
        (["--dtype", "bfloat16"], "another dtype"),
    ],
)
def test_other_settings_are_said(cat, tmp_path, more, words):
    done = refused(again(cat, tmp_path / "out", *more), words)
    assert "finished already" not in done.stdout


def test_what_changes_no_weight_is_no_difference(cat, tmp_path):
    done = again(cat, tmp_path / "out", "--checkpoints_total_limit", 1, "--license", "mit")
    assert "finished already" in succeeded(done).stdout
    assert "names no licence: mit is only written after a training" in done.stderr


def test_more_steps_are_made_as_is_said(pipe, cat, tmp_path):
    more = ["--max_train_steps", 4]
    refused(again(cat, tmp_path / "out", *more), "To go on from", "checkpoint-2")
    (tmp_path / "out" / FILE_NAME).rename(tmp_path / "two_steps.safetensors")
    succeeded(again(cat, tmp_path / "out", *more))
    whole = train(pipe, cat, progress=False, rank=4, train_batch_size=1, max_train_steps=4)
    assert BLoRA.load(tmp_path / "out").fingerprint == whole.fingerprint


def test_of_a_folder_only_what_differs_is_refused_and_in_the_manifest(cat, tmp_path):
    folder, out = cat.parent, tmp_path / "all"
    shutil.copy(EXAMPLES / "flower_neon.png", folder / "flower.png")
    succeeded(again(folder, out))
    shutil.copy(EXAMPLES / "cat_wood.png", cat)
    shutil.copy(EXAMPLES / "cat_wood.png", folder / "new.png")
    done = refused(again(folder, out), "another picture")
    assert f"finished already: {out / 'flower'}" in done.stdout
    rows = {
        row["folder"]: row
        for row in json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    }
    states = {name: row["state"] for name, row in rows.items()}
    assert states == {"cat": "failed", "flower": "finished", "new": "finished"}
    assert "another picture" in rows["cat"]["why"]


def test_together_is_finished_for_all_pictures_and_their_prompts(cat, tmp_path):
    folder, out, captions = cat.parent, tmp_path / "one", tmp_path / "c.jsonl"
    shutil.copy(EXAMPLES / "flower_neon.png", folder / "flower.png")

    def write(text):
        texts = {"cat.png": "A [v] cat", "flower.png": text}
        rows = [{"file_name": name, "text": text} for name, text in texts.items()]
        captions.write_text("\n".join(map(json.dumps, rows)))

    write("A [v] flower")
    options = ["--together", "--captions_file", captions]
    succeeded(again(folder, out, *options))
    assert "finished already" in succeeded(again(folder, out, *options)).stdout
    write("A [v] tree")
    refused(again(folder, out, *options), "another caption")
    write("A [v] flower")
    shutil.copy(EXAMPLES / "boat_stripes.png", folder / "flower.png")
    refused(again(folder, out, *options), "another picture")


@pytest.mark.slow
def test_notes_of_pictures_and_prompts_are_a_line_each_once(cat, tmp_path):
    """In a process of its own, where what the libraries say is heard, too."""
    Image.new("RGB", (5, 5), "red").save(cat)
    Image.new("RGB", (5, 5), "blue").save(cat.with_name("b.png"))
    (cat.parent / "IMG_1.heic").write_bytes(b"\x00\x00\x00\x18ftypheic")
    long = ["--instance_prompt", "A [v] " + "cat " * 62 + "in neon style"]
    options = ["--instance_data_dir", cat.parent, "--output_dir", tmp_path / "notes", *SHORT, *long]
    done = succeeded(run("train", *options))
    assert "truncated" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    counts = {"IMG_1.heic": 1, "in neon style": 1, "nothing in it": 2, "enlarged": 2}
    for words, count in counts.items():
        assert sum(words in line for line in lines) == count, (words, lines)


def test_checkpoints_of_python_know_the_same(pipe, tmp_path):
    """What a checkpoint belongs to stands in the finished file, too."""
    settings = TrainingSettings.for_pipeline(pipe, rank=4, max_train_steps=1, train_batch_size=1)
    blora = train(pipe, EXAMPLES / "cat_wood.png", settings, progress=False, output_dir=tmp_path)
    learned = json.loads(blora.metadata["learned"])
    with safe_open(tmp_path / "checkpoint-1" / "training_state.safetensors", "pt") as opened:
        assert json.loads(opened.metadata()["state"])["learned"] == learned
