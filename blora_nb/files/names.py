"""How programs name the weights of a LoRA, and what their names mean here.

Our names are PEFT's endings on diffusers' layer names:
`unet.up_blocks.0.attentions.0.….attn1.to_q.lora_A.weight`. A name is read in three pieces: a prefix
(which model), a layer, and an ending (which matrix); any prefix may stand before any ending. Dots
and underscores in the layer are taken for the same, because kohya's files have only underscores.

To read the names of another program, add a row to `NAMINGS`; to write them, one to `WRITTEN`.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from blora_nb.blocks import BLOCK_OF_HALF, SGM_BLOCK_OF_HALF
from blora_nb.errors import BLoRAError, shown
from blora_nb.files.other_methods import method_of, model_of_names, refuse_method


class Naming(NamedTuple):
    """The names that one kind of program writes; all but `description` are regular expressions."""

    description: str  # what `BLoRA.format` says
    mark: str  # a file has these names if one contains it; the first row that fits counts
    prefix: str  # what stands before a layer's name
    down: str  # what stands behind it, without .weight: lora_A, [rank, in]
    up: str  # lora_B, [out, rank]
    writes_alphas: bool = False  # always, so that a file without them is odd


ADAPTER_ENDING = r"(?:\.[\w-]{1,80})?"  # PEFT may put the name of the adapter behind lora_A
KOHYA = Naming(
    "kohya with diffusers' block names",
    mark=r"(?:lora_unet|lycoris)_",
    prefix=r"lora_unet_|lycoris_unet_|lycoris_",
    down=r"\.lora_down",
    up=r"\.lora_up",
    writes_alphas=True,
)
NAMINGS = (
    Naming(
        "diffusers, old names (attention processors)",
        mark=r"\.processor\.",
        prefix=r"unet[._]",
        down=r"_lora(?:_layer)?\.down",
        up=r"_lora(?:_layer)?\.up",
    ),
    Naming(
        "diffusers with a doubled unet., as the authors' published weights",
        mark=r"unet\.unet\.",
        prefix=r"unet[._]",
        down=r"\.lora\.down",
        up=r"\.lora\.up",
    ),
    KOHYA._replace(
        description="kohya with SDXL's own block names",
        mark=r"(?:lora_unet|lycoris)_\w{0,40}?output_blocks_",
    ),
    KOHYA,
    Naming(
        "ComfyUI",
        mark=r"diffusion_model\.",
        prefix=r"(?:model\.)?diffusion_model\.",
        down=r"\.lora_down",
        up=r"\.lora_up",
    ),
    Naming(
        "PEFT",
        mark=r"base_model\.model\.",
        prefix=r"base_model\.model\.",
        down=rf"\.lora_A{ADAPTER_ENDING}",
        up=rf"\.lora_B{ADAPTER_ENDING}",
    ),
    Naming(
        "diffusers",
        mark="",
        prefix=r"unet[._]",
        down=r"\.lora(?:_layer|_linear_layer)?\.down",
        up=r"\.lora(?:_layer|_linear_layer)?\.up",
    ),
)


class WrittenNaming(NamedTuple):
    """The names that a file is written with."""

    readers: str  # the programs that read it
    prefix: str  # what stands before a layer's name
    down: str  # what stands behind it: lora_A, [rank, in]
    up: str  # lora_B, [out, rank]
    kohya: bool = False  # underscores for the dots of a layer's name, an alpha for each layer
    sgm_blocks: bool = False  # SDXL's own block names


WRITTEN = {
    "diffusers": WrittenNaming("diffusers", "unet.", "lora.down.weight", "lora.up.weight"),
    "peft": WrittenNaming("PEFT (a folder)", "base_model.model.", "lora_A.weight", "lora_B.weight"),
    "kohya": WrittenNaming(
        "A1111, Forge", "lora_unet_", "lora_down.weight", "lora_up.weight", kohya=True
    ),
}
WRITTEN["sgm"] = WRITTEN["kohya"]._replace(readers="ComfyUI, A1111", sgm_blocks=True)

# LyCORIS's names of the matrices of a layer
LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
PARTS = (*LOHA, *LOKR)


def _any_of(patterns: Iterable[str]) -> str:
    return "|".join(dict.fromkeys(patterns))


# what torch.compile and distributed training put before the names of the model inside
WRAPPER_NAMES = r"_orig_mod[._]|module[._]|_fsdp_wrapped_module[._]"
WRAPPER = re.compile(rf"(?<![^._])(?:{WRAPPER_NAMES})")
PREFIX = re.compile(rf"(?:{_any_of(n.prefix for n in NAMINGS)}|oft_unet_|{WRAPPER_NAMES})*")
ENDINGS = {
    "lora_A": re.compile(rf"(?:{_any_of(n.down for n in NAMINGS)})\.weight$"),
    "lora_B": re.compile(rf"(?:{_any_of(n.up for n in NAMINGS)})\.weight$"),
    "alpha": re.compile(r"\.alpha$"),
    **{part: re.compile(rf"\.{part}(?:\.weight)?$") for part in PARTS},
}
WHOLE_WEIGHT = re.compile(r"\.(?:weight|bias)$")
TEXT_ENCODER = re.compile(
    rf"(?:base_model\.model\.|{WRAPPER_NAMES})*"
    r"(?:(?:lora|oft)_te[12]?_|lycoris_te|text_encoder|text_model|te[12][._]|clip_[lg]|conditioner)"
)
EMBEDDING = re.compile(r"bundle_emb\.")  # textual inversions that some programs put beside a LoRA
OTHER_BLOCK = re.compile(
    r"(?:down_blocks|mid_block|up_blocks|input_blocks|middle_block|output_blocks|time_embed|"
    r"time_embedding|add_embedding|label_emb|class_embedding|encoder_hid_proj|conv_in|conv_out|"
    r"conv_norm_out|out)(?:_|$)"
)
HALF_OF_START = {
    f"{block.replace('.', '_')}_": half
    for blocks in (BLOCK_OF_HALF, SGM_BLOCK_OF_HALF)
    for half, block in blocks.items()
}

# the linear layers of a transformer block
ATTENTION_LAYERS = [
    f"attn{number}.{projection}"
    for number in (1, 2)
    for projection in ("to_q", "to_k", "to_v", "to_out.0")
]
LAYER_OF_FLAT_NAME = {
    name.replace(".", "_"): name for name in (*ATTENTION_LAYERS, "ff.net.0.proj", "ff.net.2")
} | {"attn1_to_out": "attn1.to_out.0", "attn2_to_out": "attn2.to_out.0"}
TRANSFORMER_BLOCK = re.compile(r"transformer_blocks_(0|[1-9][0-9]{0,2})_")


class Name(NamedTuple):
    """What a name in a file means."""

    half: str | None  # "content", "style", or None for other parts of the model
    layer: str  # in the U-Net, as `up_blocks.0.attentions.0.….to_q`; of other parts what they are
    part: str | None  # "lora_A", "lora_B", "alpha", one of LyCORIS's `PARTS`; None for others


def namings_of(keys: Iterable[str]) -> list[Naming]:
    """The namings that a file's names may follow, the likeliest first."""
    text = "\n".join(keys)
    return [naming for naming in NAMINGS if re.search(naming.mark, text)]


def format_of(keys: Iterable[str]) -> str:
    """The format of a file, in words, by its names."""
    return namings_of(keys)[0].description


def split_name(key: str) -> tuple[str, str | None]:
    """(prefix and layer, part) of a name; the part is None where it is no part of a LoRA."""
    for part, ending in ENDINGS.items():
        match = ending.search(key)
        if match:
            return key[: match.start()], part
    return key, None


def refused_first(keys: Iterable[str]) -> list[str]:
    """Names in the order in which they are read, so that an error is about the method."""
    return sorted(keys, key=lambda key: bool(split_name(key)[1]) or method_of(key) is None)


def flat_layer(stem: str) -> str:
    """A layer's name in the U-Net with underscores for dots, without all that stands before it."""
    inside = WRAPPER.sub("", PREFIX.sub("", stem, count=1))
    return inside.replace(".processor.", ".").replace(".", "_")


def read_name(key: str) -> Name:
    """The meaning of a weight's name in any of the known formats.

    Raises:
        BLoRAError: it is no LoRA weight of a U-Net or text encoder, or one of a refused method.
    """
    stem, part = split_name(key)
    known = part or WHOLE_WEIGHT.search(key) or method_of(key)
    if known and TEXT_ENCODER.match(stem):
        return Name(None, "text encoder", part)
    if EMBEDDING.match(key):
        return Name(None, "embedding", part)
    flat = flat_layer(stem)
    for start, half in HALF_OF_START.items():
        if flat.startswith(start):
            if part is None:
                refuse_method(key)
                raise BLoRAError(
                    f"{shown(key)} is a whole weight or bias of a layer (such as PEFT's "
                    "modules_to_save), which cannot be read beside a LoRA in the two blocks, and "
                    "without it the LoRA acts otherwise."
                )
            layer = _layer(flat.removeprefix(start), key)
            return Name(half, f"{BLOCK_OF_HALF[half]}.{layer}", part)
    if known and OTHER_BLOCK.match(flat):
        return Name(None, "other block", part)
    raise BLoRAError(
        f"{shown(key)} is not the name of a LoRA weight of SDXL in any known format."
        f"{hint_of_other_model(key)}"
    )


def hint_of_other_model(key: str) -> str:
    """A sentence, after a space, about the model to which a foreign name seems to belong."""
    model = model_of_names([key])
    return f" It looks like one for {model}; B-LoRA needs SDXL." if model else ""


def _layer(flat: str, key: str) -> str:
    """diffusers' name of a linear layer inside one of the blocks, from that with underscores."""
    if flat in ("proj_in", "proj_out"):
        return flat
    match = TRANSFORMER_BLOCK.match(flat)
    layer = LAYER_OF_FLAT_NAME.get(flat[match.end() :]) if match else None
    if match is None or layer is None:
        raise BLoRAError(f"{shown(key)} names a layer that SDXL's transformer blocks do not have.")
    return f"transformer_blocks.{match[1]}.{layer}"


def are_pefts(keys: Iterable[str]) -> bool:
    """Whether the names of a file are those that PEFT writes."""
    return any(key.startswith("base_model.") for key in keys)


def written_name(layer: str, part: str, format: str) -> str:
    """The name in a file of a layer's "lora_A", "lora_B", or "alpha" (only kohya's have one)."""
    naming = WRITTEN[format]
    if naming.sgm_blocks:
        for half, block in BLOCK_OF_HALF.items():
            layer = layer.replace(block, SGM_BLOCK_OF_HALF[half])
    if naming.kohya:
        layer = layer.replace(".", "_")
    ending = {"lora_A": naming.down, "lora_B": naming.up, "alpha": "alpha"}[part]
    return f"{naming.prefix}{layer}.{ending}"
