"""Pipelines that other code has changed: what is undone meanwhile, what is refused, what is noted.

What can be undone and done again without a trace is (`uncompiled`); what would give wrong pictures
or weights is refused, with the call that undoes it (`check_unchanged`); what is no fault and still
decides a picture is kept in its record (`changes`).
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch

from blora_nb.errors import PipelineError
from blora_nb.registry import options_of

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

Model = TypeVar("Model")
Fault: TypeAlias = tuple[str, str]  # what was changed, the call that undoes it

MODELS = ("unet", "vae", "text_encoder", "text_encoder_2")
ENCODERS = ("text_encoder", "text_encoder_2")
COMPILED = {"_orig_mod"}  # what torch.compile calls the inside
PARALLEL = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
# ways to compute the same attention
SAME_ATTENTION = {"AttnProcessor", "AttnProcessor2_0"}
SAME_ATTENTION |= {"SlicedAttnProcessor", "XFormersAttnProcessor"}
FEW_STEP_ADAPTER = "few_steps"  # what `pipeline.merge_few_step_lora` calls its LoRA
INTEGER_OF_BYTES = {4: torch.int32, 2: torch.int16}


def inner(model: Model) -> Model:
    """The model inside the wrapper of torch.compile, if there is one."""
    inside: Any = model
    while isinstance(inside, torch.nn.Module) and set(inside._modules) == COMPILED:
        inside = inside._orig_mod
    return inside


@contextmanager
def unwrapped(pipe: "StableDiffusionXLPipeline") -> Iterator[None]:
    """Inside, the models of a pipeline and their parts have no wrappers: all names are plain."""
    places = [(pipe, name) for name in MODELS]
    for model in _models(pipe):
        for module in model.modules():
            if set(module._modules) != COMPILED:
                places += [(module, name) for name in module._modules]
    held = [(owner, name, getattr(owner, name, None)) for owner, name in places]
    wrapped = [(owner, name, model) for owner, name, model in held if inner(model) is not model]
    for owner, name, wrapper in wrapped:
        setattr(owner, name, inner(wrapper))
    try:
        yield
    finally:
        for owner, name, wrapper in wrapped:
            # a layer that got LoRA meanwhile is another one, and stays
            if getattr(owner, name) is inner(wrapper):
                setattr(owner, name, wrapper)


@contextmanager
def uncompiled(pipe: "StableDiffusionXLPipeline") -> Iterator[None]:
    """Inside, nothing of a pipeline is compiled.

    Compiled code ignores hooks that are added later, and LoRA in training.
    """
    with unwrapped(pipe), ExitStack() as undo:
        for model in _models(pipe):
            for module in model.modules():
                call = getattr(module, "_compiled_call_impl", None)  # from module.compile()
                if call is not None:
                    undo.callback(setattr, module, "_compiled_call_impl", call)
                    module._compiled_call_impl = None
                forward = vars(module).get("forward")  # perhaps torch.compile(module.forward)
                plain = getattr(forward, "_torchdynamo_orig_callable", None)
                if plain:
                    undo.callback(setattr, module, "forward", forward)
                    module.forward = plain
        yield


def _models(pipe: "StableDiffusionXLPipeline") -> list[torch.nn.Module]:
    """The models of a pipeline, without their wrappers."""
    found = [inner(getattr(pipe, name, None)) for name in MODELS]
    return [model for model in found if isinstance(model, torch.nn.Module)]


def check_unchanged(
    pipe: "StableDiffusionXLPipeline", training: bool = False, attention: bool = False
) -> None:
    """Raise a `PipelineError` if a change would spoil what is to be done: a picture, by default.

    Args:
        training: a B-LoRA is to be trained.
        attention: attention is to be recorded.
    """
    fault = next(_faults(pipe, inner(pipe.unet), training, attention), None)
    if fault:
        what, remedy = fault
        raise PipelineError(f"This pipeline was changed: {what}. Undo it first: {remedy}")


def _faults(
    pipe: "StableDiffusionXLPipeline", unet: Any, training: bool, attention: bool
) -> Iterator[Fault]:
    """What was changed and must be undone first; `check_unchanged` has the arguments."""
    from diffusers import UNet2DConditionModel

    for name in MODELS:
        wrapper = inner(getattr(pipe, name, None))
        if isinstance(wrapper, PARALLEL):
            what = f"its {name} is inside {type(wrapper).__name__}, in which diffusers cannot draw"
            yield what, f"pipe.{name} = pipe.{name}.module"
    if not isinstance(unet, UNet2DConditionModel):
        if hasattr(unet, "base_model") and hasattr(unet, "unload"):
            what = "its U-Net is inside a PEFT model with an adapter"
            yield what, "pipe.unet = pipe.unet.unload()"
        what = f"in the U-Net's place is a {type(unet).__name__}"
        yield what, "put the UNet2DConditionModel itself there (pipe.unet = …)"
    if any("Fused" in type(processor).__name__ for processor in _processors(unet)):
        what = "its projections are fused (fuse_qkv_projections), and LoRA on them has no effect"
        yield what, "pipe.unet.unfuse_qkv_projections()"
    fused = fused_lora(pipe)
    if fused:
        what = f"the LoRA {', '.join(fused)} is fused into its weights (fuse_lora)"
        yield f"{what}, and alphas and other LoRAs would act on top of it", "pipe.unfuse_lora()"
    if unet.config.get("encoder_hid_dim_type") == "ip_image_proj":
        what = "an IP-Adapter is loaded, which gets no picture here"
        yield what, "pipe.unload_ip_adapter()"
    if training and freeu_factors(unet):
        yield "FreeU is on, which is for drawing", "pipe.disable_freeu()"
    if training:
        yield from _hooks_that_move(pipe)
    foreign = foreign_processors(unet) if training or attention else []
    if foreign:
        remedy = "pipe.unet.set_attn_processor(AttnProcessor2_0())"
        where = "which is in diffusers.models.attention_processor"
        yield f"its attention is computed by {', '.join(foreign)}", f"{remedy}, {where}"


def fused_lora(pipe: "StableDiffusionXLPipeline") -> list[str]:
    """The LoRAs on the pipeline that are added to the base's own weights at the moment, sorted."""
    return sorted({name for model in _models(pipe) for name in merged_adapters(model)})


def merged_adapters(model: torch.nn.Module) -> set[str]:
    """The names of the adapters that PEFT has added to a model's own weights."""
    lists = (getattr(module, "merged_adapters", None) for module in model.modules())
    return {name for names in lists if isinstance(names, list) for name in names}


def freeu_factors(unet: "UNet2DConditionModel") -> dict[str, float]:
    """FreeU's four factors; none where it is off."""
    block = unet.up_blocks[0]
    factors = {name: getattr(block, name, None) for name in ("s1", "s2", "b1", "b2")}
    return {name: factor for name, factor in factors.items() if factor is not None}


def _hooks_that_move(pipe: "StableDiffusionXLPipeline") -> Iterator[Fault]:
    """Hooks that move or cast the weights while the models run, which training itself does."""
    for model in _models(pipe):
        for module in model.modules():
            if _offloads(getattr(module, "_hf_hook", None)):
                device = pipe._execution_device
                what = "its models are offloaded (enable_model_cpu_offload and its kin)"
                yield what, f'pipe.remove_all_hooks(), then pipe.to("{device}")'
            registry: Any = getattr(module, "_diffusers_hook", None)
            if registry and registry.hooks:
                what = f"hooks of diffusers are on its models ({', '.join(registry.hooks)})"
                yield what, "load the pipeline again"


def _offloads(hook: object) -> bool:
    """Whether a hook of accelerate moves a whole model, or a layer's weights."""
    hooks = (hook, *getattr(hook, "hooks", ()))
    return any(
        type(one).__name__ == "CpuOffload" or getattr(one, "offload", False) for one in hooks
    )


def foreign_processors(unet: "UNet2DConditionModel") -> list[str]:
    """The class names of attention processors that are not diffusers' plain ones, sorted."""
    names = {type(processor).__name__ for processor in _processors(unet)}
    return sorted(names - SAME_ATTENTION)


def _processors(unet: "UNet2DConditionModel") -> list[Any]:
    """The attention processor of each layer of the U-Net that has one."""
    found = (getattr(module, "processor", None) for module in unet.modules())
    return [processor for processor in found if processor is not None]


def changes(pipe: "StableDiffusionXLPipeline") -> dict[str, Any]:
    """What is no fault and still decides a picture, by name; for records.

    A LoRA that was fused and then unloaded has become part of the base; only its name is left.
    """
    unet = inner(pipe.unet)
    found = {
        "fused_lora": sorted(set(getattr(pipe, "fused_loras", ())) - {FEW_STEP_ADAPTER}),
        "few_step_sha256": options_of(pipe).get("few_step_sha256"),
        "freeu": freeu_factors(unet),
        "attention_processors": foreign_processors(unet),
    }
    return {name: value for name, value in found.items() if value}


def adapters_of_encoders(pipe: "StableDiffusionXLPipeline") -> list[str]:
    """The names of the adapters on a pipeline's text encoders, which no B-LoRA has."""
    encoders = [inner(getattr(pipe, name, None)) for name in ENCODERS]
    return sorted({name for encoder in encoders for name in getattr(encoder, "peft_config", {})})


def acting_adapters(unet: "UNet2DConditionModel") -> set[str]:
    """The names of the adapters on the U-Net that are not switched off."""
    layers: list[Any] = list(unet.modules())
    # on PEFT's layers it is a value, on the U-Net itself a method
    on = [layer for layer in layers if getattr(layer, "disable_adapters", None) is False]
    return {name for layer in on for name in layer.active_adapters}


def acting_weights(unet: "UNet2DConditionModel", adapter: str) -> dict[str, int]:
    """A checksum of each weight of an adapter on the U-Net; offloaded weights are left out.

    A LoRA that was exchanged in place (diffusers' hotswap) has other checksums. They are summed on
    the device, every bit pattern times its place: a hundred megabytes need not be fetched.
    """
    sums = {}
    for name, parameter in unet.named_parameters():
        if f".{adapter}." not in name or "lora_" not in name or parameter.is_meta:
            continue
        bits = parameter.detach().flatten().view(INTEGER_OF_BYTES[parameter.itemsize]).long()
        odd_numbers = torch.arange(1, 2 * len(bits), 2, device=bits.device)
        sums[name] = (bits * odd_numbers).sum()
    return dict(zip(sums, torch.stack(list(sums.values())).tolist() if sums else []))
