"""What a picture was made with, in the names of `blora generate`, so that `--like` reads them."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blora_nb.blocks import HALVES
from blora_nb.defaults import SCHEDULERS
from blora_nb.errors import shown
from blora_nb.files.metadata import model_hash, versions
from blora_nb.files.saved_images import read_settings
from blora_nb.guards.changed_pipelines import (
    acting_adapters,
    adapters_of_encoders,
    changes,
    inner,
)
from blora_nb.lora import HalfSource, applied_alphas, applied_fingerprints
from blora_nb.registry import options_of

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

# where these are the same, a picture is made again bit by bit
DECISIVE = (
    "content_fingerprint",
    "style_fingerprint",
    "base_model",
    "base_model_sha256",
    "few_step_sha256",
    "sampler",
    "prompt_per_block",
    "image_sha256",
    "control_image_sha256",
    "controlnet",
    "dtype",
    "device",
    "quantization",
    "versions",
    "other_lora",
    "fused_lora",
    "freeu",
    "attention_processors",
)


def record(
    pipe: "StableDiffusionXLPipeline",
    prompt: str,
    negative_prompt: str | None,
    content: HalfSource | None = None,
    style: HalfSource | None = None,
) -> dict[str, Any]:
    """What the pictures of one call have in common, with what is on the pipeline.

    Args:
        content, style: what `apply` was given, if known, from `lora.load_all`: names their files.
    """
    found: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative_prompt}
    found |= options_of(pipe)
    acting, fingerprints = acting_adapters(inner(pipe.unet)), applied_fingerprints(pipe)
    for half, alpha, given in zip(HALVES, applied_alphas(pipe), (content, style)):
        if half in acting:
            # as it was given: PEFT multiplies it by the rank and divides it again
            found[f"{half}_alpha"] = float(f"{alpha:.15g}")
            found[f"{half}_fingerprint"] = fingerprints[half]
            found |= {} if given is None else _files(half, given)
    others = acting.difference(HALVES).union(adapters_of_encoders(pipe))
    if others:
        found["other_lora"] = sorted(others)
    asked = found.get("scheduler")
    if asked and type(pipe.scheduler).__name__ != SCHEDULERS[asked]:
        found["scheduler"] = None  # somebody has put another one in its place
    name, sha256 = model_hash(pipe)
    return {
        **found,
        **changes(pipe),
        "sampler": sampler(pipe),
        "device": pipe._execution_device.type,
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "vae_tiling": bool(getattr(pipe.vae, "use_tiling", False)),
        "base_model": name,
        "base_model_sha256": sha256,
        "versions": versions(),
    }


def sampler(pipe: "StableDiffusionXLPipeline") -> str:
    """The class of a pipeline's scheduler, and twelve hexadecimal digits that name its settings."""
    config = {k: v for k, v in pipe.scheduler.config.items() if not k.startswith("_")}
    text = json.dumps(config, sort_keys=True, default=str)
    return f"{type(pipe.scheduler).__name__} {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _files(half: str, given: HalfSource) -> dict[str, Any]:
    """Of which files one half was mixed, where all of that are files."""
    items: list[Any] = given if isinstance(given, list) else [given]
    parts = [item if isinstance(item, tuple) else (item, 1.0) for item in items]
    sources = [blora.source for blora, _ in parts]
    if not all(sources):
        return {}
    found: dict[str, Any] = {f"{half}_B_LoRA": sources}
    weights = [float(weight) for _, weight in parts]
    if any(weight != 1 for weight in weights):
        found[f"{half}_weights"] = weights
    return found


def differences(picture: str | Path, now: dict[str, Any]) -> list[str]:
    """Lines that say where a new record differs from a picture's in what decides its pixels."""
    then = read_settings(picture)
    return [
        f"{what} was {shown(then.get(what))} and is {shown(now.get(what))}; "
        "the picture may not be the same."
        for what in DECISIVE
        if then.get(what) != now.get(what)
    ]
