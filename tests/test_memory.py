"""Memory: what is counted beforehand, what is recomputed, what is said when it was too much.

Nothing here ran on a GPU.
"""

import copy
import weakref

import pytest
import torch
from diffusers import DDPMScheduler

from activations import count_activations, meta_unet
from blora_nb.errors import TrainingError
from blora_nb.lora import applied
from blora_nb.pipeline import encode_prompt, merge_few_step_lora
from blora_nb.registry import note_options
from blora_nb.running.checkpoints import checkpoints
from blora_nb.running.device import needs_4_bits
from blora_nb.running.memory import GIB, choose_checkpointing, memory_need, memory_report
from blora_nb.running.optimized_unet import gradient_checkpointing
from blora_nb.settings import TrainingSettings
from blora_nb.training import (
    attach_lora,
    blora_loss,
    draw_step,
    encode_image,
    micro_conditioning,
    train,
)
from helpers import same_weights
from random_sdxl import unet_config

# the architecture, of which no weight is needed
SDXL_UNET = unet_config("full")
MODES = ("none", "partial", "full")


class Base:
    """As much of a pipeline as `memory_need` looks at."""

    def __init__(self, unet):
        self.unet, self.config = unet, {}


def compare_with_the_count(config, dtype, settings, vae_scale_factor, quantization=None):
    unet, _ = meta_unet(config, dtype, settings, vae_scale_factor=vae_scale_factor)
    base = Base(unet)
    note_options(base, quantization=quantization)
    for mode in MODES:
        kept, lora = count_activations(
            config,
            dtype,
            settings,
            mode,
            quantization=quantization,
            vae_scale_factor=vae_scale_factor,
        )
        need = memory_need(base, settings, mode)
        assert need.lora == 16 * lora
        assert need.activations == pytest.approx(kept, rel=0.03), mode


@pytest.mark.slow
@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize(
    "changes", [{}, {"resolution": 512, "rank": 16, "train_batch_size": 2}], ids=["large", "small"]
)
def test_what_sdxl_needs_is_what_is_counted_without_its_weights(changes, quantization):
    settings = TrainingSettings(**changes)
    compare_with_the_count(SDXL_UNET, torch.float16, settings, 8, quantization)


@pytest.mark.slow
def test_sdxl_of_32_bits_needs_twice_as_much():
    compare_with_the_count(SDXL_UNET, torch.float32, TrainingSettings(), 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_the_teaching_model_needs_is_what_is_counted(pipe, dtype):
    settings = TrainingSettings.for_pipeline(pipe)
    compare_with_the_count(dict(pipe.unet.config), dtype, settings, pipe.vae_scale_factor)


def test_the_count_is_what_a_real_loss_keeps(pipe, picture):
    """Counted on the meta device, against the tensors that PyTorch really saved on the CPU."""
    unet, settings, kept = copy.deepcopy(pipe.unet), TrainingSettings.for_pipeline(pipe), []
    attach_lora(unet, settings.rank)
    size = settings.train_batch_size
    moments = encode_image(pipe, picture, 96)
    generator = torch.Generator().manual_seed(0)
    draws = draw_step(moments, pipe.scheduler, 1.0, size, generator)
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    prompt = encode_prompt(pipe, "A [v]")
    conditioning = micro_conditioning(96, size, "cpu", torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        blora_loss(unet, scheduler, *draws, *prompt, conditioning)
    weights = {t.untyped_storage()._cdata for t in unet.state_dict().values()}
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in kept}
    real = sum(size for key, size in storages.items() if key not in weights)
    assert memory_need(pipe, settings, "none").activations == pytest.approx(real, rel=0.05)


@pytest.mark.slow
def test_recomputing_saves_memory_and_changes_nothing(pipe, picture):
    plain, partial, full = (
        train(pipe, picture, progress=False, max_train_steps=2, gradient_checkpointing=mode)
        for mode in MODES
    )
    assert plain.losses == partial.losses == full.losses
    assert same_weights(plain, partial)
    assert same_weights(plain, full)
    assert not pipe.unet.is_gradient_checkpointing
    settings = TrainingSettings.for_pipeline(pipe)
    sizes = [memory_need(pipe, settings, mode).activations for mode in MODES]
    assert sizes[0] > 1.1 * sizes[1] > 1.1 * 1.1 * sizes[2]
    with gradient_checkpointing(pipe.unet, "partial"):
        on = {
            name
            for name, m in pipe.unet.named_modules()
            if getattr(m, "gradient_checkpointing", False)
        }
    assert on == {"up_blocks.0.attentions.0", "up_blocks.0.attentions.1"}


def test_the_first_that_fits_is_chosen_and_reported(pipe):
    settings = TrainingSettings.for_pipeline(pipe)
    none, partial, full = (memory_need(pipe, settings, mode).beside_the_base for mode in MODES)
    free = (none, none - 1, partial - 1, full - 1)
    chosen = [choose_checkpointing(pipe, settings, size) for size in free]
    assert chosen == ["none", "partial", "full", "full"]
    asked = TrainingSettings(gradient_checkpointing="partial")
    assert choose_checkpointing(pipe, asked, 10**15) == "partial"
    assert "it fits" in memory_report(pipe, settings, none)
    assert "NOT fit" in memory_report(pipe, settings, 10**6)
    assert "train_batch_size=1" in memory_report(pipe, settings, 10**6)
    # of the computer's memory
    assert "are free beside the base model: it fits" in memory_report(pipe, settings)


def test_small_cards_get_a_base_of_4_bits():
    assert [needs_4_bits("cuda", gib * GIB) for gib in (80, 14.6, 7.8)] == [False, False, True]
    assert not needs_4_bits("cpu")


def test_out_of_memory_says_what_to_change_and_keeps_the_checkpoint(
    pipe, picture, tmp_path, monkeypatch
):
    from blora_nb import training

    steps, kept = 0, []

    def too_much(*arguments):
        nonlocal steps
        steps += 1
        if steps == 4:
            large = torch.zeros(10)
            kept.append(weakref.ref(large))
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 1.20 GiB. GPU 0 has …"
            )
        return blora_loss(*arguments)

    monkeypatch.setattr(training, "blora_loss", too_much)
    with pytest.raises(
        TrainingError,
        match=r"1.20 GiB\).*checkpoint-2 is complete: with gradient_checkpointing=\"full\" and "
        'resume_from_checkpoint="latest" .*a folder of their own.*'
        'train_batch_size=1.*gradient_checkpointing="full"',
    ) as caught:
        train(
            pipe,
            picture,
            progress=False,
            max_train_steps=8,
            checkpointing_steps=2,
            output_dir=tmp_path,
        )
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-2"]
    assert applied(pipe) == []
    # which needs a GPU
    assert "nf4" not in str(caught.value)
    assert caught.value.__context__
    assert kept[0]() is None


def test_lora_that_got_half_on_the_model_comes_off(pipe, picture, monkeypatch):
    from peft.tuners.lora import Linear

    update, names = Linear.update_layer, [name for name, _ in pipe.unet.named_modules()]

    def too_much(self, *arguments, **more):
        update(self, *arguments, **more)
        if sum(hasattr(module, "base_layer") for module in pipe.unet.modules()) == 5:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …"
            )

    monkeypatch.setattr(Linear, "update_layer", too_much)
    with pytest.raises(TrainingError, match="2.00 GiB"):
        train(pipe, picture, progress=False, max_train_steps=2)
    assert [name for name, _ in pipe.unet.named_modules()] == names


def test_after_lora_that_could_not_even_begin_the_next_training_works(pipe, picture, monkeypatch):
    from peft.tuners.lora import Linear

    with monkeypatch.context() as patch:
        patch.setattr(Linear, "__init__", lambda self: None)
        with pytest.raises(TypeError):
            train(pipe, picture, progress=False, max_train_steps=1)
    assert len(train(pipe, picture, progress=False, max_train_steps=1).losses) == 1


def test_a_picture_too_large_to_encode_leaves_the_vae_as_it_was(picture, monkeypatch):
    from blora_nb.pipeline import load_pipeline, tile_vae

    pipe, seen = load_pipeline(device="cpu", dtype=torch.bfloat16), []

    def too_large(pixels):
        seen.append((pixels.dtype, pipe.vae.dtype, pipe.vae.use_tiling))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …")

    tile_vae(pipe)
    monkeypatch.setattr(pipe.vae, "encode", too_large)
    with pytest.raises(TrainingError, match="2.00 GiB"):
        train(pipe, picture, progress=False, max_train_steps=2)
    assert seen == [(torch.float32, torch.float32, False)]
    assert pipe.vae.dtype == torch.bfloat16
    assert pipe.vae.use_tiling


@pytest.mark.parametrize(
    ("kind", "dtype"), [("nf4", torch.float32), ("int8", torch.float32), ("nf4", torch.bfloat16)]
)
@pytest.mark.slow
def test_a_quantized_base_trains(kind, dtype, picture, monkeypatch):
    """Values and gradients; diffusers asks for a GPU, bitsandbytes itself computes on a CPU too."""
    pytest.importorskip("bitsandbytes")
    from diffusers.quantizers.bitsandbytes import (
        BnB4BitDiffusersQuantizer,
        BnB8BitDiffusersQuantizer,
    )

    from blora_nb.pipeline import load_pipeline

    for quantizer in (BnB4BitDiffusersQuantizer, BnB8BitDiffusersQuantizer):
        monkeypatch.setattr(quantizer, "validate_environment", lambda self, *args, **kwargs: None)
        monkeypatch.setattr(quantizer, "update_device_map", lambda self, device_map: {"": "cpu"})

    pipe = load_pipeline(device="cpu", quantization=kind, dtype=dtype)
    names = [type(module).__name__ for module in pipe.unet.modules()]
    assert names.count("Linear4bit") + names.count("Linear8bitLt") > 100
    if kind == "nf4":
        with pytest.raises(ValueError, match="merged into a base model of 4 bits.*int8"):
            merge_few_step_lora(pipe, "any.safetensors")
    for module in pipe.unet.modules():
        # a packing for inference on some CPUs, which wants wider layers than these
        module.support_avx512bf16_for_cpu = False
    # the same draws
    blora, idle = (
        train(pipe, picture, progress=False, max_train_steps=40, learning_rate=rate)
        for rate in (5e-3, 1e-9)
    )
    assert all(t.dtype == torch.float32 for t in blora.state_dict.values())
    assert blora.losses[0] == pytest.approx(idle.losses[0], rel=1e-3)
    assert sum(blora.losses[-20:]) < 0.95 * sum(idle.losses[-20:])
