"""Keys and values of the prompt, computed once: while the prompt stays the same, so do all layers that see nothing but the prompt.

Cross-attention asks what the text says (`to_k`, `to_v`) at each of SDXL's 70 transformer layers. Frozen, these 140 layers give the
same answer at every step of a training, and their weights, an eighth of the U-Net, are not needed on the GPU meanwhile.
"""

from contextlib import contextmanager

import torch

from blora_nb.running.execution import move_if_room


class Constant(torch.nn.Module):
    """Stands in for a frozen linear layer: its output [batch, tokens, out] for the one prompt, whatever it is asked."""

    def __init__(self, value):
        super().__init__()
        self.register_buffer("value", value, persistent=False)

    def forward(self, x):
        return self.value


def text_projections(unet):
    """(the module that holds it, the name in there, the frozen layer) of all `attn2.to_k` and `attn2.to_v`; below LoRA where there is some."""
    found = []
    for name, attention in unet.named_modules():
        if name.endswith(".attn2"):
            for projection in ("to_k", "to_v"):
                layer = getattr(attention, projection)
                found.append(
                    (layer, "base_layer", layer.base_layer)
                    if hasattr(layer, "base_layer")
                    else (attention, projection, layer)
                )
    return found


def movable(places):
    """The layers of `text_projections` that can wait in the computer's memory; quantized ones stay where they are."""
    return [layer for *_, layer in places if type(layer) is torch.nn.Linear]


@contextmanager
def cached_text(unet, prompt_embeds, wanted=True):
    """Inside, every frozen layer that sees only the prompt answers with what it says to `prompt_embeds` [batch, tokens, channels].

    Its weights wait in the computer's memory, unless they are quantized. Yields a context in which all is as before, for other prompts.
    """
    places = text_projections(unet) if wanted else []
    with torch.no_grad():
        constants = [Constant(layer(prompt_embeds.to(unet.dtype))) for *_, layer in places]
    here = prompt_embeds.device
    aside = "cpu" if here.type == "cuda" else here

    def put(modules, device, move=torch.nn.Module.to):
        for (holder, name, _), module in zip(places, modules):
            setattr(holder, name, module)
        for layer in movable(places):
            move(layer, device)

    @contextmanager
    def as_before():
        put([layer for *_, layer in places], here)
        try:
            yield
        finally:
            put(constants, aside)

    put(constants, aside)
    try:
        yield as_before
    finally:
        put([layer for *_, layer in places], here, move_if_room)
