"""The names of SDXL's eleven transformer blocks, and which half of a B-LoRA a weight belongs to.

Source: Frenkel et al., "Implicit Style-Content Separation using B-LoRA" (arXiv 2403.14572),
section 4. The paper numbers the six inner blocks W1 to W6; W4 carries the content of a picture, W5
its style. Which blocks B-LoRA trains is said only here.
"""

from collections.abc import Iterable

TRANSFORMER_BLOCKS = (
    "down_blocks.1.attentions.0",
    "down_blocks.1.attentions.1",
    "down_blocks.2.attentions.0",  # W1
    "down_blocks.2.attentions.1",  # W2
    "mid_block.attentions.0",  # W3
    "up_blocks.0.attentions.0",  # W4
    "up_blocks.0.attentions.1",  # W5
    "up_blocks.0.attentions.2",  # W6
    "up_blocks.1.attentions.0",
    "up_blocks.1.attentions.1",
    "up_blocks.1.attentions.2",
)
CONTENT_BLOCK = "up_blocks.0.attentions.0"
STYLE_BLOCK = "up_blocks.0.attentions.1"
BLOCK_OF_HALF = {"content": CONTENT_BLOCK, "style": STYLE_BLOCK}
HALVES = tuple(BLOCK_OF_HALF)
COLOUR_OF_HALF = {"content": "#d55e00", "style": "#0072b2"}  # in all figures: orange, blue
# as in SDXL's own code, hence ComfyUI and A1111
SGM_BLOCK_OF_HALF = {"content": "output_blocks.0.1", "style": "output_blocks.1.1"}
PAPER_NAMES = {block: f"W{i + 1}" for i, block in enumerate(TRANSFORMER_BLOCKS[2:8])}
# self- and cross-attention, all four projections
ATTENTION_LINEARS = r".*\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"


def target_modules(*blocks: str) -> str:
    """The regular expression with which PEFT puts LoRA on every attention projection of blocks.

    Without arguments: the two blocks of B-LoRA (160 linear layers in SDXL).
    """
    check_blocks(blocks)
    names = "|".join(block.replace(".", r"\.") for block in blocks or (CONTENT_BLOCK, STYLE_BLOCK))
    return f"({names})" + ATTENTION_LINEARS


def check_blocks(names: Iterable[str]) -> None:
    """Raise a ValueError unless all of these are names of transformer blocks."""
    unknown = sorted(set(names) - set(TRANSFORMER_BLOCKS))
    if not unknown:
        return
    listed = ", ".join(unknown)
    if isinstance(names, str) or all(len(name) == 1 for name in names):
        listed = "a text instead of a list of names"
    raise ValueError(
        f"No transformer block of SDXL: {listed}. The blocks are: {', '.join(TRANSFORMER_BLOCKS)}."
    )


def half_of(key: str) -> str | None:
    """The half to which the state-dict key of a LoRA weight belongs: "content", "style" or None.

    >>> half_of("unet.up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.lora_A.weight")
    'style'
    >>> half_of("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight")
    """
    for half, block in BLOCK_OF_HALF.items():
        if f"{block}." in key:
            return half
    return None


def paper_name(block: str) -> str:
    """A short name for figures, such as "W4 content", "W5 style" or "W1".

    Blocks that the paper leaves out are "down 1.0" or "up 1.2".

    >>> [paper_name(block) for block in TRANSFORMER_BLOCKS[4:8]]
    ['W3', 'W4 content', 'W5 style', 'W6']
    """
    level, *numbers = block.replace("_blocks", "").replace(".attentions", "").split(".")
    name = PAPER_NAMES.get(block, f"{level} {'.'.join(numbers)}")
    halves = [half for half, its_block in BLOCK_OF_HALF.items() if its_block == block]
    return " ".join([name, *halves])
