"""The original script's recorded run, replayed through our own training steps on any device.

tests/record_original.py has recorded what the script drew, and what came of it, on a random model
of the size "small", in float32 on a CPU.
"""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file
from torch import Tensor

from blora_nb import training
from blora_nb.lora import IN_TRAINING
from blora_nb.running.lean_attention import lean_attention
from blora_nb.running.lean_lora import lean_lora
from blora_nb.running.text_cache import cached_text
from blora_nb.settings import TrainingSettings
from random_sdxl import build
from report import HERE

TRACE = HERE.parent / "tests" / "files" / "original_trace.safetensors"
# what float32 sums may differ from processor to processor
LOSS_TOLERANCE, WEIGHT_TOLERANCE = 1e-5, 5e-5  # relative; absolute


@dataclass(frozen=True)
class Replay:
    """Losses of each step, and LoRA by our names: ours, theirs, and where both began."""

    losses: Tensor
    their_losses: Tensor
    weights: dict[str, Tensor]
    their_weights: dict[str, Tensor]
    before: dict[str, Tensor]

    @property
    def loss_difference(self) -> float:
        """The greatest relative one."""
        return float(((self.losses - self.their_losses) / self.their_losses).abs().max())

    @property
    def weight_difference(self) -> float:
        """The greatest absolute one."""
        pairs = self.their_weights.items()
        return max(float((self.weights[name] - t).abs().max()) for name, t in pairs)

    @property
    def holds(self) -> bool:
        is_near = self.loss_difference <= LOSS_TOLERANCE
        return is_near and self.weight_difference <= WEIGHT_TOLERANCE


def recorded(trace: dict[str, Tensor], when: str) -> dict[str, Tensor]:
    """The LoRA that was recorded before or after the training, by our names."""
    names = {
        "lora_layer.down.": f"lora_A.{IN_TRAINING}.",
        "lora_layer.up.": f"lora_B.{IN_TRAINING}.",
    }
    found = {}
    for name, t in trace.items():
        if name.startswith(when):
            name = name.removeprefix(when + "/")
            for old, new in names.items():
                name = name.replace(old, new)
            found[name] = t
    return found


def replay(device: str, folder: str | Path) -> Replay:
    """Train with what the original drew.

    Args:
        folder: an empty one, for the random model.
    """
    from diffusers import DDPMScheduler, UNet2DConditionModel

    build(folder, "small")
    unet = UNet2DConditionModel.from_pretrained(Path(folder) / "unet").requires_grad_(False)
    unet.to(device)
    scheduler = DDPMScheduler.from_pretrained(Path(folder) / "scheduler")
    trace = load_file(TRACE)
    training.attach_lora(unet, rank=4)
    ours = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    before = recorded(trace, "before")
    assert ours.keys() == before.keys()
    with torch.no_grad():
        for name, t in before.items():
            ours[name].copy_(t)
    steps = range(len(trace["losses"]))
    settings = TrainingSettings(learning_rate=1e-3, resolution=96, max_train_steps=len(steps))
    state = training.start_state(unet, settings)
    embeds, pooled = (trace[name][:1].to(device) for name in ("prompt_embeds", "pooled"))
    drawn = []
    for step in steps:
        what = ("latents", "noise", "timesteps")
        drawn.append([trace[f"{name}/{step}"].to(device) for name in what])
    count = len(drawn[0][0])
    vae = SimpleNamespace(config=SimpleNamespace(scaling_factor=None))
    pipe: Any = SimpleNamespace(unet=unet, vae=vae, scheduler=scheduler, device=device)
    batches: Any = SimpleNamespace(
        batch=lambda number: (None, None, embeds, pooled), prompt_embeds=embeds, total_size=count
    )
    losses: list[Tensor] = []
    monitor: Any = SimpleNamespace(
        on_train_start=lambda: None,
        on_step_end=lambda step, loss, norm: losses.append(loss),
        on_train_end=lambda: None,
    )
    words = embeds.expand(count, -1, -1)
    draws = patch.object(training, "draw_step", lambda *_: drawn.pop(0))
    with draws, cached_text(unet, words), lean_attention(unet), lean_lora(unet):
        training.train_steps(pipe, batches, state, settings, monitor)
    weights = {name: p.detach().cpu() for name, p in ours.items()}
    after = recorded(trace, "after")
    return Replay(torch.stack(losses).cpu(), trace["losses"], weights, after, before)
