"""Keys and values of the prompt, computed once.

While the prompt stays the same, SDXL's 140 frozen layers that read the text (`to_k`, `to_v`) give
the same answer at every step of a training, and their weights, an eighth of the U-Net, are not
needed on the GPU meanwhile.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from blora_nb.running.placement import move_if_room

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


class Constant(nn.Module):
    """Stands in for a frozen linear layer: its output [batch, tokens, out] for the one prompt."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.value


class Projection(NamedTuple):
    """A frozen layer that sees only the prompt, and where it is held."""

    holder: nn.Module
    name: str
    layer: nn.Module


def text_projections(unet: "UNet2DConditionModel") -> list[Projection]:
    """All `attn2.to_k` and `attn2.to_v`; below LoRA where there is some."""
    found = []
    for name, attention in unet.named_modules():
        if not name.endswith(".attn2"):
            continue
        for projection in ("to_k", "to_v"):
            layer = getattr(attention, projection)
            if hasattr(layer, "base_layer"):
                found.append(Projection(layer, "base_layer", layer.base_layer))
            else:
                found.append(Projection(attention, projection, layer))
    return found


def movable(projections: list[Projection]) -> list[nn.Linear]:
    """The layers that can wait in the computer's memory; quantized ones stay where they are."""
    return [p.layer for p in projections if type(p.layer) is nn.Linear]


@contextmanager
def cached_text(
    unet: "UNet2DConditionModel", prompt_embeds: Tensor, wanted: bool = True
) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Inside, every frozen layer that sees only the prompt gives its answer to `prompt_embeds`.

    Its weights wait in the computer's memory, unless they are quantized.

    Args:
        prompt_embeds: [batch, tokens, channels].

    Yields:
        A context in which the layers are back, for other prompts.
    """
    projections = text_projections(unet) if wanted else []
    layers = [p.layer for p in projections]
    with torch.no_grad():
        constants = [Constant(layer(prompt_embeds.to(unet.dtype))) for layer in layers]
    here = prompt_embeds.device
    aside = torch.device("cpu") if here.type == "cuda" else here

    def put(modules: list, device: torch.device, move: Callable = nn.Module.to) -> None:
        for projection, module in zip(projections, modules, strict=True):
            setattr(projection.holder, projection.name, module)
        for layer in movable(projections):
            move(layer, device)

    @contextmanager
    def back() -> Iterator[None]:
        put(layers, here)
        try:
            yield
        finally:
            put(constants, aside)

    put(constants, aside)
    try:
        yield back
    finally:
        put(layers, here, move_if_room)
