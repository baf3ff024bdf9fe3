"""Pipelines that somebody has changed: what is undone meanwhile, what is refused, what is noted.

A pipeline of diffusers can be fused, compiled, wrapped, offloaded and given other LoRAs. Each of
these has a function here. What can be undone and done again without a trace is (`uncompiled`); what
would give wrong pictures or weights is refused, with the call that undoes it (`check_unchanged`);
what is no fault and still decides a picture stands in its record (`changes`).
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from blora_nb.errors import PipelineError

MODELS = ("unet", "vae", "text_encoder", "text_encoder_2")
ENCODERS = ("text_encoder", "text_encoder_2")
WRAPPERS = ({"_orig_mod"}, {"module"})  # what torch.compile and DataParallel call the inside
# ways to compute the same attention
SAME_ATTENTION = {"AttnProcessor", "AttnProcessor2_0"}
SAME_ATTENTION |= {"SlicedAttnProcessor", "XFormersAttnProcessor"}
FEW_STEPS = "few_steps"  # merged by `models.merge_few_step_lora`, which notes it itself


def inner(model):
    """The model inside wrappers such as those of torch.compile and DataParallel, if any."""
    while isinstance(model, torch.nn.Module) and set(model._modules) in WRAPPERS:
        model = next(iter(model._modules.values()))
    return model


@contextmanager
def unwrapped(pipe) -> Iterator[None]:
    """Inside, the models of a pipeline and their parts have no wrappers: all names are plain."""
    there = {name: getattr(pipe, name, None) for name in MODELS}
    whole = {name: model for name, model in there.items() if inner(model) is not model}
    parts = [
        (module, name, child)
        for model in _models(pipe)
        for module in model.modules()
        for name, child in module._modules.items()
        if inner(child) is not child and set(module._modules) not in WRAPPERS
    ]
    for name, model in whole.items():
        setattr(pipe, name, inner(model))
    for module, name, child in parts:
        module._modules[name] = inner(child)
    try:
        yield
    finally:
        for module, name, child in parts:
            if module._modules[name] is inner(child):  # else it has got LoRA, not to be lost
                module._modules[name] = child
        for name, model in whole.items():
            if getattr(pipe, name) is inner(model):
                setattr(pipe, name, model)


@contextmanager
def uncompiled(pipe) -> Iterator[None]:
    """Inside, nothing of a pipeline is compiled or wrapped.

    Compiled code does not hear of hooks that come later, nor of LoRA in training.
    """
    with unwrapped(pipe):
        calls, forwards = [], []
        for module in (module for model in _models(pipe) for module in model.modules()):
            if getattr(module, "_compiled_call_impl", None) is not None:  # by module.compile()
                calls.append((module, module._compiled_call_impl))
                module._compiled_call_impl = None
            forward = vars(module).get("forward")  # perhaps torch.compile(module.forward)
            if plain := getattr(forward, "_torchdynamo_orig_callable", None):
                forwards.append((module, forward))
                module.forward = plain
        try:
            yield
        finally:
            for module, call in calls:
                module._compiled_call_impl = call
            for module, forward in forwards:
                module.forward = forward


@contextmanager
def ready_to_draw(pipe, with_hooks=False) -> Iterator[None]:
    """Inside, a pipeline draws as it should: compiled if it is and no hooks are used, or plain."""
    roots = [getattr(pipe, name, None) for name in MODELS]
    parallel = any("module" in getattr(model, "_modules", ()) for model in map(_outermost, roots))
    with (uncompiled if with_hooks or parallel else nullcontext)(pipe):
        yield


def _outermost(model):
    """A model without what torch.compile has put round it."""
    while set(getattr(model, "_modules", ())) == {"_orig_mod"}:
        model = model._orig_mod
    return model


def _models(pipe) -> list[torch.nn.Module]:
    """The models of a pipeline, without the wrappers round them."""
    found = [inner(getattr(pipe, name, None)) for name in MODELS]
    return [model for model in found if isinstance(model, torch.nn.Module)]


def check_unchanged(pipe, training=False, attention=False) -> None:
    """Raise a `PipelineError` where a change would spoil what is to be done: a picture, by default.

    Args:
        training: a B-LoRA is to be trained. attention: attention is to be recorded.
    """
    unet = inner(pipe.unet)
    faults = [other_model(unet)]
    if not any(faults):
        faults = [fused_projections(unet), fused_lora(pipe), ip_adapter(unet)]
        if training:
            faults += [freeu(unet), moved_by_hooks(pipe)]
        if training or attention:
            faults.append(other_attention(unet))
    for what, remedy in filter(None, faults):
        raise PipelineError(f"This pipeline was changed: {what}. Undo it first: {remedy}")


def other_model(unet) -> tuple[str, str] | None:
    """Whether something else than diffusers' model is in the U-Net's place: (what, how to undo it).

    PEFT's `get_peft_model` gives such a thing.
    """
    from diffusers import UNet2DConditionModel

    if isinstance(unet, UNet2DConditionModel):
        return None
    if hasattr(unet, "base_model") and hasattr(unet, "unload"):
        return "its U-Net is inside a PEFT model with an adapter", "pipe.unet = pipe.unet.unload()"
    what = f"in the U-Net's place is a {type(unet).__name__}"
    return what, "put the UNet2DConditionModel itself there (pipe.unet = …)"


def fused_projections(unet) -> tuple[str, str] | None:
    """Whether queries, keys and values come from one fused layer, past which LoRA has no effect."""
    if any("Fused" in type(processor).__name__ for processor in _processors(unet)):
        what = "its projections are fused (fuse_qkv_projections), and LoRA on them has no effect"
        return what, "pipe.unet.unfuse_qkv_projections()"
    return None


def fused_lora(pipe) -> tuple[str, str] | None:
    """Whether a LoRA that is on the pipeline is added to the base's own weights at the moment."""
    names = {name for model in _models(pipe) for name in merged_adapters(model)}
    if names:
        what = f"the LoRA {', '.join(sorted(names))} is fused into its weights (fuse_lora)"
        return f"{what}, and alphas and other LoRAs would act on top of it", "pipe.unfuse_lora()"
    return None


def merged_adapters(model) -> set[str]:
    """The names of the adapters that PEFT has added to a model's own weights."""
    lists = (getattr(module, "merged_adapters", None) for module in model.modules())
    return {name for names in lists if isinstance(names, list) for name in names}


def ip_adapter(unet) -> tuple[str, str] | None:
    """Whether an IP-Adapter is on the U-Net, which then wants a picture at every step."""
    if unet.config.get("encoder_hid_dim_type") == "ip_image_proj":
        return "an IP-Adapter is loaded, which gets no picture here", "pipe.unload_ip_adapter()"
    return None


def freeu(unet) -> tuple[str, str] | None:
    """Whether FreeU weighs the U-Net's skip connections, which is for drawing only."""
    if freeu_factors(unet):
        return "FreeU is on, which is for drawing", "pipe.disable_freeu()"
    return None


def freeu_factors(unet) -> dict[str, float]:
    """FreeU's four factors; none where it is off."""
    block = unet.up_blocks[0]
    factors = {name: getattr(block, name, None) for name in ("s1", "s2", "b1", "b2")}
    return {} if None in factors.values() else factors


def moved_by_hooks(pipe) -> tuple[str, str] | None:
    """Whether hooks move or cast the weights while the models run, which a training does itself."""
    for model in _models(pipe):
        for module in model.modules():
            hook = getattr(module, "_hf_hook", None)
            hooks = (hook, *getattr(hook, "hooks", ()))
            whole = any(type(one).__name__ == "CpuOffload" for one in hooks)
            if whole or any(getattr(one, "offload", False) for one in hooks):
                device = pipe._execution_device
                what = "its models are offloaded (enable_model_cpu_offload and its kin)"
                return what, f'pipe.remove_all_hooks(), then pipe.to("{device}")'
            if getattr(getattr(module, "_diffusers_hook", None), "hooks", None):
                names = ", ".join(module._diffusers_hook.hooks)
                return f"hooks of diffusers are on its models ({names})", "load the pipeline again"
    return None


def other_attention(unet) -> tuple[str, str] | None:
    """Whether attention is computed by processors of somebody else's."""
    if names := foreign_processors(unet):
        remedy = "pipe.unet.set_attn_processor(AttnProcessor2_0())"
        where = "which is in diffusers.models.attention_processor"
        return f"its attention is computed by {', '.join(names)}", f"{remedy}, {where}"
    return None


def foreign_processors(unet) -> list[str]:
    """The names of the attention processors that are none of diffusers' plain ones."""
    names = {type(processor).__name__ for processor in _processors(unet)}
    return sorted(names - SAME_ATTENTION)


def _processors(unet) -> list:
    """What computes attention, of each of the U-Net's layers that has such a thing."""
    found = (getattr(module, "processor", None) for module in unet.modules())
    return [processor for processor in found if processor is not None]


def changes(pipe) -> dict:
    """What is no fault and still decides a picture, by name; for records.

    A LoRA that was fused and then unloaded has become part of the base; only its name is left.
    """
    unet = inner(pipe.unet)
    fused = sorted(set(getattr(pipe, "fused_loras", ())) - {FEW_STEPS})
    found = {"fused_lora": fused, "freeu": freeu_factors(unet)}
    found["attention_processors"] = foreign_processors(unet)
    return {name: value for name, value in found.items() if value}


def adapters_of_encoders(pipe) -> list[str]:
    """The names of the adapters on a pipeline's text encoders, which no B-LoRA has."""
    encoders = [inner(getattr(pipe, name, None)) for name in ENCODERS]
    return sorted({name for encoder in encoders for name in getattr(encoder, "peft_config", {})})


def acting_weights(unet, adapter: str) -> dict[str, int]:
    """A checksum of each of an adapter's weights as they are on the U-Net, where these are at hand.

    They tell a LoRA that was exchanged in place (diffusers' hotswap) from the one that was put on.
    Added up on the device, bit for bit and by place: a hundred megabytes need not be fetched.
    """
    weights = {
        name: parameter.detach().flatten()
        for name, parameter in unet.named_parameters()
        if f".{adapter}." in name and "lora_" in name and not parameter.is_meta
    }
    sums = []
    for weight in weights.values():
        bits = weight.view({4: torch.int32, 2: torch.int16}[weight.itemsize]).long()
        places = torch.arange(1, 2 * len(bits), 2, device=bits.device)
        sums.append((bits * places).sum())
    return dict(zip(weights, torch.stack(sums).tolist())) if sums else {}
