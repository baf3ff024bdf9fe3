"""A B-LoRA in no time: computed from what two small networks see in a picture.

Only for the teaching model. While it was trained, its content block heard 36 tokens about the shape
and its style block 16 about the style, and all other blocks the same neutral words
(`data/open_world`). Two networks, the **eyes**, have learned to say these tokens from a picture
alone. The prompt of a B-LoRA is constant, E [tokens, dim]. Let C be the same prompt with the eyes'
tokens in it. The layers that read the prompt, `to_k` and `to_v` of cross-attention, answer to E as
they would to C if

    W' = W + ΔW,    ΔW = W (C − E)ᵀ pinv(Eᵀ),

which is a LoRA in closed form, of a rank of at most the number of tokens that changed. It is a
B-LoRA of its own (`instant_blora`), and the better start for a training: from B = 0 the two blocks
often end where they draw the one picture, and mixtures less well.
"""

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from blora_nb.assets import DATA
from blora_nb.blocks import BLOCK_OF_HALF
from blora_nb.defaults import TINY_WORDS, can_start_instantly
from blora_nb.files.images import centre_square, read_image, to_tensor
from blora_nb.judge import statistics
from blora_nb.lora import IN_TRAINING, BLoRA
from blora_nb.pipeline import encode_prompt

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

EYES = DATA / "eyes.safetensors"
EYES_SIDE = 96  # pixels that the eyes look at
WIDTH = TINY_WORDS // 2  # numbers that one text encoder gives: the first half is content's
CONTENT_TOKENS = 36  # the last of a prompt
READS_THE_PROMPT = (".attn2.to_k", ".attn2.to_v")

Change = dict[str, Tensor]  # name of a layer → ΔW [out, in]


def instant_blora(
    pipe: "StableDiffusionXLPipeline",
    picture: str | Path | Image.Image,
    rank: int = CONTENT_TOKENS,
    prompt: str = "A [v]",
) -> BLoRA:
    """The B-LoRA of a picture without training.

    Args:
        pipe: the teaching model, from `load_pipeline`.
        picture: of which the middle square is used.
        rank: of its layers; what exceeds it is left out, the least important first.
        prompt: that is to mean the picture.

    Raises:
        ValueError: another pipeline than the teaching model.
        ImageError: the picture cannot be read.
    """
    state_dict = {}
    for layer, change in instant_change(pipe, read_image(picture), prompt).items():
        a, b = factors(change, rank)
        state_dict[f"unet.{layer}.lora_A.weight"] = a
        state_dict[f"unet.{layer}.lora_B.weight"] = b
    return BLoRA(state_dict, {"made_by": "blora_nb.instant_blora", "prompt": prompt})


@torch.no_grad()
def instant_change(pipe: "StableDiffusionXLPipeline", picture: Image.Image, prompt: str) -> Change:
    """What has to be added to the layers that read the prompt, float32.

    Args:
        picture: its middle square is seen at 96 × 96 pixels.

    Raises:
        ValueError: another pipeline than the teaching model.
    """
    if not can_start_instantly(pipe):
        raise ValueError(
            "An instant B-LoRA needs the teaching model, not quantized: its blocks were taught the "
            "words that it is made of. For another base train one with init_lora_weights gaussian."
        )
    neutral = encode_prompt(pipe, prompt)[0][0].float().cpu()
    content, style = load_eyes()(to_tensor(centre_square(picture, EYES_SIDE)))
    content_prompt, style_prompt = neutral.clone(), neutral.clone()
    content_prompt[-CONTENT_TOKENS:, :WIDTH] = content[0]
    style_prompt[-style.shape[1] :, WIDTH:] = style[0]
    inverse = torch.linalg.pinv(neutral.T.double())
    changes = {}
    for half, spoken in (("content", content_prompt), ("style", style_prompt)):
        turned = ((spoken - neutral).T.double() @ inverse).float()
        block = pipe.unet.get_submodule(BLOCK_OF_HALF[half])
        for name, layer in block.named_modules():
            if f".{name}".endswith(READS_THE_PROMPT):
                weight = getattr(layer, "base_layer", layer).weight.float().cpu()
                changes[f"{BLOCK_OF_HALF[half]}.{name}"] = weight @ turned
    return changes


def factors(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A [rank, in] and B [out, rank] of equal norm, whose product is nearest to a change.

    Where the change has a smaller rank, the rest of both is zero.
    """
    u, s, v = torch.linalg.svd(change, full_matrices=False)
    kept = s[:rank].where(s[:rank] > 1e-5 * s[0], torch.zeros(()))
    a, b = kept.sqrt()[:, None] * v[: len(kept)], u[:, : len(kept)] * kept.sqrt()
    missing = rank - len(kept)
    return F.pad(a, (0, 0, 0, missing)).contiguous(), F.pad(b, (0, missing)).contiguous()


@torch.no_grad()
def start_from(unet: nn.Module, change: Change) -> None:
    """Let the LoRA that has just been put on a U-Net begin with a change instead of with B = 0.

    Directions that the change does not use keep their random A and B = 0. Layers without LoRA are
    passed over.
    """
    for name, added in change.items():
        layer: Any = unet.get_submodule(name)
        if IN_TRAINING not in getattr(layer, "lora_A", {}):
            continue
        a, b = layer.lora_A[IN_TRAINING].weight, layer.lora_B[IN_TRAINING].weight
        first_a, first_b = factors(added, a.shape[0])
        used = first_b.any(0)
        a[used] = first_a[used].to(a)
        b[:, used] = first_b[:, used].to(b)


# ----------------------------------------------------------------------------------- the eyes


class ResidualConv(nn.Module):
    """Two 3 × 3 convolutions beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Eyes(nn.Module):
    """Pictures [batch, 3, 96, 96] in -1..1 → content [batch, 36, 96] and style [batch, n, 96].

    Args:
        style_tokens: how many tokens n speak of the style.
    """

    def __init__(self, style_tokens: int) -> None:
        super().__init__()
        self.shape_trunk = eyes_trunk((3, 24, 48, 96, 192))
        self.everywhere = nn.Linear(192, 192)  # what is ground and what is not, seen as a whole
        self.shape_after = ResidualConv(192)
        self.shape_head = nn.Conv2d(192, WIDTH, 1)
        self.shape_places = nn.Parameter(0.5 * torch.randn(CONTENT_TOKENS, WIDTH))
        self.style_trunk = eyes_trunk((3, 24, 48, 96, 160))
        self.style_head = nn.Sequential(
            nn.Linear(3 * 160, 512),
            nn.SiLU(),
            nn.Linear(512, style_tokens * WIDTH),
        )
        self.style_places = nn.Parameter(0.5 * torch.randn(style_tokens, WIDTH))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        shape = self.shape_trunk(pictures)
        whole = self.everywhere(shape.mean((2, 3)))[..., None, None]
        cells = self.shape_head(self.shape_after(shape + whole))
        content = even(cells.flatten(2).transpose(1, 2) + self.shape_places)
        looks = self.style_trunk(pictures)
        style = self.style_head(statistics(looks)).unflatten(1, (-1, WIDTH))
        return content, even(style + self.style_places)


def eyes_trunk(widths: tuple[int, ...]) -> nn.Sequential:
    """Levels that halve the side, each but the first with a residual block."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers.append(nn.Conv2d(before, after, 3, stride=2, padding=1))
        layers.append(ResidualConv(after) if before > 3 else nn.SiLU())
    return nn.Sequential(*layers)


def even(tokens: Tensor) -> Tensor:
    """Tokens of mean 0 and standard deviation 1 each."""
    return F.layer_norm(tokens, tokens.shape[-1:])


@cache
def load_eyes() -> Eyes:
    """The eyes that `data/train_eyes.py` trained."""
    from safetensors.torch import load_file

    weights = {name: tensor.float() for name, tensor in load_file(EYES).items()}
    eyes = Eyes(len(weights["style_places"]))
    eyes.load_state_dict(weights)
    return eyes.eval().requires_grad_(False)
