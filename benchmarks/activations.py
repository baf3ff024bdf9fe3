"""The activations a training step keeps for its backward pass, counted without weights or a GPU.

The U-Net runs once on PyTorch's "meta" device, where tensors have shapes and no numbers. Nothing
before the first trained block (`up_blocks.0.attentions.0`) needs a graph, so only the up path keeps
activations. `blora_nb.running.memory` has the results as constants; tests/test_memory.py compares.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from blora_nb.blocks import target_modules
from blora_nb.running.lean_lora import lean_lora
from blora_nb.running.memory import step_batch
from blora_nb.running.optimized_unet import gradient_checkpointing
from blora_nb.settings import TrainingSettings

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


class _Attention(torch.autograd.Function):
    """Keeps what a memory-efficient attention keeps, which is never the N × N scores."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        log_sums = torch.empty(query.shape[:-1], device=query.device)  # one for each row
        ctx.save_for_backward(query, key, value, output, log_sums)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        raise NotImplementedError("only for counting")


class _MemoryEfficientAttention(TorchFunctionMode):
    """Inside, in this thread, attention is `_Attention`."""

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if function is scaled_dot_product_attention:
            return _Attention.apply(*args[:3])
        return function(*args, **(kwargs or {}))


def meta_unet(
    config: dict[str, Any],
    dtype: torch.dtype,
    settings: TrainingSettings,
    tokens: int = 77,
    vae_scale_factor: int = 8,
) -> tuple["UNet2DConditionModel", Callable[[], Tensor]]:
    """A U-Net with LoRA on the "meta" device, and a function that runs it once on a batch."""
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    # diffusers' own `to` warns of float16 on other devices than GPUs
    torch.nn.Module.to(unet, dtype).requires_grad_(False)
    unet.add_adapter(
        LoraConfig(r=settings.rank, lora_alpha=settings.rank, target_modules=target_modules())
    )
    for parameter in trainable_parameters(unet):
        parameter.data = parameter.data.float()
    batch = step_batch(settings)
    side = settings.resolution // vae_scale_factor
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]

    def empty(*shape: int) -> Tensor:
        return torch.empty(batch, *shape, device="meta", dtype=dtype)

    def forward() -> Tensor:
        latents = empty(config["in_channels"], side, side)
        prompt = empty(tokens, config["cross_attention_dim"])
        conditions = {"text_embeds": empty(pooled), "time_ids": empty(6)}
        return unet(latents, empty(), prompt, added_cond_kwargs=conditions).sample

    return unet, forward


def trainable_parameters(unet: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in unet.parameters() if parameter.requires_grad]


def count_activations(
    config: dict[str, Any],
    dtype: torch.dtype,
    settings: TrainingSettings,
    mode: str,
    tokens: int = 77,
    quantization: str | None = None,
    vae_scale_factor: int = 8,
) -> tuple[int, int]:
    """Bytes that one loss keeps for its backward pass, and the number of LoRA weights.

    Args:
        config: of the U-Net.
        mode: of gradient checkpointing: "none", "partial" or "full".
        tokens: of the prompt.
        quantization: of the U-Net. The 8-bit layers of bitsandbytes keep what goes into them where
            gradient checkpointing cannot reach it (`MatMul8bitLt` in its source).
        vae_scale_factor: pixels to a position of the latents; 8 in SDXL.
    """
    unet, forward = meta_unet(config, dtype, settings, tokens, vae_scale_factor)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    def keep_input(layer: torch.nn.Module, inputs: tuple) -> None:
        if inputs[0].requires_grad:
            kept.append(inputs[0])

    if quantization == "int8":
        for name, layer in unet.named_modules():
            if isinstance(layer, torch.nn.Linear) and "lora_" not in name:
                layer.register_forward_pre_hook(keep_input)
    with ExitStack() as stack:
        stack.enter_context(_MemoryEfficientAttention())
        stack.enter_context(lean_lora(unet))
        stack.enter_context(gradient_checkpointing(unet, mode))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor))
        forward()
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in kept}
    for tensor in (*unet.parameters(), *unet.buffers()):
        storages.pop(tensor.untyped_storage()._cdata, None)
    return sum(storages.values()), sum(p.numel() for p in trainable_parameters(unet))
