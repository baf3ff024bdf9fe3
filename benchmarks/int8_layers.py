"""Frozen linear layers kept in 8 bits and, but for torchao's weights, computed in 8 bits (W8A8).

Four ways, for `gpu.py` to compare: PyTorch's own int8 product with a backward pass for LoRA beside
it, bitsandbytes' layers without outliers, torchao's weights alone (the product in 16 bits), and
torchao's dynamic activations, which have no backward pass and serve generation only.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


class _Int8Product(torch.autograd.Function):
    """Rows in 8 bits times weights in 8 bits; the gradient's product is in 16 bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        rows = x.flatten(0, -2)
        row_scale = rows.abs().amax(1, keepdim=True).float().clamp_min(1e-8) / 127
        rounded = (rows / row_scale).round().to(torch.int8)
        product = torch._int_mm(rounded, weight.t()).float() * row_scale * scale
        return product.to(x.dtype).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        return gradient @ (weight * scale.unsqueeze(1)).to(gradient.dtype), None, None


class Int8Linear(nn.Linear):
    """A frozen layer: weights [out, in] in 8 bits, a scale for each output, one for each row."""

    scale: Tensor

    @classmethod
    def of(cls, layer: nn.Linear) -> "Int8Linear":
        new = cls(layer.in_features, layer.out_features, bias=False, device="meta")
        exact = layer.weight.detach().float()
        scale = exact.abs().amax(1).clamp_min(1e-8) / 127
        rounded = (exact / scale.unsqueeze(1)).round().to(torch.int8)
        new.weight = nn.Parameter(rounded, requires_grad=False)
        new.bias = layer.bias
        new.register_buffer("scale", scale)
        return new

    def forward(self, x: Tensor) -> Tensor:
        product = _Int8Product.apply(x, self.weight, self.scale)
        return product if self.bias is None else product + self.bias


def linear_layers(unet: "UNet2DConditionModel") -> dict[str, nn.Linear]:
    """Those of the transformer blocks, by name; the others see a single row, too few for int8."""
    modules = unet.named_modules()
    inside = ((name, layer) for name, layer in modules if ".transformer_blocks." in name)
    return {name: layer for name, layer in inside if isinstance(layer, nn.Linear)}


def use_int8(unet: "UNet2DConditionModel", way: str) -> None:
    """Change a U-Net without LoRA.

    Args:
        way: "own", "bitsandbytes" (of a U-Net loaded with quantization="int8"), "torchao weights"
            or "torchao dynamic".
    """
    layers = linear_layers(unet)
    if way == "own":
        for name, layer in layers.items():
            unet.set_submodule(name, Int8Linear.of(layer))
    elif way == "bitsandbytes":
        for layer in layers.values():
            layer.state.threshold = 0.0  # type: ignore[union-attr]
    else:
        from torchao import quantization

        kinds = {
            "torchao weights": quantization.Int8WeightOnlyConfig,
            "torchao dynamic": quantization.Int8DynamicActivationInt8WeightConfig,
        }
        quantization.quantize_(unet, kinds[way](), filter_fn=lambda layer, name: name in layers)
