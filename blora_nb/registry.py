"""What is known about a pipeline, kept beside it: its lock, how it was loaded, the halves on it.

Notes are not hung on diffusers' and PEFT's own objects, and live no longer than these.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
    from peft import LoraConfig


@dataclass(frozen=True)
class AppliedHalf:
    """One half that was put on a U-Net."""

    fingerprint: str
    # PEFT's entry for it: another adapter of the same name has another one
    config: "LoraConfig"
    # which weights it acts with (`changed_pipelines.acting_weights`): PEFT can exchange them
    acting: dict[str, int]


_LOCKS: WeakKeyDictionary = WeakKeyDictionary()
_OPTIONS: WeakKeyDictionary = WeakKeyDictionary()
_HALVES: WeakKeyDictionary = WeakKeyDictionary()


def pipeline_lock(pipe: "StableDiffusionXLPipeline") -> "threading.RLock":
    """The lock of a pipeline, the same one at every call; whoever holds it may take it again.

    JupyterLab runs the callbacks of widgets beside the running cell, and two pieces of work on one
    pipeline would change each other's LoRAs.

    Raises:
        TypeError: it is no pipeline.
    """
    if not hasattr(pipe, "unet"):
        kind = type(pipe).__name__
        raise TypeError(f"A pipeline is wanted, as load_pipeline() returns it, not a {kind}.")
    return _LOCKS.setdefault(pipe, threading.RLock())


def options_of(pipe: "StableDiffusionXLPipeline") -> dict[str, Any]:
    """What the functions that change a pipeline were asked for.

    The names are those of the command line; beside them `prompt_per_block`, which has none there.
    """
    if pipe in _OPTIONS:
        return dict(_OPTIONS[pipe])
    return {"pretrained_model_name_or_path": str(pipe.config.get("_name_or_path") or "")}


def note_options(pipe: "StableDiffusionXLPipeline", **options: str | None) -> None:
    """Add to what `options_of` tells; None says nothing."""
    given = {name: value for name, value in options.items() if value}
    _OPTIONS[pipe] = options_of(pipe) | given


@contextmanager
def prompts_noted(pipe: "StableDiffusionXLPipeline", prompts: dict[str, str]) -> Iterator[None]:
    """Inside, `options_of` tells that blocks have prompts of their own."""
    before = options_of(pipe).get("prompt_per_block", {})
    _OPTIONS[pipe] = options_of(pipe) | {"prompt_per_block": before | prompts}
    try:
        yield
    finally:
        now = options_of(pipe)
        del now["prompt_per_block"]
        _OPTIONS[pipe] = now | ({"prompt_per_block": before} if before else {})


def applied_halves(unet: "UNet2DConditionModel") -> dict[str, AppliedHalf]:
    """The halves that `lora.apply` has put on a U-Net, by adapter name."""
    return _HALVES.setdefault(unet, {})
