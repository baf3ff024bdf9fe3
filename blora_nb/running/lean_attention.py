"""Attention as SDXL needs it: the same bits as diffusers', with less work around them.

diffusers' `Attention` serves many models. At each call it looks up which arguments its processor
takes (`inspect.signature`), and it divides by 1. With 140 such layers in the U-Net, a fast GPU
waits for the computer to do so (as in the size "thin" of benchmarks/training_speed.md).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import Attention


@cache
def _lean_class() -> type:
    """A subclass of diffusers' `Attention`; made late, as importing diffusers takes seconds."""
    from diffusers.models.attention_processor import Attention, AttnProcessor2_0

    class LeanAttention(Attention):
        def forward(
            self,
            hidden_states: Tensor,
            encoder_hidden_states: Tensor | None = None,
            attention_mask: Tensor | None = None,
            **more: Any,
        ) -> Tensor:
            if attention_mask is not None or more or type(self.processor) is not AttnProcessor2_0:
                return super().forward(hidden_states, encoder_hidden_states, attention_mask, **more)
            source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            query = self._split(self.to_q(hidden_states))
            key = self._split(self.to_k(source))
            value = self._split(self.to_v(source))
            attended = F.scaled_dot_product_attention(query, key, value)
            return self.to_out[0](attended.transpose(1, 2).flatten(2))

        def _split(self, x: Tensor) -> Tensor:
            """[batch, positions, heads × dim] to [batch, heads, positions, dim]."""
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    return LeanAttention


def is_plain(attention: "Attention") -> bool:
    """Whether there is no more to a layer than queries, keys, values and one layer behind them."""
    norms = ("spatial_norm", "group_norm", "norm_q", "norm_k", "norm_cross")
    more = [getattr(attention, norm) for norm in norms]
    more += [attention.residual_connection, attention.to_out[1].p]
    return not any(more) and attention.rescale_output_factor == 1


@contextmanager
def lean_attention(unet: "UNet2DConditionModel") -> Iterator[None]:
    """Inside, the attention layers of a U-Net compute as this module's docstring says."""
    from diffusers.models.attention_processor import Attention

    layers = [module for module in unet.modules() if type(module) is Attention and is_plain(module)]
    for layer in layers:
        layer.__class__ = _lean_class()
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = Attention
