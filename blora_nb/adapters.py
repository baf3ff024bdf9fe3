"""A B-LoRA on disk and in a pipeline: read, write, take one half, apply the halves with alphas, take them off again."""

from dataclasses import dataclass, field
from pathlib import Path
import json
import os
import warnings

import safetensors
import safetensors.torch
import torch

from .blocks import BLOCK_OF_HALF, half_of

FILE_NAME = "pytorch_lora_weights.safetensors"  # what diffusers and the original call it in a folder

# how a file spells the names, and how we do: as PEFT. diffusers, old and new, reads the first kind.
SPELLINGS = ((".lora.down.weight", ".lora_A.weight"), (".lora.up.weight", ".lora_B.weight"))
OLD_SPELLINGS = tuple((f".processor.to_{p}_lora.", f".to_{p}{'.0' if p == 'out' else ''}.lora.") for p in ("q", "k", "v", "out"))


class BLoRAError(ValueError):
    """A file or state dict that is no usable B-LoRA; the message says why."""


@dataclass
class BLoRA:
    """The LoRA weights of the content block, of the style block, or of both.

    Attributes:
        state_dict: PEFT's names (`unet.up_blocks.0.attentions.0….lora_A.weight` [rank, in] and
            `….lora_B.weight` [out, rank]) to float32 tensors; lora_alpha is the rank, so the scale is 1.
        metadata: text written into the file: prompt, training settings, versions.
        losses: the loss of each step, where it has just been trained; not written.
    """

    state_dict: dict
    metadata: dict = field(default_factory=dict)
    losses: list = field(default_factory=list, repr=False)

    def __post_init__(self):
        if not self.state_dict:
            raise BLoRAError("There is no weight in it.")
        for key, tensor in self.state_dict.items():
            if half_of(key) is None:
                raise BLoRAError(f"{key} belongs to neither {' nor '.join(BLOCK_OF_HALF.values())}, so this is no B-LoRA.")
            partner = key.replace("lora_A", "lora_B") if "lora_A" in key else key.replace("lora_B", "lora_A")
            if partner not in self.state_dict:
                raise BLoRAError(f"{key} is there without its partner {partner}; the file is incomplete.")
            if not torch.isfinite(tensor).all():
                raise BLoRAError(f"{key} holds NaN or infinite values; the training that made it went wrong.")

    @property
    def halves(self):
        """The halves it has: a tuple of "content" and "style"."""
        return tuple(half for half in BLOCK_OF_HALF if any(half_of(key) == half for key in self.state_dict))

    @property
    def rank(self):
        """The largest rank among its layers."""
        return max(t.shape[0] for key, t in self.state_dict.items() if key.endswith("lora_A.weight"))

    @property
    def content(self):
        """Its content half, a `BLoRA` of its own."""
        return self._half("content")

    @property
    def style(self):
        """Its style half, a `BLoRA` of its own."""
        return self._half("style")

    def _half(self, half):
        if half not in self.halves:
            raise BLoRAError(f"It has no {half} half, only {' and '.join(self.halves)}.")
        return BLoRA({key: t for key, t in self.state_dict.items() if half_of(key) == half}, self.metadata)

    @classmethod
    def load(cls, path):
        """Read a safetensors file, or a folder with `pytorch_lora_weights.safetensors` in it.

        Both diffusers' names and the doubled `unet.unet.` of the authors' published weights are read.

        Raises:
            BLoRAError: missing, not safetensors, or no B-LoRA.
        """
        path = Path(path)
        file = path / FILE_NAME if path.is_dir() else path
        if not file.is_file():
            raise BLoRAError(f"There is no file {file}. Train one with: python -m blora_nb train --instance_data_dir PICTURE --output_dir FOLDER")
        try:
            with safetensors.safe_open(file, "pt") as opened:
                metadata = opened.metadata() or {}
                tensors = {key: opened.get_tensor(key) for key in opened.keys()}
        except (safetensors.SafetensorError, OSError) as error:
            raise BLoRAError(f"{file} is not a complete safetensors file ({error}). Copy or download it again; other formats are not opened.") from None
        try:
            return cls(_scaled({_our_key(key): t.float() for key, t in tensors.items()}, metadata), metadata)
        except BLoRAError as error:
            raise BLoRAError(f"{file}: {error}") from None

    def save(self, path):
        """Write a safetensors file (a folder gets `pytorch_lora_weights.safetensors`); complete or not at all.

        Raises:
            FileExistsError: there is such a file already.
        """
        path = Path(path)
        file = path if path.suffix == ".safetensors" else path / FILE_NAME
        if file.exists():
            raise FileExistsError(f"{file} exists already. Choose another name, or remove it first.")
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(file.name + ".part")
        tensors = {_spelled(key, SPELLINGS, back=True): t.contiguous() for key, t in self.state_dict.items()}
        safetensors.torch.save_file(tensors, part, {"format": "pt", **self.metadata})
        os.replace(part, file)
        return file


def _scaled(tensors, metadata):
    """The weights with a lora_alpha other than the rank, which diffusers writes in the metadata, multiplied in."""
    config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    alpha, rank = config.get("unet.lora_alpha"), config.get("unet.r")
    if alpha and rank and alpha != rank:
        tensors = {key: t * (alpha / rank) if key.endswith("lora_B.weight") else t for key, t in tensors.items()}
    return tensors


def _spelled(name, spellings, back=False):
    """`name` with every spelling of a file replaced by ours; `back`: the other way round."""
    for theirs, ours in spellings:
        name = name.replace(ours, theirs) if back else name.replace(theirs, ours)
    return name


def _our_key(key):
    """Our name for a key; names that are no LoRA weight of a U-Net are an error, never left out."""
    name = _spelled(_spelled(key.removeprefix("unet.unet.").removeprefix("unet."), OLD_SPELLINGS), SPELLINGS)
    if not name.endswith((".lora_A.weight", ".lora_B.weight")):
        raise BLoRAError(f"{key} is not a name of diffusers' LoRA format.")
    return "unet." + name


def apply(pipe, content=None, style=None, content_alpha=1.0, style_alpha=1.0):
    """Put the content half of one B-LoRA and the style half of another on a pipeline, in place of what was on it.

    Args:
        content, style: a `BLoRA` (whole or half), a path, or None for none.
        content_alpha, style_alpha: linear, signed strengths; 0 is off. The original multiplies both matrices of a LoRA
            and so squares alpha: its 1.1 is 1.21 here.
    """
    remove(pipe)
    chosen = {"content": content, "style": style}
    bloras = {half: b if isinstance(b, BLoRA) else BLoRA.load(b) for half, b in chosen.items() if b is not None}
    halves = {half: blora._half(half).state_dict for half, blora in bloras.items()}
    for weights in halves.values():
        _check_shapes(pipe.unet, weights)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # two adapters are what we want
        for half, weights in halves.items():
            pipe.unet.load_lora_adapter({key: t.clone() for key, t in weights.items()}, adapter_name=half, prefix="unet")
    set_alphas(pipe, content_alpha, style_alpha)


def _check_shapes(unet, weights):
    """Raise a BLoRAError unless every weight fits its layer of the U-Net."""
    for key, tensor in weights.items():
        layer, part = key.removeprefix("unet.").rsplit(".lora_", 1)
        try:
            expected = unet.get_submodule(layer).weight.shape[1 if part.startswith("A") else 0]
        except AttributeError:
            raise BLoRAError(f"The base model has no layer {layer}; this B-LoRA was trained on a larger one.") from None
        if tensor.shape[1 if part.startswith("A") else 0] != expected:
            raise BLoRAError(f"{key} is {tuple(tensor.shape)}, which does not fit the base model ({expected}); this B-LoRA was trained on another one.")


def set_alphas(pipe, content_alpha=1.0, style_alpha=1.0):
    """Change the strengths of the halves that are on the pipeline; nothing is loaded again."""
    alphas = {"content": float(content_alpha), "style": float(style_alpha)}
    on = [half for half in alphas if half in applied(pipe)]
    if on:
        pipe.unet.set_adapters(on, [alphas[half] for half in on])


def applied(pipe):
    """The names of the adapters on a pipeline's U-Net."""
    return list(getattr(pipe.unet, "peft_config", {}))


def remove(pipe):
    """Take every LoRA off the pipeline; afterwards it is the plain model."""
    if applied(pipe):
        pipe.unload_lora_weights()


def describe(blora):
    """One line about a B-LoRA, for people."""
    count = sum(t.numel() for t in blora.state_dict.values())
    training = json.loads(blora.metadata.get("training", "{}"))
    prompt = f', prompt "{training["instance_prompt"]}"' if "instance_prompt" in training else ""
    return f"B-LoRA with {' and '.join(blora.halves)}, rank {blora.rank}, {count:,} weights{prompt}"
