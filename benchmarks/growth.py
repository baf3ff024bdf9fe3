"""How the cost of training grows with resolution, rank, pictures and processes; on the teaching model, on a CPU.

    python benchmarks/growth.py    # some minutes on two cores; writes growth.md and .json

Resolution and rank: processor time of a step, the sizes in turn. Pictures and processes: the command line's time on the clock,
from start to the last file, so that loading the base model counts.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from arithmetic import SDXL
from blora_nb.assets import DATA
from blora_nb.blocks import BLOCK_OF_HALF, target_modules
from blora_nb.course.examples import example_names, example_picture
from blora_nb.generation import generate
from blora_nb.lora import BLoRA, apply, set_alphas
from blora_nb.pipeline import load_pipeline
from blora_nb.training import train

RESOLUTIONS, RANKS = (64, 96, 128, 192), (4, 16, 64, 128)
STEPS, WARM_UP, ROUNDS = 12, 2, 3
PICTURES = (1, 2, 4)


def step_seconds(pipe, resolution, rank):
    """Median processor seconds of a step, batch 1."""
    ends = []
    train(
        pipe,
        example_picture("star_sunset"),
        progress=lambda *_: ends.append(time.process_time()),
        resolution=resolution,
        rank=rank,
        train_batch_size=1,
        max_train_steps=STEPS,
    )
    return median(b - a for a, b in zip(ends[WARM_UP:], ends[WARM_UP + 1 :]))


def command_seconds(folder, out, processes=1):
    """Seconds on the clock of one command that trains every picture of a folder."""
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        str(processes),
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
    ]
    start = time.perf_counter()
    subprocess.run(
        [
            sys.executable,
            *(launch if processes > 1 else []),
            "-m",
            "blora_nb",
            "train",
            "--instance_data_dir",
            str(folder),
            "--output_dir",
            str(out),
            "--device",
            "cpu",
        ],
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - start


def milliseconds(work, times=15):
    """Median milliseconds on the clock of `work()`."""
    seen = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seen.append(1000 * (time.perf_counter() - start))
    return median(seen)


def alpha_milliseconds(pipe):
    """(a picture of the teaching model, changing both alphas on it, putting two halves on it, changing both alphas on the full SDXL's layers)."""
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig

    content, style = (
        BLoRA.load(DATA / "bloras" / f"{name}.safetensors") for name in ("cat_wood", "flower_neon")
    )
    picture = milliseconds(
        lambda: generate(pipe, "A [c] in [s] style", content, style, progress=False), 3
    )
    put_on = milliseconds(lambda: apply(pipe, content, style))
    change = milliseconds(lambda: set_alphas(pipe, 0.5, 0.8))
    with torch.device("meta"):
        full = UNet2DConditionModel.from_config(SDXL)
        for half, block in BLOCK_OF_HALF.items():
            full.add_adapter(
                LoraConfig(r=64, lora_alpha=64, target_modules=target_modules(block)),
                adapter_name=half,
            )
    return (
        picture,
        change,
        put_on,
        milliseconds(lambda: full.set_adapters(list(BLOCK_OF_HALF), [0.5, 0.8])),
    )


def medians(cases, measure):
    """{case: median over the rounds}, the cases in turn."""
    seen = {case: [] for case in cases}
    for round_ in range(ROUNDS):
        for case in cases:
            seen[case].append(measure(*case))
            print(f"round {round_ + 1}, {case}: {seen[case][-1]:.3f} s", flush=True)
    return {case: median(values) for case, values in seen.items()}


def main():
    pipe = load_pipeline(device="cpu")
    steps = medians(
        [
            *((resolution, 16) for resolution in RESOLUTIONS),
            *((96, rank) for rank in RANKS if rank != 16),
        ],
        lambda *case: step_seconds(pipe, *case),
    )
    with tempfile.TemporaryDirectory() as temporary:
        temporary, number = Path(temporary), iter(range(1000))
        for count in PICTURES:
            (temporary / str(count)).mkdir()
            for name in example_names()[:count]:
                example_picture(name).save(temporary / str(count) / f"{name}.png")
        cases = [*((count, 1) for count in PICTURES), (PICTURES[-1], 2)]
        commands = medians(
            cases,
            lambda count, processes: command_seconds(
                temporary / str(count), temporary / f"out{next(number)}", processes
            ),
        )
    write(steps, commands, alpha_milliseconds(pipe))


def write(steps, commands, alphas):
    base, single, cores = steps[96, 16], commands[1, 1], os.cpu_count()
    text = f"# How the cost of training grows\n\nMade by `python benchmarks/growth.py` on the teaching model, {cores} cores, one thread a process, medians of {ROUNDS} rounds; not run on a GPU.\nFor the real SDXL the operations are counted in [arithmetic.md](arithmetic.md).\n"
    text += (
        "\n| resolution | rank | processor seconds a step | times 96 px, rank 16 |\n|---|---|---|---|\n"
        + "".join(
            f"| {resolution} | {rank} | {s:.3f} | {s / base:.2f} |\n"
            for (resolution, rank), s in sorted(steps.items())
        )
    )
    text += "\n| pictures in one command | processes | seconds | seconds a picture | against a command for each |\n|---|---|---|---|---|\n"
    text += "".join(
        f"| {count} | {processes} | {s:.1f} | {s / count:.1f} | {s / (count * single):.2f} |\n"
        for (count, processes), s in commands.items()
    )
    picture, change, put_on, full = alphas
    text += f"\nChanging both alphas takes {change:.1f} ms, {100 * change / picture:.1f}% of a picture ({picture:.0f} ms); putting other halves on takes {put_on:.0f} ms.\n"
    text += f"On the layers of the full SDXL, rank 64, changing both alphas takes {full:.1f} ms, whatever the device: it is work of the processor.\n"
    (HERE / "growth.md").write_text(text)
    rows = {
        "steps": [[*case, s] for case, s in steps.items()],
        "commands": [[*case, s] for case, s in commands.items()],
        "alphas, ms": alphas,
    }
    (HERE / "growth.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
