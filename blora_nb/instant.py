"""A B-LoRA in no time: computed from what two small networks see in a picture.

Only for the teaching model. While it was trained, its content block heard 36 tokens about the shape
and its style block 36 about the style, one for each cell of a 6 × 6 grid, and all other blocks the
same neutral words (`data/open_world`). Two networks, the **eyes**, have learned to say these tokens
from a picture alone. The prompt of a B-LoRA is constant, E [tokens, dim]. Let C be the same prompt
with the eyes' tokens in it. The layers that read the prompt, `to_k` and `to_v` of cross-attention,
answer to E as they would to C if

    W' = W + ΔW,    ΔW = W (C − E)ᵀ pinv(Eᵀ),

which is a LoRA in closed form, of a rank of at most the number of tokens that changed. Of E it
reads only the numbers of the half's own text encoder, which are enough for an exact solution. So
words for the style leave the content half as it is, and words for the object the style half. It is
a B-LoRA of its own (`instant_blora`), and the better start for a training: from B = 0 the two
blocks often end where they draw the one picture, and mixtures less well.
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
from blora_nb.defaults import TINY_CROSS_ATTENTION_DIM, can_start_instantly
from blora_nb.files.images import centre_square, read_image, to_tensor
from blora_nb.files.metadata import MADE_INSTANTLY, model_hash
from blora_nb.lora import IN_TRAINING, BLoRA
from blora_nb.pipeline import encode_prompt

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

EYES = DATA / "eyes.safetensors"
EYES_SIDE = 96  # pixels that the eyes look at
WIDTH = TINY_CROSS_ATTENTION_DIM // 2  # numbers that one text encoder gives
# the first encoder speaks of content, the second of style
OWN_NUMBERS = {"content": slice(0, WIDTH), "style": slice(WIDTH, 2 * WIDTH)}
TOKENS = 36  # the last of a prompt: one for each cell of a 6 × 6 grid
READS_THE_PROMPT = (".attn2.to_k", ".attn2.to_v")

Change = dict[str, Tensor]  # name of a layer → ΔW [out, in]


def instant_blora(
    pipe: "StableDiffusionXLPipeline",
    picture: str | Path | Image.Image,
    rank: int = TOKENS,
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
        # without the zeros that fill it up to the rank, as a file has it
        used = max(1, int(b.any(0).sum()))
        a, b = a[:used], b[:, :used].contiguous()
        state_dict[f"unet.{layer}.lora_A.weight"] = a
        state_dict[f"unet.{layer}.lora_B.weight"] = b
    name, sha256 = model_hash(pipe)
    metadata = {"made_by": MADE_INSTANTLY, "modelspec.trigger_phrase": prompt, "base_model": name}
    return BLoRA(state_dict, metadata | ({"base_model_sha256": sha256} if sha256 else {}))


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
    eyes, seen = load_eyes(), to_tensor(centre_square(picture, EYES_SIDE))
    changes = {}
    for half, its_own in OWN_NUMBERS.items():
        spoken = neutral.clone()
        spoken[-TOKENS:, its_own] = eyes[half](seen)[0]
        inverse = torch.linalg.pinv(neutral[:, its_own].T.double())
        turned = torch.zeros(2 * WIDTH, 2 * WIDTH)
        turned[:, its_own] = ((spoken - neutral).T.double() @ inverse).float()
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


class Eye(nn.Module):
    """Pictures [batch, 3, 96, 96] in -1..1 → tokens [batch, 36, 96], one a cell of a 6 × 6 grid."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.trunk = eye_trunk((3, 24, 48, 96, width))
        self.whole = nn.Linear(3 * width, width)  # what each cell is told of the others
        self.after = nn.Sequential(*(ResidualConv(width) for _ in range(depth)))
        self.speak = nn.Conv2d(width, WIDTH, 1)
        self.places = nn.Parameter(0.5 * torch.randn(TOKENS, WIDTH))

    def forward(self, pictures: Tensor) -> Tensor:
        cells = self.trunk(pictures)
        return even(self.said(cells, statistics(cells)) + self.places)

    def said(self, cells: Tensor, whole: Tensor) -> Tensor:
        cells = self.after(cells + self.whole(whole)[..., None, None])
        return self.speak(cells).flatten(2).transpose(1, 2)


class StyleEye(Eye):
    """An eye that also says in each cell what holds for the whole picture.

    Half of a style is hidden: the ground behind the object, the object's colours beside it.
    """

    def __init__(self, width: int, depth: int) -> None:
        super().__init__(width, depth)
        self.everywhere = nn.Sequential(
            nn.Linear(3 * width, 256),
            nn.SiLU(),
            nn.Linear(256, TOKENS * WIDTH),
        )

    def said(self, cells: Tensor, whole: Tensor) -> Tensor:
        return super().said(cells, whole) + self.everywhere(whole).unflatten(1, (TOKENS, WIDTH))


def build_eyes() -> nn.ModuleDict:
    """The untrained eyes, one for each half."""
    return nn.ModuleDict({"content": Eye(192, depth=1), "style": StyleEye(160, depth=2)})


def eye_trunk(widths: tuple[int, ...]) -> nn.Sequential:
    """Levels that halve the side, each but the first with a residual block."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers.append(nn.Conv2d(before, after, 3, stride=2, padding=1))
        layers.append(ResidualConv(after) if before > 3 else nn.SiLU())
    return nn.Sequential(*layers)


def statistics(features: Tensor) -> Tensor:
    """What a style is known by, [batch, 3 channels], of features [batch, channels, height, width].

    Mean and standard deviation over the picture, and the mean along its border.
    """
    sides = (features[..., 0, :], features[..., -1, :], features[..., 0], features[..., -1])
    border = torch.cat(sides, 2).mean(2)
    return torch.cat([features.mean((2, 3)), features.std((2, 3)), border], 1)


def even(tokens: Tensor) -> Tensor:
    """Tokens of mean 0 and standard deviation 1 each."""
    return F.layer_norm(tokens, tokens.shape[-1:])


@cache
def load_eyes() -> nn.ModuleDict:
    """The eyes that `data/train_eyes.py` trained."""
    from safetensors.torch import load_file

    eyes = build_eyes()
    eyes.load_state_dict({name: tensor.float() for name, tensor in load_file(EYES).items()})
    return eyes.eval().requires_grad_(False)
