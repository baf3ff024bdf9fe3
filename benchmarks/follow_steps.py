"""Follow training steps on a simulated GPU: what does each ask of it? `followed.py` runs this.

    python benchmarks/follow_steps.py RESULT.json none 3             # ours, without checkpointing
    python benchmarks/follow_steps.py RESULT.json peer SCRIPT TIMES.json --its --own --flags

Instead of a mode of gradient checkpointing, "PEFT" stands for no checkpointing and PEFT's own LoRA.
"""

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

# torch is imported later, as it looks for devices only once
from simulated_gpu import SimulatedGPU


def follow_peer(arguments: list[str], note: Callable[[], Any]) -> None:
    import peer_step_times

    peer_step_times.now = note
    sys.argv[1:] = arguments
    with suppress(SystemExit):
        peer_step_times.main()


def follow_ours(mode: str, steps: int, note: Callable[[], None]) -> None:
    import torch
    from PIL import Image

    from blora_nb.running import optimized_unet
    from blora_nb.running.monitor import Monitor
    from blora_nb.running.placement import offloaded
    from blora_nb.settings import TrainingSettings
    from blora_nb.training import attach_lora, encode_image, run_steps
    from full_sdxl import full_sdxl

    on_step_end = Monitor.on_step_end

    def noted(*given: Any) -> None:
        note()
        on_step_end(*given)

    patch.object(Monitor, "on_step_end", noted).start()
    if mode == "PEFT":
        patch.object(optimized_unet, "lean_lora", lambda unet: nullcontext(nullcontext)).start()
        mode = "none"
    pipe = full_sdxl(torch.float16)
    settings = TrainingSettings(gradient_checkpointing=mode, max_train_steps=steps)
    with offloaded(pipe.unet, pipe.text_encoder, pipe.text_encoder_2):
        moments = encode_image(pipe, Image.new("RGB", (1024, 1024)), 1024)
    attach_lora(pipe.unet, settings.rank)
    run_steps(pipe, moments, settings, progress=False)


def main() -> None:
    result, kind, *arguments = sys.argv[1:]
    steps = []
    with SimulatedGPU(numbers=False) as gpu:

        def note() -> None:
            steps.append(
                {
                    "TFLOP": gpu.flop / 1e12,
                    "operations": gpu.operations,
                    "waits": len(gpu.waits),
                    "peak memory, GiB": gpu.peak / 2**30,
                    "which": gpu.waits[:20],
                }
            )
            gpu.flop = gpu.operations = 0
            gpu.waits.clear()
            gpu.peak = gpu.live

        if kind == "peer":
            follow_peer(arguments, note)
        else:
            follow_ours(kind, int(arguments[0]), note)
    Path(result).write_text(json.dumps(steps))


if __name__ == "__main__":
    main()
