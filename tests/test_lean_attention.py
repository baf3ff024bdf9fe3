"""Attention with less ado gives the same bits as diffusers' own, and nothing stays behind."""

import copy

import pytest
import torch
from diffusers.models import attention_processor
from diffusers.models.attention_processor import Attention, AttnProcessor

from blora_nb.generation import generate
from blora_nb.lora import remove
from blora_nb.pipeline import encode_prompt
from blora_nb.running.lean_attention import lean_attention
from blora_nb.training import micro_conditioning, train


def runner(pipe):
    """(a U-Net of our own, a function that runs it)"""
    remove(pipe)
    unet = copy.deepcopy(pipe.unet)
    embeds, pooled = encode_prompt(pipe, "A [v]")
    latents = torch.randn(2, 12, 24, 24, generator=torch.Generator().manual_seed(0))
    conditions = {
        "text_embeds": pooled.expand(2, -1),
        "time_ids": micro_conditioning(96, 2, "cpu", torch.float32),
    }
    timesteps, states = torch.tensor([200, 700]), embeds.expand(2, -1, -1)

    def run():
        return unet(latents, timesteps, states, added_cond_kwargs=conditions).sample

    return unet, run


@pytest.fixture
def looked_up(monkeypatch):
    """The attention processors of which diffusers has looked up what they take."""
    found, own = [], attention_processor.inspect.signature

    def signature(of, *more, **options):
        if "AttnProcessor" in getattr(of, "__qualname__", ""):
            found.append(of)
        return own(of, *more, **options)

    monkeypatch.setattr(attention_processor.inspect, "signature", signature)
    return found


def test_predictions_and_gradients_are_the_same_bits(pipe, looked_up):
    unet, run = runner(pipe)
    layer = unet.get_submodule("up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")
    weight = layer.weight.requires_grad_()
    predicted = run()
    (gradient,) = torch.autograd.grad(predicted.square().mean(), weight)
    assert looked_up
    assert gradient.any()
    looked_up.clear()
    with lean_attention(unet):
        again = run()
        assert torch.equal(again, predicted)
        assert torch.equal(torch.autograd.grad(again.square().mean(), weight)[0], gradient)
        assert not looked_up
    kinds = {type(module) for module in unet.modules() if isinstance(module, Attention)}
    assert kinds == {Attention}


def test_another_processor_and_an_attention_with_more_to_it_are_left_to_diffusers(pipe):
    unet, run = runner(pipe)
    seen, layer = [], unet.get_submodule("mid_block.attentions.0.transformer_blocks.0")

    class Seeing(AttnProcessor):
        def __call__(self, *args, **kwargs):
            seen.append(self)
            return super().__call__(*args, **kwargs)

    layer.attn1.set_processor(Seeing())
    layer.attn2.rescale_output_factor = 2.0
    with torch.no_grad():
        plain = run()
        with lean_attention(unet):
            assert torch.equal(run(), plain)
            assert len(seen) == 2


def test_training_and_drawing_use_it(pipe, picture, looked_up):
    train(pipe, picture, max_train_steps=1, progress=False)
    generate(pipe, "A fish", num_inference_steps=1, progress=False)
    assert not looked_up
    assert not any(type(module).__name__ == "LeanAttention" for module in pipe.unet.modules())
