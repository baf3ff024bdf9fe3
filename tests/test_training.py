"""The training is the original's, replayed step by step by an independent loop."""

import copy
import functools
import json
import shutil
from dataclasses import asdict

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file

from blora_nb.assets import TINY_SDXL
from blora_nb.blocks import CONTENT_BLOCK, half_of
from blora_nb.errors import BLoRAError, CheckpointError, ImageError, TrainingError
from blora_nb.generation import generate, sample
from blora_nb.lora import BLoRA, applied, remove, set_alphas
from blora_nb.pipeline import encode_prompt, load_pipeline
from blora_nb.recipes import sample_weights
from blora_nb.running.loss_guard import LossGuard, steps_between_looks
from blora_nb.running.text_cache import cached_text
from blora_nb.settings import TrainingSettings
from blora_nb.training import (
    IN_TRAINING,
    attach_lora,
    blora_loss,
    diffusion_target,
    encode_image,
    make_optimizer,
    micro_conditioning,
    train,
)
from helpers import same_weights
from replay import LOSS_TOLERANCE, TRACE, WEIGHT_TOLERANCE, replay

SDXL_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}


def test_a_plain_loop_gives_the_same_losses_and_weights(pipe, picture):
    """In the original's manner, on a model that predicts noise; ours are fed with what it drew."""
    from peft import LoraConfig

    pipe = copy.copy(pipe)
    ours, theirs = copy.deepcopy(pipe.unet), copy.deepcopy(pipe.unet)
    # SDXL's: epsilon
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", **SDXL_BETAS)
    mean, std = encode_image(pipe, picture, 96)
    embeds, pooled = encode_prompt(pipe, "A [v]")

    torch.manual_seed(3)
    names = [
        f"up_blocks.0.attentions.{b}.transformer_blocks.{layer}.attn{a}.{p}"
        for b in (0, 1)
        for layer in (0, 1)
        for a in (1, 2)
        for p in ("to_q", "to_k", "to_v", "to_out.0")
    ]
    theirs.requires_grad_(False)
    config = LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=names)
    theirs.add_adapter(config)
    their_parameters = {n: p for n, p in theirs.named_parameters() if p.requires_grad}
    initial = {n: p.detach().clone() for n, p in their_parameters.items()}
    optimizer = torch.optim.AdamW(
        their_parameters.values(), lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-4, eps=1e-8
    )
    trace, their_losses = [], []
    for _ in range(5):
        latents = (mean + std * torch.randn(mean.shape)) * pipe.vae.config.scaling_factor
        noise, t = torch.randn_like(latents), torch.randint(0, 1000, (1,)).long()
        trace.append((latents, noise, t))
        conditions = {"text_embeds": pooled, "time_ids": torch.tensor([[96.0, 96, 0, 0, 96, 96]])}
        noisy = scheduler.add_noise(latents, noise, t)
        predicted = theirs(noisy, t, embeds, added_cond_kwargs=conditions).sample
        loss = torch.nn.functional.mse_loss(predicted.float(), noise.float(), reduction="mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(their_parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        their_losses.append(loss.item())

    parameters = attach_lora(ours, rank=4)
    our_named = {
        n.replace(f".{IN_TRAINING}.", ".default."): p
        for n, p in ours.named_parameters()
        if p.requires_grad
    }
    assert set(our_named) == set(initial)
    assert len(parameters) == 64
    with torch.no_grad():
        for name, p in our_named.items():
            p.copy_(initial[name])
    optimizer, losses = make_optimizer(parameters, TrainingSettings(learning_rate=1e-3)), []
    size = micro_conditioning(96, 1, "cpu", torch.float32)
    for latents, noise, t in trace:
        loss = blora_loss(ours, scheduler, latents, noise, t, embeds, pooled, size)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses == their_losses
    assert losses[0] != losses[1]
    assert all(torch.equal(p, their_parameters[name]) for name, p in our_named.items())


def test_the_authors_own_script_is_replayed(tmp_path):
    """Through the training's own steps, with all that makes them fast (benchmarks/replay.py).

    tests/record_original.py has recorded what it drew, and what came of it, on a random model;
    float32 sums differ a little from processor to processor.
    """
    found = replay("cpu", tmp_path)
    assert len(found.weights) == 64
    torch.testing.assert_close(found.losses, found.their_losses, rtol=LOSS_TOLERANCE, atol=0)
    for name, t in found.their_weights.items():
        torch.testing.assert_close(found.weights[name], t, rtol=0, atol=WEIGHT_TOLERANCE)
    assert found.holds
    before = found.before
    assert max((t - before[name]).abs().max() for name, t in found.their_weights.items()) > 5e-3


def test_the_original_is_given_the_same_size_of_the_picture():
    trace = load_file(TRACE)
    assert torch.equal(trace["time_ids"].float(), micro_conditioning(96, 1, "cpu", torch.float32))


def test_lora_starts_from_the_unchanged_model_with_the_right_scale(pipe):
    unet = copy.deepcopy(pipe.unet)
    parameters = attach_lora(unet.to(torch.bfloat16), rank=8, seed=1)
    assert all(p.dtype == torch.float32 for p in parameters)
    layers = {n: m for n, m in unet.named_modules() if hasattr(m, "lora_A")}
    assert len(layers) == 32
    assert {half_of(n) for n in layers} == {"content", "style"}
    for layer in layers.values():
        assert layer.scaling[IN_TRAINING] == 1.0
        assert layer.lora_B[IN_TRAINING].weight.abs().max() == 0
    # normal with standard deviation 1 / rank, PEFT's "gaussian"
    values = torch.cat([m.lora_A[IN_TRAINING].weight.detach().flatten() for m in layers.values()])
    assert values.std() == pytest.approx(1 / 8, rel=0.05)


def test_velocity_or_noise_is_read_from_the_scheduler(pipe):
    x, noise, t = torch.randn(2, 8, 4, 4), torch.randn(2, 8, 4, 4), torch.tensor([10, 900])
    velocity = DDPMScheduler.from_config(pipe.scheduler.config)
    alpha = velocity.alphas_cumprod[t].sqrt()[:, None, None, None]
    torch.testing.assert_close(
        diffusion_target(velocity, x, noise, t), alpha * noise - (1 - alpha**2).sqrt() * x
    )
    assert diffusion_target(DDPMScheduler(), x, noise, t) is noise


def test_training_is_deterministic_learns_and_leaves_the_model_as_it_was(pipe, picture, blora):
    remove(pipe)
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    one, two = (train(pipe, picture, progress=False, max_train_steps=3) for _ in range(2))
    assert same_weights(one, two)
    other = train(pipe, picture, progress=False, max_train_steps=3, seed=1)
    assert not same_weights(one, other)
    after = pipe.unet.state_dict()
    assert applied(pipe) == []
    assert before.keys() == after.keys()
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    # it starts from an instant B-LoRA, which knows most of the picture
    assert sum(blora.losses[-30:]) < 0.95 * sum(blora.losses[:10]) * 3


def test_progress_is_told_and_a_stop_inside_cleans_up(pipe, picture):
    seen = []

    def stop(step, steps, loss):
        seen.append((step, steps))
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(pipe, picture, progress=stop, max_train_steps=4)
    assert seen == [(1, 4), (2, 4)]
    assert applied(pipe) == []


def test_any_sdxl_pipeline_of_diffusers_will_do(picture):
    """Also one whose models nobody has frozen."""
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(TINY_SDXL)
    assert not encode_prompt(pipe, "A [v]")[0].requires_grad
    assert len(train(pipe, picture, progress=False, max_train_steps=3, rank=4).losses) == 3


def test_faults_are_explained(pipe, picture):
    with pytest.raises(ImageError, match="nowhere.png"):
        train(pipe, "nowhere.png", progress=False)
    with pytest.raises(TrainingError, match="smaller learning rate"):
        train(pipe, picture, progress=False, learning_rate=1e30, max_train_steps=20)
    assert applied(pipe) == []


@pytest.mark.parametrize("wrong", [{"resume_from_checkpoint": "latest"}, {"on_checkpoint": print}])
def test_what_would_be_ignored_without_a_folder_is_refused(pipe, picture, wrong):
    with pytest.raises(ValueError, match="need an output_dir"):
        train(pipe, picture, progress=False, **wrong)


def test_a_block_given_as_a_text_is_refused(pipe):
    with pytest.raises(ValueError, match="a text instead of a list of names"):
        attach_lora(pipe.unet, 4, 0, CONTENT_BLOCK)


def test_a_resolution_far_off_is_said(pipe, picture):
    settings = TrainingSettings(resolution=256, rank=4, max_train_steps=1)
    with pytest.warns(UserWarning, match="draws 96 px and resolution is 256.*for_pipeline"):
        train(pipe, picture, settings, progress=False)


def test_settings_may_be_numbers_of_numpy_and_pytorch():
    numbers = {"rank": np.int64(4), "learning_rate": np.float32(0.5)}
    settings = TrainingSettings(**numbers, max_train_steps=torch.tensor(3))
    assert (settings.rank, settings.learning_rate, settings.max_train_steps) == (4, 0.5, 3)
    assert json.dumps(asdict(settings))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("rank", 8.0),
        ("max_train_steps", "many"),
        ("learning_rate", "slow"),
        ("train_batch_size", 0),
        ("use_8bit_adam", "no"),
        ("instance_prompt", 5),
    ],
)
def test_settings_that_are_no_such_numbers_are_refused(pipe, picture, name, wrong):
    with pytest.raises(ValueError, match=f"{name} must be"):
        train(pipe, picture, progress=False, **{name: wrong})


def test_single_settings_go_before_those_of_an_object(pipe, picture):
    settings = TrainingSettings(resolution=96, rank=4, max_train_steps=1)
    again = train(pipe, picture, settings, progress=False, rank=None, max_train_steps=2)
    assert again.rank == 4
    assert len(again.losses) == 2


def test_a_list_without_pictures_is_refused(pipe):
    with pytest.raises(ImageError, match="list is empty"):
        train(pipe, [], progress=False)


def factors(scheduler, t):
    """The shares of the picture and of the noise at some timesteps, [n, 1, 1, 1] each."""
    cumulative = scheduler.alphas_cumprod[t][:, None, None, None]
    return cumulative.sqrt(), (1 - cumulative).sqrt()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_x0_loss_is_the_error_of_the_picture_that_follows(kind):
    t = torch.tensor([50, 400, 900])
    x, noise, wrong = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", prediction_type=kind, **SDXL_BETAS)
    alpha, sigma = factors(scheduler, t)
    noisy = scheduler.add_noise(x, noise, t)
    if kind == "epsilon":
        picture = (noisy - sigma * wrong) / alpha
    else:
        picture = alpha * noisy - sigma * wrong
    error = ((wrong - diffusion_target(scheduler, x, noise, t)) ** 2).mean(dim=(1, 2, 3))
    expected = ((picture - x) ** 2).mean(dim=(1, 2, 3))
    settings = TrainingSettings(x0_loss_from=10)
    weights = sample_weights(settings, scheduler, t, step=10)
    torch.testing.assert_close(weights * error, expected, rtol=1e-3, atol=1e-5)
    assert sample_weights(settings, scheduler, t, step=9) is None


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_weighs_as_its_paper_says(kind):
    t = torch.tensor([50, 400, 900])
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", prediction_type=kind, **SDXL_BETAS)
    alpha, sigma = factors(scheduler, t)
    snr = (alpha / sigma).flatten() ** 2
    weights = sample_weights(TrainingSettings(snr_gamma=5.0), scheduler, t, 1)
    torch.testing.assert_close(weights, snr.clamp(max=5) / (snr if kind == "epsilon" else snr + 1))


def test_min_snr_is_finite_where_nothing_of_the_picture_is_left(pipe):
    zero_snr = DDPMScheduler.from_config(pipe.scheduler.config)
    settings, last = TrainingSettings(snr_gamma=5.0), torch.tensor([999])
    assert torch.isfinite(sample_weights(settings, zero_snr, last, 1)).all()


def test_the_loss_of_accumulated_batches_is_their_mean(pipe, picture):
    # the weights stay what they are, so that losses can be compared
    still = {"progress": False, "train_batch_size": 1, "learning_rate": 1e-12}
    single = train(pipe, picture, max_train_steps=4, **still).losses
    double = train(pipe, picture, max_train_steps=2, gradient_accumulation_steps=2, **still).losses
    assert double == pytest.approx([(single[0] + single[1]) / 2, (single[2] + single[3]) / 2])


def test_the_learning_rate_follows_the_schedule(pipe, picture):
    options = {"progress": False, "max_train_steps": 3, "train_batch_size": 1}
    constant, linear = (
        train(pipe, picture, lr_scheduler=name, **options) for name in ("constant", "linear")
    )
    assert not same_weights(constant, linear)


def test_on_a_gpu_the_optimizer_is_fused(monkeypatch):
    """On the CPU, too, the fused kernel steps as the plain loop, to rounding."""
    parameters = [[torch.nn.Parameter(torch.full((8, 8), 0.5)) for _ in range(2)] for _ in range(2)]
    settings = TrainingSettings(learning_rate=1e-2)
    plain = make_optimizer(parameters[0], settings)
    monkeypatch.setattr(torch.nn.Parameter, "is_cuda", True)
    fused = make_optimizer(parameters[1], settings)
    assert fused.defaults["fused"] is True
    assert not plain.defaults["fused"]
    for step in range(20):
        for one, two in zip(*parameters):
            one.grad = torch.randn(8, 8, generator=torch.Generator().manual_seed(step))
            two.grad = one.grad.clone()
        plain.step()
        fused.step()
    torch.testing.assert_close(parameters[0][0], parameters[1][0], rtol=1e-5, atol=1e-6)


def test_losses_are_read_every_few_steps_without_losing_one():
    """As on a GPU: ten steps pass between two looks.

    A bad step is still named, and the weights of a good look come back.
    """
    weight, losses = torch.nn.Parameter(torch.zeros(2)), []
    watch = LossGuard([weight], losses, 1e-3, scaled=False)
    watch.every, known = 10, []
    for step in range(1, 26):
        weight.data.fill_(step)
        known += watch.add(torch.tensor(float(step)), torch.tensor(1.0))
        assert len(losses) == step // 10 * 10
    assert known == [(s, float(s)) for s in range(1, 21)]
    assert [loss for _, loss in watch.read_pending()] == [21.0, 22.0, 23.0, 24.0, 25.0]
    watch.add(torch.tensor(1.0), torch.tensor(1.0))
    watch.add(torch.tensor(1.0), torch.tensor(float("nan")))
    with pytest.raises(TrainingError, match="gradient became nan at step 27.*weights of step 20"):
        watch.read_pending()
    assert losses[-1] == 1.0
    assert weight.tolist() == [20.0, 20.0]


def test_a_look_comes_about_twice_a_second():
    steps = [steps_between_looks(10, seconds) for seconds in (0, 0.1, 1, 2.5, 10, 100)]
    assert steps == [10, 10, 5, 2, 1, 1]


def test_the_x0_loss_is_not_judged(pipe, picture, monkeypatch):
    """It divides by SNR: which timesteps are drawn moves it by orders of magnitude."""
    judged, saw = [], LossGuard.add

    def noted(watch, *step):
        judged.append(watch.judged)
        return saw(watch, *step)

    monkeypatch.setattr(LossGuard, "add", noted)
    train(pipe, picture, progress=False, max_train_steps=4, train_batch_size=1, x0_loss_from=3)
    assert judged == [True, True, False, False]


@pytest.fixture
def watch():
    return LossGuard([torch.nn.Parameter(torch.zeros(2))], [], 1e-3, scaled=False)


RISING = [0.01] * 20 + [50.0] * 20


def see(watch, losses, gradient=1.0):
    for loss in losses:
        watch.add(torch.tensor(loss), torch.tensor(gradient))


def test_a_loss_that_rises_stops_the_training(watch):
    with pytest.raises(TrainingError, match="has risen to 25"):
        see(watch, RISING)


def test_a_loss_that_is_not_judged_may_rise(watch):
    watch.judged = False
    see(watch, RISING)


def test_float16_gradients_may_overflow_while_the_scale_adapts_but_not_for_ever():
    watch = LossGuard([torch.nn.Parameter(torch.zeros(2))], [], 1e-3, scaled=True)
    see(watch, [0.5] * 19, float("inf"))
    see(watch, [0.5])
    with pytest.raises(TrainingError, match="gradient became inf at step 40"):
        see(watch, [0.5] * 20, float("inf"))


def test_a_stop_button_in_a_thread_works(pipe, picture):
    """Signals reach the main thread only; elsewhere the progress callback stops a training."""
    import threading

    class Cancelled(Exception):
        pass

    def cancel(step, steps, loss):
        raise Cancelled

    caught = []

    def work():
        try:
            train(pipe, picture, progress=cancel, max_train_steps=3)
        except Cancelled as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(caught) == 1
    assert applied(pipe) == []


def test_the_prompts_keys_and_values_are_computed_once(pipe, picture, tmp_path, monkeypatch):
    """The same bits as computing them at each step.

    And pictures made between the steps hear their own prompts.
    """
    from blora_nb.running import optimized_unet
    from blora_nb.running.text_cache import text_projections

    made = {}
    options = {"progress": False, "max_train_steps": 4, "train_batch_size": 1}
    short = {"num_inference_steps": 2, "progress": False}

    def draw(pipe, folder):
        made[folder] = sample(pipe, "A cat", **short)[0]

    with_checkpoints = {"output_dir": tmp_path, "checkpointing_steps": 2, "on_checkpoint": draw}
    cached = train(pipe, picture, **with_checkpoints, **options)
    asked = []
    layers = [layer for *_, layer in text_projections(pipe.unet)]
    handles = [layer.register_forward_hook(lambda *a: asked.append(1)) for layer in layers]
    train(pipe, picture, **options)
    # once each, whatever the number of steps
    assert len(asked) == len(layers) == 34
    for handle in handles:
        handle.remove()

    def never(unet, embeds):
        return cached_text(unet, embeds, False)

    with monkeypatch.context() as patch:
        patch.setattr(optimized_unet, "cached_text", lambda unet, embeds, _: never(unet, embeds))
        every_time = train(pipe, picture, **options)
    assert cached.losses == every_time.losses
    assert same_weights(cached, every_time)
    assert len(made) == 2
    for folder, image in made.items():
        half_way = BLoRA.load(folder)
        again = generate(pipe, "A cat", half_way, half_way, **short)[0]
        assert again.tobytes() == image.tobytes()


@pytest.fixture(scope="module")
def style_beside(pipe, picture, blora, tmp_path_factory):
    """The second step of two-step training, and the folder of its checkpoints."""
    folder = tmp_path_factory.mktemp("style")
    made = train(pipe, picture, output_dir=folder, content=blora, **TWO_STEP)
    assert applied(pipe) == []
    return made, folder


TWO_STEP = {"progress": False, "max_train_steps": 6, "checkpointing_steps": 3}


def first_checkpoint(folder, into):
    shutil.copytree(folder / "checkpoint-3", into / "checkpoint-3")
    return into


def test_a_style_half_is_trained_beside_a_content_half_that_stays(
    pipe, picture, blora, style_beside
):
    whole, folder = style_beside
    assert whole.halves == ("content", "style")
    assert whole.content.fingerprint == blora.content.fingerprint
    assert whole.metadata["content_fingerprint"] == blora.content.fingerprint
    assert not torch.equal(*(next(iter(b.style.layers.values()))[1] for b in (whole, blora)))
    # what the content half knows already is no error any more
    plain = train(pipe, picture, **TWO_STEP)
    assert whole.losses[0] < plain.losses[0]
    assert BLoRA.load(folder / "checkpoint-3").halves == ("style",)


def test_a_checkpoint_says_of_itself_what_the_finished_b_lora_says(style_beside):
    whole, folder = style_beside
    found = BLoRA.load(folder / "checkpoint-3").metadata
    for key in ("modelspec.thumbnail", "picture_sha256", "base_model_sha256", "learned"):
        assert found[key] == whole.metadata[key]


def test_a_style_half_beside_a_content_half_is_resumed(
    pipe, picture, blora, style_beside, tmp_path
):
    whole, folder = style_beside
    options = {"output_dir": first_checkpoint(folder, tmp_path), "content": blora, **TWO_STEP}
    again = train(pipe, picture, resume_from_checkpoint="latest", **options)
    assert again.losses == whole.losses
    assert again.fingerprint == whole.fingerprint


def test_resuming_knows_which_content_half_it_was(pipe, picture, blora, style_beside, tmp_path):
    other = BLoRA({name: t * 0.5 for name, t in blora.state_dict.items()})
    folder = first_checkpoint(style_beside[1], tmp_path)
    options = {"output_dir": folder, "content": other, **TWO_STEP}
    with pytest.raises(CheckpointError, match="belongs to another content half"):
        train(pipe, picture, resume_from_checkpoint="latest", **options)


def test_a_content_half_that_is_none_is_refused(pipe, picture, blora):
    with pytest.raises(BLoRAError, match="no content half"):
        train(pipe, picture, content=blora.style, **TWO_STEP)


@pytest.mark.slow
def test_compiled_blocks_train_the_same_and_are_plain_again(pipe, picture, monkeypatch):
    """With the part of the compiler that is quick; all of it takes half a minute here."""
    from diffusers import UNet2DConditionModel

    quick = functools.partialmethod(
        UNet2DConditionModel.compile_repeated_blocks, backend="aot_eager"
    )
    monkeypatch.setattr(UNet2DConditionModel, "compile_repeated_blocks", quick)
    plain, compiled = (
        train(pipe, picture, progress=False, max_train_steps=2, compile=wanted)
        for wanted in (False, True)
    )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert not torch._dynamo.utils.counters["graph_break"]
    assert plain.losses == pytest.approx(compiled.losses, rel=1e-5)
    assert all(m._compiled_call_impl is None for m in pipe.unet.modules())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.slow
def test_a_base_in_16_bits_trains_and_draws(dtype, picture, recwarn):
    """The LoRA stays in float32, float16's gradients are scaled, its VAE does not overflow.

    The losses are those of float32 to its precision.
    """
    pipe = load_pipeline(device="cpu", dtype=dtype)
    blora = train(pipe, picture, progress=False, max_train_steps=10)
    exact = train(load_pipeline(device="cpu"), picture, progress=False, max_train_steps=10)
    assert pipe.unet.dtype == pipe.vae.dtype == dtype
    assert all(t.dtype == torch.float32 for t in blora.state_dict.values())
    assert blora.losses[0] == pytest.approx(exact.losses[0], rel=0.02)
    assert sum(blora.losses) == pytest.approx(sum(exact.losses), rel=0.1)
    image = generate(pipe, "A [v]", blora, blora, num_inference_steps=3, progress=False)[0]
    assert image.convert("L").getextrema()[0] < image.convert("L").getextrema()[1]
    assert not [w for w in recwarn if "lr_scheduler" in str(w.message)]


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, [250, 500, 750, 1000]),
        ({"max_train_steps": 150}, [38, 75, 113, 150]),
        ({"max_train_steps": 1}, [1]),
        ({"max_train_steps": 1000, "checkpointing_steps": 400}, [400, 800]),
    ],
)
def test_checkpoints_are_after_each_quarter_unless_asked_otherwise(changes, steps):
    settings = TrainingSettings(**changes)
    assert [step for step in range(1, 1001) if settings.checkpoint_at(step)] == steps


@pytest.mark.parametrize("settings", [None, TrainingSettings()])
def test_a_setting_that_does_not_exist_is_said_with_those_of_a_near_name(pipe, picture, settings):
    with pytest.raises(ValueError, match=r"no setting 'steps'\. Did you mean max_train_steps or"):
        train(pipe, picture, settings, progress=False, steps=50)
    with pytest.raises(ValueError, match=r"no setting 'xyz'\. help\(TrainingSettings\)"):
        train(pipe, picture, settings, progress=False, xyz=1)


def test_alphas_changed_at_a_checkpoint_leave_the_half_in_training_on(
    pipe, picture, blora, tmp_path
):
    active = []

    def change(pipe, folder):
        set_alphas(pipe, content_alpha=0.5)
        active.append(sorted(pipe.unet.active_adapters()))
        set_alphas(pipe, content_alpha=1)

    options = {"output_dir": tmp_path, "checkpointing_steps": 3, "on_checkpoint": change}
    train(pipe, picture, content=blora, progress=False, max_train_steps=3, **options)
    assert active == [["content", IN_TRAINING]]
