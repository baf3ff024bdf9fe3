"""LoRA as a training computes it, in a fraction of the operations: PEFT's layers stay what they are, and compute differently meanwhile.

PEFT's way is made for every kind of LoRA. Of what we train, base(x) + B(A(x)), the sum is part of the second product here, and a
scale of 1 is not multiplied by. On a base in 16 bits LoRA is computed in 16 bits, as autocast does it in the original, while its
weights and gradients stay float32: all of them are rounded at once before the U-Net runs, and not one by one in every layer. A fast
GPU waits for the computer to hand out operations, so each one less is time (counted in
benchmarks/followed.md).
"""

from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F


class _Round(torch.autograd.Function):
    """float32 tensors to 16 bits, their gradients back to float32; each way in one go."""

    @staticmethod
    def forward(ctx, dtype, *weights):
        rounded = [torch.empty_like(weight, dtype=dtype) for weight in weights]
        torch._foreach_copy_(rounded, weights)
        return tuple(rounded)

    @staticmethod
    def backward(ctx, *gradients):
        exact = [torch.empty_like(gradient, dtype=torch.float32) for gradient in gradients]
        torch._foreach_copy_(exact, gradients)
        return None, *exact


class _Lean:
    """Comes before PEFT's class of a layer; `lean` holds A [rank, in] and B [out, rank] of each adapter in the base's dtype."""

    def forward(self, x, *args, **kwargs):
        result = self.base_layer(x, *args, **kwargs)
        for adapter in self.active_adapters:
            if adapter in self.lean:
                a, b = self.lean[adapter]
                small = F.linear(x, a)
                if self.scaling[adapter] != 1:
                    small = small * self.scaling[adapter]
                result = torch.addmm(result.flatten(0, -2), small.flatten(0, -2), b.t()).view(
                    result.shape
                )
        return result


@cache
def _lean_class(kind):
    return type(f"Lean{kind.__name__}", (_Lean, kind), {})


@contextmanager
def lean_lora(unet):
    """Inside, the LoRA layers of a U-Net compute as said above. Yields a context in which they are PEFT's own, for whatever is done to those."""
    layers = [module for module in unet.modules() if hasattr(module, "lora_A")]
    kinds, dtype, hooks = [type(layer) for layer in layers], unet.dtype, []
    adapters = [(layer, name) for layer in layers for name in layer.lora_A]
    weights = [
        part[name].weight for layer, name in adapters for part in (layer.lora_A, layer.lora_B)
    ]
    trained = [w for w in weights if w.requires_grad]
    kept = {id(w): w.detach().to(dtype) for w in weights if not w.requires_grad}

    def prepare(*_):
        """Before each run of the U-Net: the weights of this step."""
        ready = trained if dtype == torch.float32 or not trained else _Round.apply(dtype, *trained)
        here = kept | dict(zip(map(id, trained), ready))
        for layer in layers:
            layer.lean = {}
        for (layer, name), a, b in zip(adapters, weights[::2], weights[1::2]):
            layer.lean[name] = (here[id(a)], here[id(b)])

    def begin():
        hooks.append(unet.register_forward_pre_hook(prepare))
        for layer, kind in zip(layers, kinds):
            layer.__class__ = _lean_class(kind)

    def end():
        hooks.pop().remove()
        for layer, kind in zip(layers, kinds):
            layer.__class__ = kind
            layer.__dict__.pop("lean", None)

    @contextmanager
    def as_before():
        end()
        try:
            yield
        finally:
            begin()

    begin()
    try:
        yield as_before
    finally:
        end()
