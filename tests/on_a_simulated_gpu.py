"""What runs on a GPU and nowhere else, followed without one (see benchmarks/simulated_gpu.py).

Run by test_simulated_gpu.py, in a process of its own.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from blora_nb import training
from blora_nb.errors import TrainingError
from blora_nb.generation import generate
from blora_nb.lora import applied, remove
from blora_nb.pipeline import load_pipeline
from blora_nb.running import monitor
from blora_nb.running.memory import (
    DECODING,
    ENCODING,
    GIB,
    WORKING,
    choose_checkpointing,
    free_for_training,
    memory_need,
    pictures_at_once,
    unet_can_stay,
)
from blora_nb.running.monitor import Monitor
from blora_nb.running.placement import offloaded
from blora_nb.settings import TrainingSettings
from blora_nb.training import attach_lora, encode_image, run_steps, train
from full_sdxl import full_sdxl
from helpers import run_here, succeeded
from simulated_gpu import SimulatedGPU

SHORT = {"progress": False, "max_train_steps": 4}


@pytest.fixture
def gpu():
    with SimulatedGPU() as simulated:
        yield simulated


@pytest.fixture
def on_gpu(gpu):
    return load_pipeline(device="cuda")


def test_a_mistake_is_noticed(gpu):
    """The pretence itself.

    What a GPU refuses is refused, what it holds is counted, what waits for it is listed.
    """
    there = torch.ones(1024, device="cuda", requires_grad=True)
    assert gpu.live == 4096
    with pytest.raises(RuntimeError, match="same device"):
        there + torch.ones(1024)
    (there * 2).sum().backward()
    assert there.grad.device.type == "cuda"
    assert there.grad.tolist() == [2.0] * 1024
    assert gpu.waits == ["tolist"]
    torch.ones(3).to("cuda")
    torch.ones(3).pin_memory().to("cuda", non_blocking=True)
    assert gpu.waits == ["tolist", "a copy of (3,)"]
    assert gpu.live == 2 * 4096
    gpu.waits.clear()
    numbers, ordinary = torch.arange(4.0, device="cuda"), torch.empty(4)
    for wait in (
        lambda: numbers[numbers > 1],
        lambda: torch.equal(numbers, numbers),
        lambda: torch.unique(numbers),
        lambda: ordinary.copy_(numbers, non_blocking=True),
        lambda: torch._foreach_copy_([numbers], [ordinary], True),
    ):
        wait()
        assert len(gpu.waits) == 1, gpu.waits
        gpu.waits.clear()
    torch._foreach_copy_(
        list(torch.empty(4, pin_memory=True).split(4)), [numbers], non_blocking=True
    )
    assert not gpu.waits
    gpu.total = 10_000
    with pytest.raises(torch.OutOfMemoryError):
        torch.ones(1024, device="cuda")


def test_training_and_pictures_are_those_of_the_cpu(on_gpu, pipe, picture):
    there, here = (train(p, picture, learning_rate=1e-4, **SHORT) for p in (on_gpu, pipe))
    assert there.losses == pytest.approx(here.losses, rel=1e-5)
    options = {
        "content": here,
        "style": here,
        "seeds": [1, 2, 3],
        "num_inference_steps": 3,
        "progress": False,
    }
    assert pictures_at_once(on_gpu) == 8
    for one, two in zip(generate(on_gpu, "A [v]", **options), generate(pipe, "A [v]", **options)):
        assert np.abs(np.int16(one) - np.int16(two)).max() <= 2


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "snr_gamma": 5.0,
            "x0_loss_from": 2,
        },
        {"gradient_checkpointing": "full"},
    ],
)
def test_no_step_waits_for_the_gpu(gpu, picture, monkeypatch, dtype, changes):
    """Otherwise the GPU stands idle while the computer prepares the next step.

    Pictures in turn, a gradient scaler in float16; in between, only losses are read.
    """
    waits, between, on_step_end = [], [], Monitor.on_step_end

    def listed(*arguments):
        waits.append(list(gpu.waits))
        gpu.waits.clear()
        on_step_end(*arguments)
        between.append(set(gpu.waits))
        gpu.waits.clear()

    monkeypatch.setattr(Monitor, "on_step_end", listed)
    pictures = [picture, picture.rotate(90)] if changes.get("train_batch_size") else picture
    losses = train(
        load_pipeline(device="cuda", dtype=getattr(torch, dtype)), pictures, **changes, **SHORT
    ).losses
    assert waits[1:] == [[], [], []]
    assert between == [{"tolist"}] * 4
    assert np.isfinite(losses).all()


def test_sdxl_at_full_size_takes_what_was_counted_and_fits(gpu, monkeypatch):
    """Followed through real training steps, tensor by tensor, without their numbers.

    On a T4, and on cards of 8 GB and less.
    """
    pipe, peaks = full_sdxl(torch.float16), []
    draw, on_step_end = training.draw_step, Monitor.on_step_end

    def begin(*arguments):
        gpu.peak = gpu.live
        return draw(*arguments)

    def end(*arguments):
        peaks.append(gpu.peak)
        on_step_end(*arguments)

    monkeypatch.setattr(training, "draw_step", begin)
    monkeypatch.setattr(Monitor, "on_step_end", end)
    settings = TrainingSettings(max_train_steps=2)
    for total, mode in ((14.6, "none"), (7.6, "partial"), (6.8, "full")):
        gpu.total = int(total * GIB)
        assert choose_checkpointing(pipe, settings) == mode
        assert unet_can_stay(pipe, settings) == (mode == "none")
        away = [pipe.text_encoder, pipe.text_encoder_2]
        if not unet_can_stay(pipe, settings):
            away.insert(0, pipe.unet)
        with offloaded(*away):
            before = gpu.peak = gpu.live
            moments = encode_image(pipe, Image.new("RGB", (1024, 1024)), 1024)
            assert 0.9 * ENCODING < gpu.peak - before < ENCODING
            assert gpu.total - gpu.peak > 0.9 * WORKING
        attach_lora(pipe.unet, settings.rank)
        run_steps(pipe, moments, settings, progress=False)
        remove(pipe)
        counted = memory_need(pipe, settings, mode)
        expected = counted.weights + counted.lora + counted.activations
        assert peaks[-1] == pytest.approx(expected, rel=0.03)
        assert gpu.total - peaks[-1] > 0.9 * WORKING
    gpu.total = 80 * GIB
    with torch.no_grad():
        gpu.peak = before = gpu.live
        pipe.vae.decode(torch.zeros(1, 4, 128, 128, dtype=torch.float16, device="cuda"))
        assert 0.45 * DECODING < gpu.peak - before < 0.55 * DECODING


def test_what_fits_is_chosen_and_fits(gpu, on_gpu, picture):
    settings = TrainingSettings.for_pipeline(on_gpu)
    for mode in ("none", "partial", "full"):
        counted = memory_need(on_gpu, settings, mode)
        gpu.total += counted.beside_the_base - free_for_training(on_gpu)
        assert choose_checkpointing(on_gpu, settings) == mode
        assert free_for_training(on_gpu) == counted.beside_the_base
        base = gpu.peak = gpu.live
        train(on_gpu, picture, gradient_checkpointing=mode, **SHORT)
        assert gpu.total - gpu.peak > 0.9 * WORKING
        assert gpu.live <= base + 2**20


def test_what_finds_no_room_any_more_is_named_and_the_error_is_still_the_explained_one(
    gpu, on_gpu, picture, tmp_path
):
    """Somebody else took the memory meanwhile.

    An error that the caller is handling keeps its traceback.
    """
    base = gpu.live

    def shrink(step, *_):
        gpu.total = base - 2**16

    options = {"gradient_checkpointing": "none", "checkpointing_steps": 1, "max_train_steps": 3}
    handled = []
    try:
        raise KeyError("the caller's")
    except KeyError as mine:
        handled.append(mine)
        with (
            pytest.warns(UserWarning, match="no room left on cuda:0 for .*load the pipeline again"),
            pytest.raises(TrainingError, match="too small.*checkpoint-1 is complete"),
        ):
            train(on_gpu, picture, progress=shrink, output_dir=tmp_path, **options)
        handled.append(mine.__traceback__)
    assert handled[1] is not None


def test_what_was_learned_is_not_lost_when_there_is_no_room_at_the_end(gpu, picture):
    gpu.total = 80 * GIB
    fresh = load_pipeline(device="cuda")
    gpu.total = gpu.live + 80 * GIB

    def at_the_end(step, steps, loss):
        if step == steps:
            gpu.total = gpu.live

    with pytest.warns(UserWarning, match="no room left"):
        made = train(fresh, picture, progress=at_the_end, max_train_steps=4)
    assert len(made.losses) == 4


@pytest.mark.parametrize("after", [0, 2])
def test_a_card_that_is_too_small_is_explained_and_nothing_stays_on_it(
    gpu, on_gpu, picture, tmp_path, after
):
    """While the picture is encoded, or after two steps.

    Then there is not even room for LoRA beside the base, which comes back nevertheless.
    """
    base = gpu.live
    options = {"gradient_checkpointing": "none", "output_dir": tmp_path}
    options |= {"checkpointing_steps": 2, "max_train_steps": 4}

    def shrink(step=0, *_):
        if step == after:
            gpu.total = base + 2**18

    shrink()
    with pytest.raises(
        TrainingError,
        match=r"memory of cuda:0 is too small .*train_batch_size=1.*quantization=\"nf4\"",
    ) as caught:
        train(on_gpu, picture, progress=shrink, **options)
    assert ("checkpoint-2 is complete" in str(caught.value)) == (after == 2)
    assert applied(on_gpu) == []
    assert gpu.live <= base + 2**16
    assert {on_gpu.vae.device.type, on_gpu.text_encoder.device.type, on_gpu.unet.device.type} == {
        "cuda"
    }
    gpu.total = 80 * GIB
    options |= {"progress": False, "resume_from_checkpoint": "latest"}
    assert len(train(on_gpu, picture, **options).losses) == 4


def test_a_batch_that_does_not_fit_is_halved(gpu, on_gpu):
    def most(count):
        gpu.peak = gpu.live
        made = generate(
            on_gpu,
            "A fish",
            seeds=range(count),
            num_inference_steps=1,
            batch_size=count,
            progress=False,
        )
        return gpu.peak - gpu.live, made

    (one, _), (four, _) = most(1), most(4)
    gpu.total = gpu.live + (one + four) // 2
    _, made = most(4)
    assert len(made) == 4
    assert len(made[0].info["blora_nb"]["batch_seeds"]) in (2, 1)


def test_no_room_for_the_halves_or_the_words_is_explained_as_well(gpu, on_gpu, blora):
    base = gpu.live
    for more, halves in ((2**16, {"content": blora}), (2**10, {})):
        gpu.total = base + more
        with pytest.raises(
            MemoryError,
            match=r"cuda:0 is too small for one picture .*Try, in this order: --vae_tiling",
        ):
            generate(on_gpu, "A fish", **halves, progress=False)
        gpu.total = 80 * GIB
        assert applied(on_gpu) == []
        assert gpu.live <= base + 2**16
        assert len(generate(on_gpu, "A fish", **halves, num_inference_steps=1, progress=False)) == 1
        remove(on_gpu)


def test_no_room_for_pictures_at_a_checkpoint_ends_nothing(
    gpu, on_gpu, picture, tmp_path, monkeypatch
):
    """Also not where it is the models that draw which find no room to come back."""
    drawn, room, draw, write = [], gpu.total, training.draw_step, monitor.write_checkpoint

    def with_room(*arguments):
        gpu.total = room
        return draw(*arguments)

    def then_none(*arguments):
        path = write(*arguments)
        gpu.total = gpu.live + 2**18 if path.name == "checkpoint-2" else room
        return path

    monkeypatch.setattr(training, "draw_step", with_room)
    monkeypatch.setattr(monitor, "write_checkpoint", then_none)
    with pytest.warns(
        UserWarning, match="no room for what is made at checkpoints .*checkpoint-2 is complete"
    ):
        made = train(
            on_gpu,
            picture,
            output_dir=tmp_path,
            checkpointing_steps=2,
            on_checkpoint=lambda pipe, path: drawn.append(path.name),
            **SHORT,
        )
    assert len(made.losses) == 4
    assert drawn == ["checkpoint-4"]
    assert on_gpu.vae.device.type == "cuda"


def test_a_float16_vae_that_overflows_is_itself_again_after_a_picture_that_did_not_fit(
    gpu, monkeypatch
):
    """diffusers decodes with it in float32, and sets it back only if that went well."""
    pipe, seen = load_pipeline(device="cuda", dtype=torch.float16), []
    decode = pipe.vae.decode

    def too_large(latents, **options):
        seen.append(len(latents))
        if len(latents) > 1:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …"
            )
        return decode(latents, **options)

    monkeypatch.setattr(pipe.vae, "decode", too_large)
    options = {"num_inference_steps": 1, "progress": False}
    assert len(generate(pipe, "A fish", seeds=[0, 1], batch_size=2, **options)) == 2
    assert seen == [2, 1, 1]
    assert pipe.vae.dtype == torch.float16

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipe.vae, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(pipe, "A fish", **options)
    assert pipe.vae.dtype == torch.float16


def test_the_command_line_with_checkpoints_and_pictures(gpu, picture, tmp_path):
    picture.save(tmp_path / "star.png")
    out, made = tmp_path / "out", tmp_path / "made"
    command = ["train", "--instance_data_dir", tmp_path / "star.png", "--output_dir", out]
    command += ["--max_train_steps", 4, "--checkpointing_steps", 2, "--mixed_precision", "fp16"]
    command += ["--validation_prompt", "A [v]", "--num_validation_images", 1]
    assert "it fits" in succeeded(run_here(*command)).stdout
    assert (out / "validation.png").exists()
    command = ["generate", "--prompt", "A [c]", "--content_B_LoRA", out, "--output_path", made]
    succeeded(run_here(*command, "--num_inference_steps", 2, "--seeds", 3))
    assert [file.name for file in made.glob("*.png")] == ["A_c_seed3.png"]
