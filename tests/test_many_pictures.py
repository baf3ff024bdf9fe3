"""Many pictures in one command: a B-LoRA each, or one from all of them.

One load, several processes, a kill in between, one manifest.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image

from blora_nb.batches import Batches
from blora_nb.cli.finished import check_output
from blora_nb.cli.jobs import Job, check_folder_names, plan, read_captions
from blora_nb.cli.many_pictures import train_all, write_manifest
from blora_nb.course.drawings import draw
from blora_nb.errors import ImageError
from blora_nb.files.descriptions import describe
from blora_nb.files.locating import FILE_NAME
from blora_nb.lora import BLoRA
from blora_nb.pipeline import encode_prompt
from blora_nb.settings import TrainingSettings
from blora_nb.training import train
from helpers import same_weights
from test_formats import made

CHANGES = {"rank": 4, "train_batch_size": 2, "max_train_steps": 10, "checkpointing_steps": 5}
NAMES = ("star_sunset", "cat_wood", "boat_neon", "fish_candy")


@pytest.fixture
def folder(tmp_path):
    pictures = tmp_path / "class"
    pictures.mkdir()
    for name in NAMES:
        draw(*name.split("_"), 5, 128).save(pictures / f"{name}.png")
    return pictures


def command(folder, out, *more):
    """The training in two processes."""
    launch = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    launch += " --dynamo_backend no --main_process_port 0"
    options = [text for name, value in CHANGES.items() for text in (f"--{name}", str(value))]
    return [
        *[sys.executable, "-m", "accelerate.commands.launch", *launch.split()],
        *["-m", "blora_nb", "train", "--instance_data_dir", str(folder)],
        *["--output_dir", str(out), *options, *more],
    ]


@pytest.mark.slow
def test_two_processes_share_a_class_and_go_on_after_a_kill(pipe, folder, tmp_path):
    out = tmp_path / "out"
    # so that some are not finished when the first one is
    longer = ["--resume_from_checkpoint", "latest", "--max_train_steps", "40"]
    first = subprocess.Popen(
        command(folder, out, *longer),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    end = time.time() + 240
    while not list(out.glob(f"*/{FILE_NAME}")):
        assert first.poll() is None, first.communicate()[0]
        assert time.time() < end
        time.sleep(0.01)
    launcher = psutil.Process(first.pid)
    workers = [
        process for process in launcher.children(recursive=True) if "blora_nb" in process.cmdline()
    ]
    for process in (launcher, *workers):
        process.kill()
    psutil.wait_procs(workers)
    assert len(workers) == 2
    finished = {p: p.stat().st_mtime_ns for p in out.glob(f"*/{FILE_NAME}")}
    assert finished
    assert len(finished) < len(NAMES)

    again = subprocess.run(
        command(folder, out, *longer), capture_output=True, text=True, timeout=400
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert all(f"process {number} of 2 trains" in again.stdout for number in (1, 2))
    assert all(p.stat().st_mtime_ns == kept for p, kept in finished.items())
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert sorted(row["folder"] for row in manifest) == sorted(NAMES)
    assert {row["state"] for row in manifest} == {"finished"}
    assert all(row["training"]["rank"] == 4 and 0 < row["loss"] < 10 for row in manifest)
    # the same as trained alone, whatever process and however often stopped
    alone = {"progress": False} | CHANGES | {"max_train_steps": 40}
    for name in NAMES:
        made = BLoRA.load(out / name)
        assert same_weights(made, train(pipe, folder / f"{name}.png", **alone))


@pytest.mark.slow
def test_one_failure_does_not_stop_the_others_and_is_in_the_manifest(
    pipe, folder, tmp_path, monkeypatch
):
    from blora_nb.cli import many_pictures
    from blora_nb.errors import TrainingError

    def sometimes(pipe_, pictures, *rest, **options):
        if "cat" in str(pictures):
            raise TrainingError("The loss became nan at step 3.")
        return train(pipe_, pictures, *rest, **options)

    monkeypatch.setattr(many_pictures, "train", sometimes)
    jobs = plan(folder, tmp_path / "out")
    failed = train_all(pipe, jobs, TrainingSettings.for_pipeline(pipe, **CHANGES), progress=False)
    manifest = json.loads(
        write_manifest(jobs, tmp_path / "out", failed).read_text(encoding="utf-8")
    )
    rows = {row["folder"]: row for row in manifest}
    assert len(failed) == 1
    assert rows["cat_wood"] == {
        "pictures": ["cat_wood.png"],
        "folder": "cat_wood",
        "state": "failed",
        "why": "The loss became nan at step 3.",
    }
    assert [row["state"] for row in rows.values()].count("finished") == 3
    with pytest.raises(FileExistsError, match="--resume_from_checkpoint latest"):
        check_output(jobs, resume=None)
    check_output(jobs, resume="latest")


def test_a_broken_picture_shows_before_the_work(folder, tmp_path):
    (folder / "broken.png").write_bytes(b"")
    with pytest.raises(ImageError, match="broken.png"):
        plan(folder, tmp_path / "out")
    (folder / "broken.png").unlink()
    Image.open(folder / "cat_wood.png").save(folder / "cat_wood.jpg")
    with pytest.raises(ValueError, match="same name"):
        plan(folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["Cat.png", "dog.png", "cat.jpg"], "Cat.png and cat.jpg have the same name"),
        (["Manifest.JSON.png", "dog.png"], "Manifest.JSON.png would get a folder"),
    ],
)
def test_capital_letters_make_no_folder_of_its_own(names, message):
    """On macOS and Windows they do not, and a training may be carried there."""
    with pytest.raises(ValueError, match=message):
        check_folder_names([Path(name) for name in names])


def test_a_manifest_is_json_where_a_file_does_not_say_its_loss(tmp_path):
    made().save(tmp_path / "cat")
    path = write_manifest([Job({Path("cat.png"): None}, tmp_path / "cat")], tmp_path)
    (row,) = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert row["state"] == "finished"
    assert row["loss"] is None


def test_names_are_no_trouble(pipe, folder, tmp_path):
    """One that is no UTF-8, as old archives have them; one that is taken.

    And a folder that holds another picture's B-LoRA.
    """
    odd = folder / os.fsdecode(b"caf\xe9.png")
    shutil.copy(folder / "cat_wood.png", odd)
    jobs = plan(odd, tmp_path / "odd")
    settings = TrainingSettings.for_pipeline(pipe, **CHANGES | {"max_train_steps": 2})
    assert not train_all(pipe, jobs, settings, progress=False)
    assert json.loads(write_manifest(jobs, tmp_path).read_text(encoding="utf-8"))[0][
        "pictures"
    ] == [odd.name]
    assert check_output(jobs, "latest") == []
    with pytest.raises(FileExistsError, match="is the B-LoRA of caf"):
        check_output(plan(folder / "cat_wood.png", tmp_path / "odd"), "latest")
    odd.rename(folder / "manifest.json.png")
    with pytest.raises(ValueError, match="Rename it"):
        plan(folder, tmp_path / "out")


@pytest.fixture
def paths(folder):
    return sorted(folder.iterdir())


@pytest.fixture
def rows(paths):
    """The lines of a file with a caption for each picture."""
    captions = {path.name: f"A [v] {path.stem.split('_')[0]}" for path in paths}
    return [json.dumps({"file_name": n, "text": text}) for n, text in captions.items()]


# as Windows' Notepad writes it, too
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_captions_are_read(paths, rows, tmp_path, encoding):
    file = tmp_path / "captions.jsonl"
    file.write_text("\n".join(rows) + "\n\n", encoding=encoding)
    captions = read_captions(file, paths)
    texts = [captions[path] for path in paths]
    assert texts == ["A [v] boat", "A [v] cat", "A [v] fish", "A [v] star"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"file_name": "boat_neon.png", "text": "A"}', "no caption for cat_wood.png"),
        ('{"file_name": "x.png", "text": "A"}', "line 1: there is no picture x.png"),
        ("boat.png A boat", "line 1: expected"),
        ('{"file_name": ["a"], "text": "A"}', "line 1: expected"),
        ('{"file_name": "boat_neon.png", "text": " "}', "line 1: expected"),
        ('{"file_name": "boat_neon.png", "text": 5}', "line 1: expected"),
    ],
)
def test_captions_are_checked_line_by_line(paths, tmp_path, text, words):
    (tmp_path / "captions.jsonl").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_captions(tmp_path / "captions.jsonl", paths)


def test_one_picture_that_is_left_of_several_keeps_its_folder(folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    write_manifest(plan(folder, out), out)
    for name in NAMES[1:]:
        (folder / f"{name}.png").unlink()
    (job,) = plan(folder, out)
    assert job.folder == out / NAMES[0]


def test_a_later_picture_leaves_the_others_in_the_list(folder, tmp_path):
    """Of a folder that is gone there is no row any more."""
    out = tmp_path / "out"
    jobs = plan(folder, out)
    for job in jobs[1:]:
        job.folder.mkdir(parents=True)
    rows = json.loads(write_manifest(jobs, out).read_text(encoding="utf-8"))
    assert len(rows) == 4
    rows = json.loads(write_manifest(jobs[3:], out).read_text(encoding="utf-8"))
    assert [row["folder"] for row in rows] == [job.folder.name for job in jobs[1:]]


def test_a_name_as_long_as_the_system_takes_is_no_obstacle(tmp_path):
    picture = tmp_path / f"{'x' * 251}.png"
    draw("star", "neon", 5, 64).save(picture)
    (job,) = plan(picture, tmp_path / "out")
    assert list(job.pictures) == [picture]


def test_captions_of_another_encoding_are_refused(paths, rows, tmp_path):
    file = tmp_path / "captions.jsonl"
    file.write_bytes(rows[0].replace("boat", "b\u00f6at").encode("latin-1"))
    with pytest.raises(ValueError, match="captions.jsonl is not UTF-8 text"):
        read_captions(file, paths)


def test_each_round_has_every_picture_once_with_its_own_prompt(pipe):
    mean = torch.arange(3.0)[:, None, None, None].expand(3, 12, 12, 12)
    prompts = ["A [v] cat", "A [v] star", "A [v] boat"]
    embeds = [encode_prompt(pipe, prompt) for prompt in prompts]
    examples = Batches((mean, torch.zeros(3, 12, 12, 12)), embeds, size=2, seed=4)
    picked = [examples.batch(k) for k in range(24)]
    order = [int(m[0, 0, 0]) for batch in picked for m in batch[0]]
    rounds = [tuple(order[k : k + 3]) for k in range(0, 48, 3)]
    assert all(sorted(one) == [0, 1, 2] for one in rounds)
    assert len(set(rounds)) > 3
    for batch in picked:
        for m, embeds in zip(batch[0], batch[2]):
            assert torch.equal(embeds, examples.prompt_embeds[int(m[0, 0, 0])])


def test_one_from_all_is_that_of_no_single_picture(pipe, folder, tmp_path):
    captions = tmp_path / "captions.jsonl"
    rows = [{"file_name": f"{name}.png", "text": f"A [v] {name}"} for name in NAMES]
    captions.write_text("\n".join(map(json.dumps, rows)))
    (job,) = plan(folder, tmp_path / "out", together=True, captions_file=captions)
    settings = TrainingSettings.for_pipeline(pipe, several=True, **CHANGES)
    assert train_all(pipe, [job], settings, progress=False) == []
    together = BLoRA.load(tmp_path / "out")
    assert json.loads(together.metadata["pictures"]) == [f"{name}.png" for name in sorted(NAMES)]
    learned = [f"A [v] {name}" for name in sorted(NAMES)]
    assert json.loads(together.metadata["captions"]) == learned
    assert f'prompt "{learned[0]}"' in describe(together)
    alone = train(pipe, folder / f"{NAMES[0]}.png", settings, progress=False)
    assert not same_weights(together, alone)
    with pytest.raises(ValueError, match="--together"):
        plan(folder, tmp_path / "other", captions_file=captions)


@pytest.mark.slow
def test_class_pictures_are_made_and_weighed(pipe, folder, tmp_path):
    from blora_nb.cli.many_pictures import make_class_pictures

    settings = TrainingSettings.for_pipeline(
        pipe,
        **CHANGES,
        with_prior_preservation=True,
        class_prompt="A cat in wood style",
        class_data_dir=str(tmp_path / "made"),
        num_class_images=3,
    )
    make_class_pictures(pipe, settings)
    make_class_pictures(pipe, settings)
    assert len(list((tmp_path / "made").iterdir())) == 3
    light_settings = TrainingSettings(**{**vars(settings), "prior_loss_weight": 1e-6})
    plain_settings = TrainingSettings.for_pipeline(pipe, **CHANGES)
    heavy, light, without = (
        train(pipe, folder / "cat_wood.png", chosen, progress=False)
        for chosen in (settings, light_settings, plain_settings)
    )
    assert not same_weights(heavy, light)
    assert heavy.losses[0] > light.losses[0]
    assert len(without.losses) == len(heavy.losses)
    with pytest.raises(ValueError, match="class_prompt"):
        TrainingSettings(with_prior_preservation=True)
