"""What a training needs in memory, counted before it starts, and what to change when it was too much.

Nothing before the first trained block (`up_blocks.0.attentions.0`) needs a graph, so only the way up keeps activations. Their bytes
are counted by running one loss without numbers, on PyTorch's "meta" device.
"""

import json
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from blora_nb.blocks import target_modules
from blora_nb.defaults import native_resolution
from blora_nb.registry import options_of
from blora_nb.running.gradient_checkpointing import gradient_checkpointing
from blora_nb.running.lean_lora import lean_lora
from blora_nb.running.text_cache import movable, text_projections
from blora_nb.settings import TrainingSettings

GIB = 2**30
PICTURE = (
    3 * GIB
)  # of 1024 × 1024 pixels through SDXL's VAE in 16 bits: twice its tensors, since convolutions want room too; a batch that does not fit is halved
MOST_AT_ONCE = 8  # larger batches gain no speed
ENCODING = int(
    2.7 * GIB
)  # a picture of 1024 × 1024 pixels through SDXL's VAE in float32: the tensors alive at once (tests/on_a_simulated_gpu.py)
WORKING = int(
    0.7 * GIB
)  # CUDA's own memory and the largest temporary tensors; an allowance, not counted


@dataclass(frozen=True)
class Need:
    """Bytes that a training takes on the device, beside the base model."""

    weights: int  # of the frozen U-Net
    lora: int  # LoRA, its gradients and the optimizer's state
    activations: int
    checkpointing: str

    @property
    def beside_the_base(self):
        return self.lora + self.activations + WORKING

    def __str__(self):
        parts = {
            "U-Net": self.weights,
            "LoRA and optimizer": self.lora,
            f"activations (checkpointing {self.checkpointing})": self.activations,
            "working memory, about": WORKING,
        }
        return f"{(self.weights + self.beside_the_base) / GIB:.1f} GiB = " + " + ".join(
            f"{what} {size / GIB:.2f}" for what, size in parts.items()
        )


class _Attention(torch.autograd.Function):
    """What a memory-efficient attention keeps: queries, keys, values, output and one number for each row; never the N × N scores."""

    @staticmethod
    def forward(ctx, query, key, value):
        output = torch.empty_like(query)
        ctx.save_for_backward(
            query, key, value, output, torch.empty(query.shape[:-1], device=query.device)
        )
        return output

    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError("only for counting")


@contextmanager
def _counted_attention():
    kept = torch.nn.functional.scaled_dot_product_attention
    count = lambda query, key, value, **options: _Attention.apply(query, key, value)
    # others may be drawing meanwhile, in a thread of their own
    torch.nn.functional.scaled_dot_product_attention = lambda query, *rest, **options: (
        count if query.is_meta else kept
    )(query, *rest, **options)
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = kept


def without_numbers(config, dtype, settings, tokens=77):
    """(U-Net with LoRA on PyTorch's "meta" device, a function that runs it once on a batch) of a U-Net given by its configuration."""
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    torch.nn.Module.to(unet, dtype).requires_grad_(False)  # diffusers' own warns
    unet.add_adapter(
        LoraConfig(r=settings.rank, lora_alpha=settings.rank, target_modules=target_modules())
    )
    for p in lora_of(unet):
        p.data = p.data.float()
    batch = settings.train_batch_size * (2 if settings.with_prior_preservation else 1)
    side = settings.resolution * config["sample_size"] // _native(config)
    empty = lambda *shape: torch.empty(batch, *shape, device="meta", dtype=dtype)
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    conditions = {"text_embeds": empty(pooled), "time_ids": empty(6)}
    return (
        unet,
        lambda: (
            unet(
                empty(config["in_channels"], side, side),
                empty(),
                empty(tokens, config["cross_attention_dim"]),
                added_cond_kwargs=conditions,
            ).sample
        ),
    )


def lora_of(unet):
    """The trainable parameters."""
    return [p for p in unet.parameters() if p.requires_grad]


def count_activations(config, dtype, settings, mode, tokens=77, quantization=None):
    """(bytes that one loss keeps for its backward pass, number of LoRA weights) of a U-Net given by its configuration.

    bitsandbytes' 8-bit layers keep what goes into them where gradient checkpointing cannot reach it (`MatMul8bitLt` in its source).
    """
    unet, forward = without_numbers(config, dtype, settings, tokens)
    kept = []
    if quantization == "int8":
        for name, layer in unet.named_modules():
            if isinstance(layer, torch.nn.Linear) and "lora_" not in name:
                layer.register_forward_pre_hook(
                    lambda _, inputs: kept.append(inputs[0]) if inputs[0].requires_grad else None
                )
    with (
        _counted_attention(),
        lean_lora(unet),
        gradient_checkpointing(unet, mode),
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
    ):
        forward()
    frozen = {t.untyped_storage()._cdata for t in (*unet.parameters(), *unet.buffers())}
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in kept}
    return sum(size for storage, size in storages.items() if storage not in frozen), sum(
        p.numel() for p in lora_of(unet)
    )


def _native(config):
    return config["sample_size"] * 8  # SDXL's VAE halves the side three times


@lru_cache(maxsize=64)
def _counted(config, dtype, rank, resolution, batch, mode, tokens, quantization):
    return count_activations(
        json.loads(config),
        dtype,
        TrainingSettings(rank=rank, resolution=resolution, train_batch_size=batch),
        mode,
        tokens,
        quantization,
    )


def need(pipe, settings, mode, one_prompt=True):
    """The `Need` of a training with the given gradient checkpointing, counted once for all trainings of its size.

    Args:
        one_prompt: whether all steps have the same prompt, so that the layers that only see it can wait elsewhere.
    """
    batch = settings.train_batch_size * (2 if settings.with_prior_preservation else 1)
    config = json.dumps(
        {
            name: value
            for name, value in pipe.unet.config.items()
            if not name.startswith("_") and name != "quantization_config"
        }
    )
    activations, lora = _counted(
        config,
        pipe.unet.dtype,
        settings.rank,
        settings.resolution,
        batch,
        mode,
        pipe.tokenizer.model_max_length,
        options_of(pipe).get("quantization"),
    )
    weights = size_of(pipe.unet) - (
        sum(size_of(layer) for layer in text_layers(pipe.unet)) if one_prompt else 0
    )
    return Need(weights, lora * (4 + 4 + (2 if settings.use_8bit_adam else 8)), activations, mode)


def size_of(model):
    """Bytes of the frozen weights."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)


def text_layers(unet):
    """The layers that only see the prompt and wait in the computer's memory during a training."""
    return movable(text_projections(unet))


def free_memory(device):
    """Bytes that PyTorch can still take on a GPU; None on other devices, where nothing is limited beforehand."""
    if torch.device(device).type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def computers_memory():
    """Bytes of the computer's memory that programs can still take; None where the system does not say."""
    try:
        return next(
            1024 * int(line.split()[1])
            for line in Path("/proc/meminfo").read_text().splitlines()
            if line.startswith("MemAvailable")
        )
    except (OSError, StopIteration):
        return None


def free_for_training(pipe, one_prompt=True):
    """`free_memory` of the U-Net's device and what a training (see `need`) moves away from there, as far as it is there still."""
    device = pipe.unet.device
    free = free_memory(device)
    leaving = [
        model
        for model in (
            pipe.vae,
            pipe.text_encoder,
            pipe.text_encoder_2,
            *(text_layers(pipe.unet) if one_prompt else ()),
        )
        if next(model.parameters()).device == device
    ]
    return None if free is None else free + sum(map(size_of, leaving))


def choose_checkpointing(pipe, settings, free=None):
    """`settings.gradient_checkpointing`, or where it is None the first of none, partial and full that fits into the free memory."""
    free = free_for_training(pipe) if free is None else free
    if settings.gradient_checkpointing or free is None:
        return settings.gradient_checkpointing or "none"
    for mode in ("none", "partial", "full"):
        if need(pipe, settings, mode).beside_the_base <= free:
            return mode
    return "full"


def unet_can_stay(pipe, settings):
    """Whether the U-Net stays on the device while the picture is encoded: where there is room for both once the text encoders are away, or where it cannot be moved.

    Not where activations are to be recomputed: who asks for that wants the peak of memory low, and encoding beside the U-Net would be the peak.
    """
    if pipe.unet.device.type != "cuda" or getattr(pipe.unet, "is_quantized", False):
        return True
    free = free_memory(pipe.unet.device) + sum(
        size_of(model)
        for model in (pipe.text_encoder, pipe.text_encoder_2)
        if model.device == pipe.unet.device
    )
    return (
        choose_checkpointing(pipe, settings) == "none"
        and ENCODING * (settings.resolution / 1024) ** 2 + WORKING <= free
    )


def report(pipe, settings, free=None, one_prompt=True):
    """A sentence for people: what the training (see `need`) will take, and whether it fits."""
    one_prompt = one_prompt and not settings.with_prior_preservation
    free = free_for_training(pipe, one_prompt) if free is None else free
    needed = need(pipe, settings, choose_checkpointing(pipe, settings, free), one_prompt)
    free = computers_memory() if free is None else free
    if free is None:
        return f"memory: {needed}"
    fits = needed.beside_the_base <= free
    return f"memory: {needed}; {free / GIB:.1f} GiB are free beside the base model: " + (
        "it fits" if fits else "it will NOT fit. " + advice(pipe, settings)
    )


def advice(pipe, settings):
    """What to change, the cheapest first; settings by the names they have in Python and, after two dashes, on the command line."""
    mode = choose_checkpointing(pipe, settings)
    batch = settings.train_batch_size
    quantized = getattr(pipe.unet, "is_quantized", False)
    steps = [
        (
            batch > 1,
            f"train_batch_size=1 and gradient_accumulation_steps={batch * settings.gradient_accumulation_steps} (the same on average, slower)",
        ),
        (mode != "full", 'gradient_checkpointing="full" (the same result, a quarter slower)'),
        (not settings.use_8bit_adam, "use_8bit_adam"),
        (
            not quantized and pipe.unet.device.type == "cuda",
            'loading the base with quantization="nf4" (the U-Net in a third of the memory)',
        ),
        (
            True,
            f"resolution={settings.resolution * 3 // 4 // 8 * 8} (activations shrink with the square)",
        ),
        (settings.rank > 16, "rank=16"),
    ]
    return "Try, in this order: " + "; ".join(text for helps, text in steps if helps) + "."


def is_out_of_memory(error):
    """Whether an error says that the memory of a GPU, or the computer's, is too small."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        text in str(error)
        for text in ("out of memory", "can't allocate memory", "not enough memory")
    )


def forget(error):
    """Let go of the tensors that an error's traceback keeps alive, so that there is room again for what comes next."""
    traceback.clear_frames(error.__traceback__)
    error.__traceback__ = None  # a frame that was cleared still has what its function closed over
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def release_memory_on_oom():
    """Inside, an error for lack of memory keeps none of it; to be the innermost context, so that what moved away can come back."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            forget(error)
        raise


def explain_out_of_memory(pipe, settings, error, checkpoint):
    """The message for a training that ran out of memory: how much it wanted, what to change, what is kept (the newest checkpoint's path, or None)."""
    first = str(error).split("\n")[0].split(". GPU")[0]
    kept = (
        f' {checkpoint} is complete: with gradient_checkpointing="full" and resume_from_checkpoint="latest" the training goes on from there; the other changes need a folder of their own.'
        if checkpoint
        else ""
    )
    return (
        f"The memory of {pipe.unet.device} is too small ({first}).{kept} {advice(pipe, settings)}"
    )


def pictures_at_once(pipe, height=None, width=None, free=None):
    """How many pictures of this size (pixels) to make in one batch: one on a CPU, on a GPU as many as fit."""
    free = free_memory(pipe.unet.device) if free is None else free
    if free is None:
        return 1
    side = native_resolution(pipe)
    pixels = (height or side) * (width or side)
    upcast = (
        pipe.vae.dtype == torch.float16 and pipe.vae.config.force_upcast
    )  # diffusers decodes in float32 with a VAE that overflows
    return max(
        1,
        min(
            MOST_AT_ONCE,
            int(
                free / (PICTURE * pixels / 1024**2 * (4 if upcast else pipe.vae.dtype.itemsize) / 2)
            ),
        ),
    )


def explain_out_of_memory_generating(pipe, error):
    """The message for a picture that needs more memory than there is, and what to change, the cheapest first."""
    first = str(error).split("\n")[0].split(". GPU")[0]
    steps = [
        (
            not getattr(pipe.vae, "use_tiling", False),
            "--vae_tiling (in Python: models.tile_vae(pipe))",
        ),
        (pipe.unet.dtype == torch.float32, "loading the base with dtype float16"),
        (
            not getattr(pipe.unet, "is_quantized", False) and pipe.unet.device.type == "cuda",
            'loading the base with quantization="nf4" (the U-Net in a third of the memory)',
        ),
        (True, "a smaller height and width"),
    ]
    return (
        f"The memory of {pipe.unet.device} is too small for one picture ({first}). Try, in this order: "
        + "; ".join(text for helps, text in steps if helps)
        + "."
    )
