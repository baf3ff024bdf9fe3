"""How the cost of training grows with resolution, rank, pictures and processes.

    python benchmarks/growth.py    # some minutes on two cores; writes growth.md and .json

On the teaching model, on a CPU. Resolution and rank: processor time of a step, the sizes in turn.
Pictures and processes: the command line's time on the clock, from start to the last file, so that
loading the base model counts.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import count, pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch

from blora_nb.assets import DATA
from blora_nb.blocks import BLOCK_OF_HALF, target_modules
from blora_nb.course.examples import example_names, example_picture
from blora_nb.generation import generate
from blora_nb.lora import BLoRA, apply, set_alphas
from blora_nb.pipeline import load_pipeline
from blora_nb.training import train
from random_sdxl import unet_config
from report import table, write

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

RESOLUTIONS, RANKS = (64, 96, 128, 192), (4, 16, 64, 128)
STEPS, WARM_UP, ROUNDS = 12, 2, 3
PICTURES = (1, 2, 4)
LAUNCH = (
    "-m accelerate.commands.launch --multi_gpu --num_machines 1 --mixed_precision no "
    "--dynamo_backend no --main_process_port 0 --num_processes"
)

Case = tuple[int, int]


def step_seconds(pipe: "StableDiffusionXLPipeline", resolution: int, rank: int) -> float:
    """Median processor seconds of a step, batch 1."""
    ends: list[float] = []
    train(
        pipe,
        example_picture("star_sunset"),
        progress=lambda *_: ends.append(time.process_time()),
        resolution=resolution,
        rank=rank,
        train_batch_size=1,
        max_train_steps=STEPS,
    )
    return median(end - start for start, end in pairwise(ends[WARM_UP:]))


def command_seconds(
    folder: Path, out: Path, processes: int, flags: Sequence[str] = ("--device", "cpu")
) -> float:
    """Seconds on the clock of one command that trains every picture of a folder."""
    launch = [*LAUNCH.split(), str(processes)] if processes > 1 else []
    command = [sys.executable, *launch, "-m", "blora_nb", "train", *flags]
    command += ["--instance_data_dir", str(folder), "--output_dir", str(out)]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def milliseconds(work: Callable[[], object], times: int = 15) -> float:
    """Median milliseconds on the clock of `work()`."""
    seen = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seen.append(1000 * (time.perf_counter() - start))
    return median(seen)


def alpha_milliseconds(pipe: "StableDiffusionXLPipeline") -> tuple[float, float, float, float]:
    """Milliseconds of a picture, of changing alphas, and of putting halves on.

    The last is changing both alphas on the layers of the full SDXL.
    """
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig

    content = BLoRA.load(DATA / "bloras" / "cat_wood.safetensors")
    style = BLoRA.load(DATA / "bloras" / "flower_neon.safetensors")
    prompt = "A [c] in [s] style"
    picture = milliseconds(lambda: generate(pipe, prompt, content, style, progress=False), 3)
    put_on = milliseconds(lambda: apply(pipe, content, style))
    change = milliseconds(lambda: set_alphas(pipe, 0.5, 0.8))
    with torch.device("meta"):
        full = UNet2DConditionModel.from_config(unet_config("full"))
        for half, block in BLOCK_OF_HALF.items():
            config = LoraConfig(r=64, lora_alpha=64, target_modules=target_modules(block))
            full.add_adapter(config, adapter_name=half)
    names = list(BLOCK_OF_HALF)
    return picture, change, put_on, milliseconds(lambda: full.set_adapters(names, [0.5, 0.8]))


def medians(cases: Iterable[Case], measure: Callable[[int, int], float]) -> dict[Case, float]:
    """Case → median over the rounds, the cases in turn."""
    seen: dict[Case, list[float]] = {case: [] for case in cases}
    for round_ in range(ROUNDS):
        for case, values in seen.items():
            values.append(measure(*case))
            print(f"round {round_ + 1}, {case}: {values[-1]:.3f} s", flush=True)
    return {case: median(values) for case, values in seen.items()}


def main() -> None:
    pipe = load_pipeline(device="cpu")
    sizes = [(resolution, 16) for resolution in RESOLUTIONS]
    sizes += [(96, rank) for rank in RANKS if rank != 16]
    steps = medians(sizes, lambda resolution, rank: step_seconds(pipe, resolution, rank))
    with tempfile.TemporaryDirectory() as temporary:
        folder, number = Path(temporary), count()
        for pictures in PICTURES:
            (folder / str(pictures)).mkdir()
            for name in example_names()[:pictures]:
                example_picture(name).save(folder / str(pictures) / f"{name}.png")

        def run(pictures: int, processes: int) -> float:
            return command_seconds(folder / str(pictures), folder / f"out{next(number)}", processes)

        commands = medians([*((n, 1) for n in PICTURES), (PICTURES[-1], 2)], run)
    report(steps, commands, alpha_milliseconds(pipe))


def report(
    steps: dict[Case, float],
    commands: dict[Case, float],
    alphas: tuple[float, float, float, float],
) -> None:
    step_rows = []
    for (resolution, rank), seconds in sorted(steps.items()):
        step_rows.append([resolution, rank, f"{seconds:.3f}", f"{seconds / steps[96, 16]:.2f}"])
    command_rows = []
    for (pictures, processes), seconds in commands.items():
        each, single = seconds / pictures, commands[1, 1]
        cells = [f"{seconds:.1f}", f"{each:.1f}", f"{each / single:.2f}"]
        command_rows.append([pictures, processes, *cells])
    step_columns = ["rank", "processor seconds a step", "times 96 px, rank 16"]
    command_columns = ["processes", "seconds", "seconds a picture", "against a command for each"]
    picture, change, put_on, full = alphas
    text = f"""# How the cost of training grows

Made by `python benchmarks/growth.py` on the teaching model, {os.cpu_count()} cores, one thread a \
process, medians of {ROUNDS} rounds; not run on a GPU.
For the real SDXL the operations are counted in [arithmetic.md](arithmetic.md).

{table(step_columns, step_rows, "resolution")}
{table(command_columns, command_rows, "pictures in one command")}
Changing both alphas takes {change:.1f} ms, {100 * change / picture:.1f}% of a picture \
({picture:.0f} ms); putting other halves on takes {put_on:.0f} ms.
On the layers of the full SDXL, rank 64, changing both alphas takes {full:.1f} ms, whatever the \
device: it is work of the processor.
"""
    results = {
        "steps": [[*case, seconds] for case, seconds in steps.items()],
        "commands": [[*case, seconds] for case, seconds in commands.items()],
        "alphas, ms": alphas,
    }
    write("growth", text, results)


if __name__ == "__main__":
    main()
