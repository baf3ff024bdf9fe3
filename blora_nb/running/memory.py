"""What a training or a picture needs in memory, what is free, and what follows from both."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
import torch

from blora_nb.blocks import target_modules
from blora_nb.defaults import is_teaching_model, native_resolution
from blora_nb.registry import options_of
from blora_nb.running.text_cache import movable, text_projections
from blora_nb.settings import TrainingSettings

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

GIB = 2**30
# GiB of activations that the loss of a picture of 1024 × 1024 pixels keeps in 16 bits for its
# backward pass, by mode of gradient checkpointing: counted by benchmarks/activations.py. Other
# bases are taken for SDXL's size; those distilled from it are smaller and keep less.
SDXL_KEEPS = {"none": 2.83, "partial": 1.74, "full": 0.295}
INT8_KEEPS = {"none": 3.49, "partial": 2.59, "full": 1.26}
TEACHING_MODEL_KEEPS = {"none": 0.535, "partial": 0.415, "full": 0.0935}
# Of a picture of 1024 × 1024 pixels through SDXL's VAE (tests/on_a_simulated_gpu.py). Encoding, in
# float32: the tensors alive at once. Decoding, in 16 bits: twice those, as convolutions want room
# too, and a batch that does not fit is halved.
ENCODING = int(2.7 * GIB)
DECODING = 3 * GIB
# CUDA's own memory and the largest temporary tensors; an allowance, not counted
WORKING = int(0.7 * GIB)
LARGEST_BATCH = 8  # of pictures made at once; larger ones gain no speed


@dataclass(frozen=True)
class Need:
    """Bytes that a training takes on the device, beside text encoders and VAE."""

    weights: int  # of the frozen U-Net
    lora: int  # LoRA, its gradients and the optimizer's state
    activations: int
    checkpointing: str

    @property
    def beside_the_base(self) -> int:
        return self.lora + self.activations + WORKING

    def __str__(self) -> str:
        parts = {
            "U-Net": self.weights,
            "LoRA and optimizer": self.lora,
            f"activations (checkpointing {self.checkpointing})": self.activations,
            "working memory, about": WORKING,
        }
        listed = " + ".join(f"{what} {size / GIB:.2f}" for what, size in parts.items())
        return f"{sum(parts.values()) / GIB:.1f} GiB = {listed}"


def memory_need(
    pipe: "StableDiffusionXLPipeline",
    settings: TrainingSettings,
    mode: str,
    one_prompt: bool = True,
) -> Need:
    """The `Need` of a training with a mode of gradient checkpointing.

    Args:
        one_prompt: whether all steps have the same prompt, so that the layers that see nothing else
            can wait in the computer's memory.
    """
    keeps = SDXL_KEEPS
    if is_teaching_model(pipe):
        keeps = TEACHING_MODEL_KEEPS
    elif options_of(pipe).get("quantization") == "int8":
        keeps = INT8_KEEPS
    itemsize = pipe.unet.dtype.itemsize
    pictures = step_batch(settings) * (settings.resolution / 1024) ** 2
    activations = int(keeps[mode] * GIB * pictures * itemsize / 2)
    lora = lora_numbers(pipe.unet, settings.rank)
    if mode == "none" and itemsize == 2:
        # LoRA's own weights, rounded to 16 bits (`lean_lora`)
        activations += 2 * lora
    weights = frozen_bytes(pipe.unet)
    if one_prompt:
        weights -= sum(frozen_bytes(layer) for layer in movable(text_projections(pipe.unet)))
    # float32 values, gradients, and two moments of the gradient in 32 or 8 bits
    bytes_each = 4 + 4 + 2 * (1 if settings.use_8bit_adam else 4)
    return Need(weights, lora * bytes_each, activations, mode)


def step_batch(settings: TrainingSettings) -> int:
    """Pictures in a batch; with prior preservation as many class pictures are added."""
    return settings.train_batch_size * (2 if settings.with_prior_preservation else 1)


def lora_numbers(unet: "UNet2DConditionModel", rank: int) -> int:
    """How many numbers LoRA of a rank has on the two blocks of B-LoRA."""
    trained = re.compile(target_modules())
    sides = (
        layer.in_features + layer.out_features
        for name, layer in unet.named_modules()
        if trained.fullmatch(name)
    )
    return rank * sum(sides)


def frozen_bytes(model: torch.nn.Module) -> int:
    """Bytes of a model's frozen weights."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)


def free_memory(device: torch.device | str) -> int | None:
    """Bytes that PyTorch can still take on a GPU; None on other devices, which have no limit."""
    if torch.device(device).type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def free_for_training(pipe: "StableDiffusionXLPipeline", one_prompt: bool = True) -> int | None:
    """`free_memory` of the U-Net's device once a training has moved away what it does not need."""
    device = pipe.unet.device
    free = free_memory(device)
    if free is None:
        return None
    leaving = [pipe.vae, pipe.text_encoder, pipe.text_encoder_2]
    if one_prompt:
        leaving += movable(text_projections(pipe.unet))
    return free + sum(
        frozen_bytes(model) for model in leaving if next(model.parameters()).device == device
    )


def choose_checkpointing(
    pipe: "StableDiffusionXLPipeline", settings: TrainingSettings, free: int | None = None
) -> str:
    """The mode of gradient checkpointing: the one in the settings, or else the first that fits.

    Args:
        free: bytes of free memory; by default as a training will find it.
    """
    if settings.gradient_checkpointing:
        return settings.gradient_checkpointing
    if free is None:
        free = free_for_training(pipe, one_prompt=not settings.with_prior_preservation)
    for mode in ("none", "partial"):
        if free is None or memory_need(pipe, settings, mode).beside_the_base <= free:
            return mode
    return "full"


def unet_can_stay(pipe: "StableDiffusionXLPipeline", settings: TrainingSettings) -> bool:
    """Whether the U-Net stays on the device while the pictures are encoded.

    It does where it cannot be moved, or where there is room for both. It leaves where activations
    are to be recomputed: that is asked for to lower the peak of memory, and encoding beside the
    U-Net would be the peak.
    """
    device = pipe.unet.device
    free = free_memory(device)
    if free is None or getattr(pipe.unet, "is_quantized", False):
        return True
    if choose_checkpointing(pipe, settings) != "none":
        return False
    for encoder in (pipe.text_encoder, pipe.text_encoder_2):
        if encoder.device == device:  # and will leave
            free += frozen_bytes(encoder)
    return ENCODING * (settings.resolution / 1024) ** 2 + WORKING <= free


def pictures_at_once(
    pipe: "StableDiffusionXLPipeline",
    height: int | None = None,
    width: int | None = None,
    free: int | None = None,
) -> int:
    """How many pictures to make in one batch: one on a CPU, as many as fit on a GPU.

    Args:
        height, width: of a picture in pixels; by default what the model was trained on.
        free: bytes of free memory; by default what the device says.
    """
    free = free_memory(pipe.unet.device) if free is None else free
    if free is None:
        return 1
    side = native_resolution(pipe)
    pixels = (height or side) * (width or side)
    # with a VAE that overflows in float16, diffusers decodes in float32
    overflows = pipe.vae.dtype == torch.float16 and pipe.vae.config.force_upcast
    itemsize = 4 if overflows else pipe.vae.dtype.itemsize
    fitting = int(free / (DECODING * pixels / 1024**2 * itemsize / 2))
    return max(1, min(LARGEST_BATCH, fitting))


def memory_report(
    pipe: "StableDiffusionXLPipeline",
    settings: TrainingSettings,
    free: int | None = None,
    one_prompt: bool = True,
) -> str:
    """A sentence that says what a training will take (see `memory_need`), and whether it fits."""
    one_prompt = one_prompt and not settings.with_prior_preservation
    free = free_for_training(pipe, one_prompt) if free is None else free
    needed = memory_need(pipe, settings, choose_checkpointing(pipe, settings, free), one_prompt)
    free = psutil.virtual_memory().available if free is None else free
    fits = needed.beside_the_base <= free
    verdict = "it fits" if fits else f"it will NOT fit. {memory_advice(pipe, settings)}"
    return f"memory: {needed}; {free / GIB:.1f} GiB are free beside the base model: {verdict}"


def memory_advice(pipe: "StableDiffusionXLPipeline", settings: TrainingSettings) -> str:
    """What to change in a training that needs less memory, the cheapest first."""
    batch, accumulate = settings.train_batch_size, settings.gradient_accumulation_steps
    steps = []
    if batch > 1:
        steps.append(
            f"train_batch_size=1 and gradient_accumulation_steps={batch * accumulate} "
            "(the same on average, slower)"
        )
    if choose_checkpointing(pipe, settings) != "full":
        steps.append('gradient_checkpointing="full" (the same result, a quarter slower)')
    if not settings.use_8bit_adam:
        steps.append("use_8bit_adam")
    steps += quantization_advice(pipe)
    resolution = settings.resolution * 3 // 4 // 8 * 8
    steps.append(f"resolution={resolution} (activations shrink with the square)")
    if settings.rank > 16:
        steps.append("rank=16")
    return in_order(steps)


def quantization_advice(pipe: "StableDiffusionXLPipeline") -> list[str]:
    """The advice to load the base in 4 bits, where that is possible and was not done."""
    if getattr(pipe.unet, "is_quantized", False) or pipe.unet.device.type != "cuda":
        return []
    return ['loading the base with quantization="nf4" (the U-Net in a third of the memory)']


def in_order(steps: list[str]) -> str:
    return f"Try, in this order: {'; '.join(steps)}."
