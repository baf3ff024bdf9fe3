"""LoRA as a training needs it, in a fraction of PEFT's operations.

Of base(x) + B(A(x)) the sum is part of the second product, and nothing is multiplied by a scale of
1. On a base in 16 bits LoRA is computed in 16 bits, as autocast does in the original, while its
weights and gradients stay float32: all of them are rounded together before the U-Net runs. A fast
GPU waits for the computer to hand out operations, so each one less saves time (counted in
benchmarks/followed.md).
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


class _Round(torch.autograd.Function):
    """float32 tensors to 16 bits, their gradients back to float32; each way in one operation."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        rounded = [torch.empty_like(weight, dtype=dtype) for weight in weights]
        torch._foreach_copy_(rounded, weights)
        return tuple(rounded)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        exact = [torch.empty_like(gradient, dtype=torch.float32) for gradient in gradients]
        torch._foreach_copy_(exact, gradients)
        return None, *exact


class _Lean:
    """Comes before PEFT's class of a layer.

    Attributes:
        lean: A [rank, in] and B [out, rank] of each adapter, in the base's dtype.
    """

    lean: dict[str, tuple[Tensor, Tensor]]
    # PEFT's
    base_layer: torch.nn.Module
    active_adapters: list[str]
    scaling: dict[str, float]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result = self.base_layer(x, *args, **kwargs)
        for adapter in self.active_adapters:
            if adapter in self.lean:
                a, b = self.lean[adapter]
                small = F.linear(x, a)
                if self.scaling[adapter] != 1:
                    small = small * self.scaling[adapter]
                total = torch.addmm(result.flatten(0, -2), small.flatten(0, -2), b.t())
                result = total.view(result.shape)
        return result


@cache
def _lean_class(pefts_own: type) -> type:
    return type(f"Lean{pefts_own.__name__}", (_Lean, pefts_own), {})


@contextmanager
def lean_lora(unet: "UNet2DConditionModel") -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Inside, the LoRA layers of a U-Net compute as this module's docstring says.

    Yields:
        A context in which they are PEFT's own again, for whatever is done to those.
    """
    layers = [module for module in unet.modules() if hasattr(module, "lora_A")]
    classes: list[Any] = [type(layer) for layer in layers]
    dtype = unet.dtype
    pairs = {
        (layer, name): (layer.lora_A[name].weight, layer.lora_B[name].weight)
        for layer in layers
        for name in layer.lora_A
    }
    weights = [weight for pair in pairs.values() for weight in pair]
    trained = [weight for weight in weights if weight.requires_grad]
    frozen = {id(w): w.detach().to(dtype) for w in weights if not w.requires_grad}
    hooks = []

    def round_weights(*_: Any) -> None:
        """Before each run of the U-Net: the weights of this step."""
        rounded = trained
        if trained and dtype != torch.float32:
            rounded = _Round.apply(dtype, *trained)
        in_dtype = frozen | dict(zip(map(id, trained), rounded))
        for layer in layers:
            layer.lean = {}
        for (layer, name), (a, b) in pairs.items():
            layer.lean[name] = in_dtype[id(a)], in_dtype[id(b)]

    def begin() -> None:
        hooks.append(unet.register_forward_pre_hook(round_weights))
        for layer, pefts_own in zip(layers, classes):
            layer.__class__ = _lean_class(pefts_own)

    def end() -> None:
        hooks.pop().remove()
        for layer, pefts_own in zip(layers, classes):
            layer.__class__ = pefts_own
            vars(layer).pop("lean", None)

    @contextmanager
    def pefts_own_layers() -> Iterator[None]:
        end()
        try:
            yield
        finally:
            begin()

    begin()
    try:
        yield pefts_own_layers
    finally:
        end()
