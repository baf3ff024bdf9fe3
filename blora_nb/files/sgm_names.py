"""The names that layers of an SDXL-shaped U-Net have in SDXL's own code.

Source: Stability AI's generative-models, `sgm/modules/diffusionmodules/openaimodel.py`.
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
BLOCK = re.compile(
    r"(down_blocks|mid_block|up_blocks)\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)"
    r"\.(\d+)\.?(.*)"
)


def sgm_name(layer: str, unet: "UNet2DConditionModel") -> str:
    """A layer's name in SDXL's own code.

    Args:
        layer: in diffusers' spelling, for instance `down_blocks.1.attentions.0.proj_in`.
    """
    if layer in ENDS:
        return ENDS[layer]
    match = BLOCK.fullmatch(layer)
    if not match:
        return layer
    level, index, kind, number, rest = match.groups()
    per_level = unet.config.layers_per_block + 1
    index, number = int(index or 0), int(number)
    if kind == "resnets":
        rest = RESNET.get(rest, rest)
    if level == "mid_block":
        return f"middle_block.{1 if kind == 'attentions' else 2 * number}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{per_level * (index + 1)}.0.op"
    if kind == "upsamplers":
        has_attention = getattr(unet.up_blocks[index], "attentions", None)
        return f"output_blocks.{per_level * (index + 1) - 1}.{2 if has_attention else 1}.{rest}"
    place = f"{per_level * index + number}"
    if level == "down_blocks":
        place = f"{per_level * index + number + 1}"  # conv_in is the first
    start = "input_blocks" if level == "down_blocks" else "output_blocks"
    return f"{start}.{place}.{1 if kind == 'attentions' else 0}.{rest}"
