"""Attention as SDXL needs it, the same to the bit with less ado: diffusers' layers stay what they are, and compute differently meanwhile.

diffusers' `Attention` serves many models. At each call it looks up which arguments its processor takes (`inspect.signature`), and it
divides by 1. With 140 such layers in the U-Net, a fast GPU waits for the computer to do so (as in the size "thin" of
benchmarks/training_speed.md).
"""

from contextlib import contextmanager
from functools import cache

import torch.nn.functional as F


@cache
def _kinds():
    """(diffusers' class, ours); importing diffusers takes seconds, for which a help text need not wait."""
    from diffusers.models.attention_processor import Attention, AttnProcessor2_0

    class LeanAttention(Attention):
        def forward(self, hidden_states, encoder_hidden_states=None, attention_mask=None, **more):
            if attention_mask is not None or more or type(self.processor) is not AttnProcessor2_0:
                return super().forward(hidden_states, encoder_hidden_states, attention_mask, **more)
            batch, positions, _ = hidden_states.shape
            source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            projected = self.to_q(hidden_states), self.to_k(source), self.to_v(source)
            heads = [
                x.view(batch, -1, self.heads, x.shape[-1] // self.heads).transpose(1, 2)
                for x in projected
            ]
            return self.to_out[0](
                F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(batch, positions, -1)
            )

    return Attention, LeanAttention


def is_plain(attention):
    """Whether queries, keys, values, and one layer behind them are all there is to an attention layer."""
    extras = (
        attention.spatial_norm,
        attention.group_norm,
        attention.norm_q,
        attention.norm_k,
        attention.norm_cross,
        attention.residual_connection,
        attention.to_out[1].p,
    )
    return not any(extras) and attention.rescale_output_factor == 1


@contextmanager
def lean_attention(unet):
    """Inside, the attention layers of a U-Net compute as said above."""
    diffusers_own, ours = _kinds()
    layers = [
        module for module in unet.modules() if type(module) is diffusers_own and is_plain(module)
    ]
    for layer in layers:
        layer.__class__ = ours
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = diffusers_own
