"""LoRA as a training computes it gives what PEFT's own layers give.

The same predictions and gradients; and nothing stays behind.
"""

import copy

import pytest
import torch

from blora_nb.lora import IN_TRAINING, collect
from blora_nb.pipeline import encode_prompt
from blora_nb.running.lean_lora import lean_lora
from blora_nb.settings import TrainingSettings
from blora_nb.training import attach_lora, attach_style_beside, micro_conditioning

# pictures × positions × channels in the trained blocks
A_LAYERS_INPUT = 2 * 9 * 144


def model(pipe, dtype, content=False):
    """(U-Net with LoRA that acts, its trained parameters by name, a function that runs it).

    With `content`, the LoRA is a style half beside a content half that is kept.
    """
    settings, pipe = TrainingSettings(rank=8), copy.copy(pipe)
    unet = pipe.unet = copy.deepcopy(pipe.unet).to(dtype)
    attach_lora(unet, settings.rank)
    strengthen(unet)
    if content:
        kept = collect(unet, settings)
        unet.unload_lora()
        attach_style_beside(pipe, kept, settings)
        adapters = [m.active_adapters for m in unet.modules() if hasattr(m, "lora_A")]
        assert ["content", IN_TRAINING] in adapters
        strengthen(unet, IN_TRAINING)
    embeds, pooled = (t.to(dtype) for t in encode_prompt(pipe, "A [v]"))
    latents = torch.randn(2, 12, 12, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    conditions = {
        "text_embeds": pooled.expand(2, -1),
        "time_ids": micro_conditioning(96, 2, "cpu", dtype),
    }
    timesteps, states = torch.tensor([200, 700]), embeds.expand(2, -1, -1)

    def run():
        return unet(latents, timesteps, states, added_cond_kwargs=conditions).sample

    return unet, {n: p for n, p in unet.named_parameters() if p.requires_grad}, run


def strengthen(unet, adapter=""):
    for name, p in unet.named_parameters():
        if f"lora_B.{adapter}" in name:
            torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(len(name)))


def gradients(parameters, prediction):
    for p in parameters.values():
        p.grad = None
    prediction.float().square().mean().backward()
    return {name: p.grad.clone() for name, p in parameters.items()}


def distance(one, two):
    return ((one - two).float().norm() / two.float().norm()).item()


def flat(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("content", [False, True])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 0.06)])
def test_predictions_and_gradients_are_those_of_peft(pipe, dtype, near, content, scale):
    unet, parameters, run = model(pipe, dtype, content)
    for module in unet.modules():
        if hasattr(module, "lora_A"):
            module.scaling.update(dict.fromkeys(module.scaling, scale))
    with torch.no_grad():
        unet.disable_adapters()
        without = run()
        unet.enable_adapters()
    before = run()
    theirs = gradients(parameters, before)
    assert (before - without).abs().max() > 0.02
    assert parameters
    assert all(g.any() for g in theirs.values())
    with lean_lora(unet) as pefts_own:
        inside = run()
        ours = gradients(parameters, inside)
        with pefts_own(), torch.no_grad():
            assert torch.equal(run(), before)
        with torch.no_grad():
            assert torch.equal(run(), inside)
    assert inside.dtype == dtype
    assert {t.dtype for t in (*parameters.values(), *ours.values())} == {torch.float32}
    assert distance(inside, before) < near
    assert distance(flat(ours), flat(theirs)) < near
    # nothing stays behind
    with torch.no_grad():
        assert torch.equal(run(), before)
    for module in unet.modules():
        assert "lean" not in vars(module)
        assert not type(module).__name__.startswith("Lean")


def test_in_16_bits_lora_computes_in_16_bits(pipe):
    """No float32 copy of a layer's input, which would cost memory and be slow on a T4."""
    unet, _, run = model(pipe, torch.bfloat16)
    kept = []
    with (
        lean_lora(unet),
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
    ):
        run()
    weights = {p.data_ptr() for p in unet.parameters()}
    inputs = [t for t in kept if t.numel() >= A_LAYERS_INPUT and t.data_ptr() not in weights]
    wide = [t for t in inputs if t.dtype == torch.float32]
    assert kept
    assert not wide
