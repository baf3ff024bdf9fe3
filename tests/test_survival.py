"""Trainings that are killed, stopped, short of disk or gone wrong.

What was done is kept, and going on gives the same bits.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from blora_nb.cli.finished import check_output
from blora_nb.cli.jobs import Job, plan
from blora_nb.cli.many_pictures import train_all, write_manifest
from blora_nb.errors import BLoRAError, CheckpointError, TrainingError, TrainingWarning
from blora_nb.evaluation.validation import validated, validation_pictures
from blora_nb.files.locating import FILE_NAME
from blora_nb.generation import generate
from blora_nb.lora import IN_TRAINING, BLoRA, applied
from blora_nb.pipeline import load_pipeline
from blora_nb.running.checkpoints import (
    STATE_NAME,
    TrainingState,
    checkpoints,
    checksum,
    find_checkpoint,
    other_settings,
    write_checkpoint,
)
from blora_nb.running.folder_lock import only_training_in
from blora_nb.settings import TrainingSettings
from blora_nb.training import train
from helpers import refused, run_here, same_weights

CHANGES = {
    "rank": 4,
    "train_batch_size": 2,
    "max_train_steps": 30,
    "checkpointing_steps": 3,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 3,
}
LATEST = {"progress": False, "resume_from_checkpoint": "latest"}


def start(picture, out, *more):
    """The command in a process of its own, which is not waited for."""
    options = [text for name, value in CHANGES.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "blora_nb", "train", "--device", "cpu", *options]
    command += ["--instance_data_dir", str(picture), "--output_dir", str(out), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path, process, seconds=120):
    end = time.time() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.time() < end
        time.sleep(0.005)


@pytest.fixture(scope="module")
def uninterrupted(pipe, picture):
    return train(pipe, picture, progress=False, **CHANGES)


@pytest.fixture(scope="module")
def half_way(pipe, picture, tmp_path_factory):
    """A folder with the checkpoints of steps 3 to 12."""
    folder = tmp_path_factory.mktemp("half")

    def stop(step, steps, loss):
        if step == 13:
            raise KeyError("the user's own error")

    with pytest.raises(KeyError):
        train(pipe, picture, progress=stop, output_dir=folder, **CHANGES)
    names = [path.name for path in checkpoints(folder)]
    assert names == [f"checkpoint-{step}" for step in (3, 6, 9, 12)]
    assert applied(pipe) == []
    return folder


@pytest.fixture
def copied(half_way, tmp_path):
    """A copy of `half_way` that a test may spoil."""
    return shutil.copytree(half_way, tmp_path / "out")


@pytest.mark.slow
def test_killed_at_random_and_resumed_is_bit_equal(picture, uninterrupted, tmp_path):
    picture.save(tmp_path / "a.png")
    out, chance = tmp_path / "out", random.Random(0)
    for least in (3, 15):
        step = chance.randrange(least, least + 10, 3)
        process = start(tmp_path / "a.png", out, "--resume_from_checkpoint", "latest")
        wait_for(out / f"checkpoint-{step}", process)
        time.sleep(chance.random() * 0.3)
        # kill -9: no handler runs
        process.kill()
        process.communicate()
    process = start(tmp_path / "a.png", out, "--resume_from_checkpoint", "latest")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert same_weights(BLoRA.load(out), uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_ctrl_c_ends_at_a_step_and_saves(picture, tmp_path, number):
    picture.save(tmp_path / "a.png")
    process = start(tmp_path / "a.png", tmp_path / "out")
    wait_for(tmp_path / "out" / "checkpoint-3", process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert 'resume_from_checkpoint="latest"' in errors
    assert "Traceback" not in errors
    kept = find_checkpoint(tmp_path / "out")
    assert BLoRA.load(kept).rank == 4
    assert f"after step {kept.name.split('-')[1]}." in errors


def test_ctrl_c_between_the_last_step_and_the_saving_loses_nothing(
    pipe, picture, tmp_path, monkeypatch
):
    from blora_nb.cli import many_pictures

    def interrupted(*arguments, **options):
        made = train(*arguments, **options)
        signal.raise_signal(signal.SIGINT)
        return made

    monkeypatch.setattr(many_pictures, "train", interrupted)
    jobs = [Job({tmp_path / f"{name}.png": None}, tmp_path / name) for name in "ab"]
    before = signal.getsignal(signal.SIGINT)
    for job in jobs:
        picture.save(*job.pictures)
    changes = CHANGES | {"max_train_steps": 4, "checkpointing_steps": 100}
    settings = TrainingSettings.for_pipeline(pipe, **changes)
    with pytest.raises(KeyboardInterrupt, match="resume_from_checkpoint"):
        train_all(pipe, jobs, settings, progress=False)
    assert BLoRA.load(jobs[0].folder).rank == 4
    assert not jobs[1].folder.exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_resume_in_a_notebook_is_bit_equal(pipe, picture, uninterrupted, copied):
    seen = []
    options = {"output_dir": copied, "resume_from_checkpoint": "latest", **CHANGES}
    resumed = train(pipe, picture, progress=lambda step, *_: seen.append(step), **options)
    assert same_weights(resumed, uninterrupted)
    assert resumed.losses == uninterrupted.losses
    assert seen[0] == 13


def cut_short(file, length):
    file.write_bytes(file.read_bytes()[:length])


def end_in_zeros(file):
    """As a power cut leaves a file."""
    file.write_bytes(file.read_bytes()[:-200] + bytes(200))


def put_back_the_state_before(file):
    shutil.copy(file.parent.parent / "checkpoint-9" / STATE_NAME, file)


DAMAGES = {
    "empty state": (STATE_NAME, lambda file: file.write_bytes(b"")),
    "cut state": (STATE_NAME, lambda file: cut_short(file, -100)),
    "cut weights": (FILE_NAME, lambda file: cut_short(file, file.stat().st_size // 2)),
    "no state": (STATE_NAME, Path.unlink),
    "not safetensors": (STATE_NAME, lambda file: file.write_text("a note")),
    "zeros in the state": (STATE_NAME, end_in_zeros),
    "zeros in the weights": (FILE_NAME, end_in_zeros),
    "another step's state": (STATE_NAME, put_back_the_state_before),
    "no metadata": (STATE_NAME, lambda file: save_file({"a": torch.zeros(2)}, file)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_checkpoint_is_named_and_the_one_before_is_taken(copied, damage):
    name, spoil = DAMAGES[damage]
    spoil(copied / "checkpoint-12" / name)
    with pytest.warns(UserWarning, match="checkpoint-12 is not complete"):
        assert find_checkpoint(copied).name == "checkpoint-9"
    with pytest.raises(CheckpointError, match="checkpoint-12 is not complete.*checkpoint-9"):
        find_checkpoint(copied, "checkpoint-12")


def test_a_training_goes_on_from_the_checkpoint_before_a_broken_one(
    pipe, picture, uninterrupted, copied
):
    cut_short(copied / "checkpoint-12" / STATE_NAME, -100)
    with pytest.warns(UserWarning, match="checkpoint-12"):
        resumed = train(pipe, picture, output_dir=copied, **LATEST, **CHANGES)
    assert same_weights(resumed, uninterrupted)
    assert (copied / "checkpoint-12.broken").is_dir()
    assert find_checkpoint(copied, "checkpoint-12")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rate": 2e-3}, "learning_rate was 0.001 and is 0.002"),
        ({"max_train_steps": 31}, "max_train_steps"),
    ],
)
def test_a_checkpoint_with_other_settings_is_refused(pipe, picture, half_way, changes, words):
    with pytest.raises(CheckpointError, match=words):
        train(pipe, picture, output_dir=half_way, **LATEST, **CHANGES | changes)
    assert applied(pipe) == []


def test_a_checkpoint_of_another_picture_is_refused(pipe, picture, half_way):
    with pytest.raises(CheckpointError, match="another picture"):
        train(pipe, picture.rotate(90), output_dir=half_way, **LATEST, **CHANGES)


def test_a_checkpoint_of_another_caption_is_refused(pipe, picture, half_way, tmp_path):
    picture.save(tmp_path / "captioned.png")
    captioned = {tmp_path / "captioned.png": "A [v] star"}
    with pytest.raises(CheckpointError, match="another caption"):
        train(pipe, captioned, output_dir=half_way, **LATEST, **CHANGES)


def test_a_checkpoint_of_another_dtype_is_refused(picture, half_way):
    other = load_pipeline(device="cpu", dtype=torch.bfloat16)
    with pytest.raises(CheckpointError, match="another dtype"):
        train(other, picture, output_dir=half_way, **LATEST, **CHANGES)


@pytest.mark.parametrize("part", ["text_encoder", "vae"])
def test_a_checkpoint_of_another_base_is_refused(fresh, picture, half_way, part):
    with torch.no_grad():
        next(p for p in getattr(fresh, part).parameters() if p.ndim == 1).add_(0.01)
    with pytest.raises(CheckpointError, match="another base model"):
        train(fresh, picture, output_dir=half_way, **LATEST, **CHANGES)


def test_a_checkpoint_that_is_further_than_the_training_is_refused(
    pipe, picture, half_way, tmp_path
):
    folder = at_a_constant_rate(half_way, tmp_path)
    changes = CHANGES | {"max_train_steps": 9, "lr_scheduler": "constant"}
    with pytest.raises(CheckpointError, match="12 steps behind it, more than the 9"):
        train(pipe, picture, output_dir=folder, **LATEST, **changes)


def test_a_checkpoint_that_is_not_there_is_named(pipe, picture, half_way):
    options = LATEST | {"resume_from_checkpoint": "lates"}
    with pytest.raises(CheckpointError, match="There is no checkpoint .*lates.*checkpoint-9"):
        train(pipe, picture, output_dir=half_way, **options, **CHANGES)


def test_two_trainings_at_once_do_not_mix_their_checkpoints(pipe, picture, tmp_path):
    """The second one ends before it writes anything, and the first one does not notice."""

    def start_another(step, steps, loss):
        if step == 4:
            refused = pytest.raises(FileExistsError, match="Another training is writing into")
            with refused, only_training_in(tmp_path / "." / "out"):
                pass

    train(pipe, picture, progress=start_another, output_dir=tmp_path / "out", **CHANGES)
    assert len(checkpoints(tmp_path / "out")) > 1
    with only_training_in(tmp_path / "out"):
        pass


def test_a_file_is_no_folder_for_checkpoints(pipe, picture, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is a file. Checkpoints need a folder"):
        train(pipe, picture, progress=False, output_dir=tmp_path / "file", **CHANGES)


def test_a_folder_with_checkpoints_is_not_written_over(pipe, picture, half_way):
    with pytest.raises(FileExistsError, match='resume_from_checkpoint="latest"'):
        train(pipe, picture, progress=False, output_dir=half_way, **CHANGES)
    assert applied(pipe) == []


def test_a_checkpoint_from_elsewhere_does_not_mix_with_those_of_the_folder(
    pipe, picture, half_way, copied, tmp_path
):
    found = {"progress": False, "resume_from_checkpoint": str(half_way / "checkpoint-12")}
    with pytest.raises(FileExistsError, match="checkpoints of an earlier training"):
        train(pipe, picture, output_dir=copied, **found, **CHANGES)
    made = train(pipe, picture, output_dir=tmp_path / "new", **found, **CHANGES)
    assert len(made.losses) == CHANGES["max_train_steps"]


def test_another_checkpoint_of_the_same_step_is_kept_aside(pipe, picture, copied):
    """A GPU that goes on from an earlier step does not come to the same bits."""
    other = train(pipe, picture, progress=False, **CHANGES | {"max_train_steps": 4, "seed": 1})
    path = copied / "checkpoint-6"
    before = BLoRA.load_unfinished(path)
    state = TrainingState({}, *[EmptyState()] * 3, torch.Generator(), [0.0] * 6, None)
    with pytest.warns(TrainingWarning, match="kept as checkpoint-6.earlier"):
        assert write_checkpoint(copied, other, state, TrainingSettings()) == path
    # the second time it is there already
    assert write_checkpoint(copied, other, state, TrainingSettings()) == path
    assert same_weights(BLoRA.load_unfinished(path), other)
    assert same_weights(BLoRA.load_unfinished(copied / "checkpoint-6.earlier"), before)


class EmptyState:
    """An optimizer, schedule or scaler that has nothing to keep."""

    last_epoch = 0

    def state_dict(self):
        return {"state": {}, "param_groups": []}


def test_a_setting_that_came_later_does_not_spoil_older_checkpoints():
    stored = asdict(TrainingSettings())
    del stored["x0_loss_from"]
    assert other_settings(stored, TrainingSettings()) == []
    assert other_settings(stored, TrainingSettings(x0_loss_from=3)) == [
        "x0_loss_from was None and is 3"
    ]


def at_a_constant_rate(half_way, folder):
    """The checkpoints as a training with a constant learning rate would have left them."""
    folder = shutil.copytree(half_way, folder / "constant")
    for path in checkpoints(folder):
        metadata = safe_open(path / STATE_NAME, "pt").metadata()
        texts = {name: metadata[name] for name in ("state", "settings", "weights")}
        settings = json.loads(texts["settings"])
        texts["settings"] = json.dumps(settings | {"lr_scheduler": "constant"})
        tensors = load_file(path / STATE_NAME)
        texts["sha256"] = checksum(tensors, texts)
        save_file(tensors, path / STATE_NAME, texts)
    return folder


def test_a_gradient_that_is_not_finite_stops_and_the_last_good_weights_are_kept(
    pipe, picture, uninterrupted, tmp_path
):
    layer = dict(pipe.unet.named_modules())["up_blocks.0.attentions.0.proj_out"]
    calls = 0

    def poison(module, grad_input, grad_output):
        nonlocal calls
        calls += 1
        return tuple(g * float("inf") if g is not None and calls == 8 else g for g in grad_input)

    handle = layer.register_full_backward_hook(poison)
    try:
        with pytest.raises(
            TrainingError,
            match=r"gradient became (nan|inf) at step 8.*smaller learning rate.*"
            "weights of step 6.*last_good-6.safetensors",
        ) as caught:
            train(pipe, picture, progress=False, output_dir=tmp_path, **CHANGES)
    finally:
        handle.remove()
    kept = BLoRA.load(tmp_path / "last_good-6.safetensors")
    assert same_weights(kept, caught.value.blora)
    assert same_weights(kept, BLoRA.load(tmp_path / "checkpoint-6"))
    assert applied(pipe) == []


def test_trouble_at_the_first_step_leaves_no_file(pipe, picture, tmp_path):
    layer = dict(pipe.unet.named_modules())["up_blocks.0.attentions.0.proj_out"]

    def poison(module, grad_input, grad_output):
        return tuple(g if g is None else g * float("nan") for g in grad_input)

    handle = layer.register_full_backward_hook(poison)
    try:
        with pytest.raises(TrainingError, match="nan at step 1.*Nothing had been learned yet"):
            train(pipe, picture, progress=False, output_dir=tmp_path, **CHANGES)
    finally:
        handle.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_rising_loss_stops_and_the_weights_from_before_the_rise_are_kept(pipe, picture, tmp_path):
    """The rise is noticed some ten steps after it began, by the median."""
    losses, weights = [], {}

    def break_it(step, steps, loss):
        losses.append(loss)
        with torch.no_grad():
            lora = {name: p for name, p in pipe.unet.named_parameters() if p.requires_grad}
            weights[step] = {name: p.clone() for name, p in lora.items()}
            if step == 60:
                torch._foreach_mul_(list(lora.values()), 30)

    with pytest.raises(
        TrainingError, match=r"loss has risen to \d\.\d+, ten times .* by step [67]\d.*last_good-"
    ) as caught:
        train(pipe, picture, progress=break_it, output_dir=tmp_path, max_train_steps=120)
    error = caught.value
    assert 20 <= error.step <= 60 < len(losses)
    assert max(losses[30:60]) < 0.5 < min(losses[61:])
    kept = BLoRA.load(tmp_path / f"last_good-{error.step}.safetensors")
    assert same_weights(kept, error.blora)
    before = {name.replace(f".{IN_TRAINING}", ""): w for name, w in weights[error.step].items()}
    assert all(
        torch.equal(w, before[key.removeprefix("unet.")]) for key, w in kept.state_dict.items()
    )


def test_the_picture_may_go_away_while_it_is_learned(pipe, picture, uninterrupted, tmp_path):
    picture.save(tmp_path / "a.png")

    def take_away(*step):
        (tmp_path / "a.png").unlink(missing_ok=True)

    made = train(pipe, tmp_path / "a.png", progress=take_away, **CHANGES)
    assert same_weights(made, uninterrupted)


def test_a_function_at_checkpoints_that_takes_the_lora_off_is_told_what_to_do(
    pipe, picture, tmp_path
):
    options = {"num_inference_steps": 2, "progress": False}
    before = generate(pipe, "A star", **options)[0]

    def take_off(pipe, folder):
        generate(pipe, "A star", num_inference_steps=1, progress=False)

    with pytest.raises(
        TrainingError, match=r"generation.sample instead of generate.*checkpoint-3 is complete"
    ):
        train(
            pipe,
            picture,
            progress=False,
            output_dir=tmp_path / "a",
            on_checkpoint=take_off,
            **CHANGES,
        )
    assert BLoRA.load(tmp_path / "a" / "checkpoint-3").rank == 4
    assert generate(pipe, "A star", **options)[0].tobytes() == before.tobytes()


@pytest.mark.slow
def test_going_on_from_an_earlier_checkpoint_keeps_the_pictures_of_the_later_ones(
    pipe, picture, copied
):
    validate = validation_pictures(pipe, "A star", 1)
    options = {"progress": False, "output_dir": copied, "on_checkpoint": validate, **CHANGES}
    for wanted in ("checkpoint-9", "checkpoint-24"):
        again = train(pipe, picture, resume_from_checkpoint=wanted, **options)
        assert len(again.losses) == 30
    drawn = [path.name for path, pictures in validated(copied).items() if len(pictures) == 1]
    assert drawn == [f"checkpoint-{step}" for step in range(9, 31, 3)]


@pytest.mark.slow
def test_pictures_that_a_kill_interrupted_are_made_when_it_goes_on(pipe, picture, tmp_path):
    validate = validation_pictures(pipe, "A star", 2)
    options = {"progress": False, "output_dir": tmp_path, **CHANGES | {"max_train_steps": 9}}

    def killed(pipe, folder):
        validate(pipe, folder)
        if folder.name == "checkpoint-6":
            next(folder.glob("*seed1.png")).unlink()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(pipe, picture, on_checkpoint=killed, **options)
    train(pipe, picture, on_checkpoint=validate, resume_from_checkpoint="latest", **options)
    assert [len(pictures) for pictures in validated(tmp_path).values()] == [2] * 3


def test_a_checkpoint_from_before_anything_was_learned_is_whole(pipe, picture, tmp_path):
    """At the first step of a warm-up the learning rate is 0."""
    more = {**CHANGES, "checkpointing_steps": 1, "max_train_steps": 2, "lr_warmup_steps": 1}
    more["init_lora_weights"] = "gaussian"
    plain = train(pipe, picture, progress=False, output_dir=tmp_path / "a", **more)
    shutil.rmtree(tmp_path / "a" / "checkpoint-2")
    resumed = train(pipe, picture, output_dir=tmp_path / "a", **LATEST, **more)
    assert same_weights(resumed, plain)
    with pytest.raises(BLoRAError, match="saved before it was trained"):
        BLoRA.load(tmp_path / "a" / "checkpoint-1")


def mount(*arguments):
    """Whether it worked."""
    return not subprocess.run(["mount", *arguments], capture_output=True).returncode


@pytest.fixture
def disk(tmp_path):
    """A real file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", folder):
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def saved_elsewhere(errors):
    """The file in which the error says that the B-LoRA is."""
    return Path(errors.split("it is in ")[1].split(";")[0])


@pytest.mark.slow
def test_a_full_disk_is_named_and_loses_nothing(picture, uninterrupted, half_way, disk, tmp_path):
    """The first checkpoint fits, the rest and the B-LoRA itself do not."""
    picture.save(tmp_path / "a.png")
    one = sum(f.stat().st_size + 4096 for f in (half_way / "checkpoint-3").iterdir())
    (disk / "ballast").write_bytes(b"x" * (2 * 2**20 - one - 60_000))
    process = start(tmp_path / "a.png", disk / "out")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1, errors
    assert "No space left" in errors
    assert "checkpoint-3" in errors
    assert "Traceback" not in errors
    saved = saved_elsewhere(errors)
    assert same_weights(BLoRA.load(saved), uninterrupted)
    shutil.rmtree(saved.parent)
    assert not list((disk / "out").glob(".*part"))
    assert not list((disk / "out").glob("*.part"))
    assert find_checkpoint(disk / "out")


def test_where_no_disk_has_room_the_others_are_tried_and_nothing_is_left(
    pipe, picture, disk, tmp_path, monkeypatch
):
    changes = CHANGES | {"max_train_steps": 4, "checkpointing_steps": 3}
    settings = TrainingSettings.for_pipeline(pipe, **changes)
    (disk / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(disk / "tmp"))
    jobs = [Job({tmp_path / f"{name}.png": None}, disk / name) for name in "ab"]
    for job in jobs:
        picture.save(*job.pictures)
    (disk / "ballast").write_bytes(b"x" * (2 * 2**20 - 40_000))
    with pytest.warns(UserWarning, match="No space left.*The training goes on"):
        failed = train_all(pipe, jobs, settings, progress=False)
    assert [job for job, _ in failed] == jobs
    for _, why in failed:
        assert "No space left" in why
        assert "no room for it either" in why
    assert [p.name for p in disk.rglob("*") if p.is_file()] == ["ballast"]


def test_a_read_only_disk_is_named_before_the_work(picture, disk, tmp_path):
    picture.save(tmp_path / "a.png")
    assert mount("-o", "remount,ro", disk)
    command = ["train", "--instance_data_dir", tmp_path / "a.png", "--output_dir", disk / "out"]
    refused(run_here(*command), "Read-only file system", "Nothing was done yet")


@pytest.mark.slow
def test_a_disk_that_becomes_read_only_meanwhile_loses_nothing(
    picture, uninterrupted, disk, tmp_path
):
    picture.save(tmp_path / "a.png")
    validation = ["--validation_prompt", "A star", "--num_validation_images", "1"]
    process = start(tmp_path / "a.png", disk / "out", *validation)
    wait_for(disk / "out" / "checkpoint-6", process)
    end = time.time() + 60
    # it fails while a file is open for writing
    while not mount("-o", "remount,ro", disk):
        assert time.time() < end
        time.sleep(0.01)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1, errors
    assert "The training goes on" in errors
    assert "Traceback" not in errors
    saved = saved_elsewhere(errors)
    assert same_weights(BLoRA.load(saved), uninterrupted)
    shutil.rmtree(saved.parent)


def test_a_file_that_appears_meanwhile_is_left_alone(pipe, picture, tmp_path):
    picture.save(tmp_path / "a.png")
    out = tmp_path / "out"
    (job,) = plan(tmp_path / "a.png", out)

    def interfere(pipe, folder):
        (out / FILE_NAME).write_text("somebody else's")

    settings = TrainingSettings.for_pipeline(pipe, **CHANGES | {"max_train_steps": 4})
    failed = train_all(pipe, [job], settings, on_checkpoint=interfere, progress=False)
    assert "written by another program" in failed[0][1]
    assert (out / FILE_NAME).read_text(encoding="utf-8") == "somebody else's"
    assert BLoRA.load(out / f"{Path(FILE_NAME).stem}-2.safetensors").rank == 4
    (row,) = json.loads(write_manifest([job], out, failed).read_text(encoding="utf-8"))
    assert row["state"] == "failed"
    (row,) = json.loads(write_manifest([job], out).read_text(encoding="utf-8"))
    assert row["why"].endswith("other formats are not opened.")
    message = "not a complete safetensors file.*Remove it, and the training goes on"
    with pytest.raises(BLoRAError, match=message):
        check_output([job], "latest")


@pytest.mark.filterwarnings("ignore:The pictures at")
@pytest.mark.parametrize(
    "error",
    [
        MemoryError("too small for one picture"),
        ValueError("NaN instead of a picture"),
        OSError("No space left"),
    ],
)
@pytest.mark.slow
def test_pictures_at_a_checkpoint_that_cannot_be_made_do_not_end_the_training(
    pipe, picture, uninterrupted, tmp_path, monkeypatch, error
):
    from blora_nb.evaluation import validation

    def too_large(*arguments, **options):
        raise error

    monkeypatch.setattr(validation, "draw_each", too_large)
    validate = validation_pictures(pipe, "A star", 1)
    options = {"progress": False, "output_dir": tmp_path, "on_checkpoint": validate, **CHANGES}
    with pytest.warns(UserWarning, match=f"checkpoint-30 could not all be made.*{error}.*goes on"):
        made = train(pipe, picture, **options)
    assert same_weights(made, uninterrupted)


def test_a_limit_never_takes_the_one_just_written(pipe, picture, tmp_path):
    """Also not where a broken one of a later step is there."""
    (tmp_path / "checkpoint-99").mkdir()
    (tmp_path / "checkpoint-99" / STATE_NAME).touch()
    options = LATEST | CHANGES | {"max_train_steps": 6, "checkpoints_total_limit": 1}
    with pytest.warns(UserWarning, match="checkpoint-99"):
        train(pipe, picture, output_dir=tmp_path, **options)
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-6", "checkpoint-99"]


def test_a_limit_keeps_the_newest(pipe, picture, tmp_path):
    train(pipe, picture, progress=False, output_dir=tmp_path, checkpoints_total_limit=2, **CHANGES)
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-27", "checkpoint-30"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_checkpoint(tmp_path).name == "checkpoint-30"
    assert TrainingSettings.for_pipeline(pipe).checkpoints_total_limit is None
