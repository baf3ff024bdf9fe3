"""What a training step asks of a GPU, here and in other people's scripts: followed at SDXL's full size on a simulated one.

    python benchmarks/followed.py --original PATH/train_dreambooth_b-lora_sdxl.py --original_python ENV/bin/python \\
        --advanced PATH/train_dreambooth_lora_sdxl_advanced.py --advanced_python ENV/bin/python [--base FOLDER]

Each script runs unchanged through whole training steps in float16 at 1024 px; see simulated_gpu.py for what is and what is not known
then. Without both peers our own is followed and printed, and nothing written. The base is the architecture with random weights (random_sdxl.py), 11 GB on disk while this runs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from training_speed import HERE, PEERS, environment, peer_flags, versions

STEPS = 3
WHAT = {"TFLOP": 2, "operations": 0, "waits": 0, "peak memory, GiB": 2}  # digits

FOLLOW = """
import json, sys
sys.path.insert(0, sys.argv.pop(1))
from simulated_gpu import SimulatedGPU
result, kind, *arguments = sys.argv[1:]
with SimulatedGPU(numbers=False) as gpu:
    steps = []
    def note():
        steps.append({"TFLOP": gpu.flop / 1e12, "operations": gpu.operations, "waits": len(gpu.waits), "peak memory, GiB": gpu.peak / 2**30, "which": gpu.waits[:20]})
        gpu.flop = gpu.operations = 0
        gpu.waits.clear()
        gpu.peak = gpu.live
    if kind == "peer":
        import peer_step_times
        peer_step_times.now = note
        sys.argv[1:] = arguments
        try:
            peer_step_times.main()
        except SystemExit:
            pass
    else:
        from contextlib import nullcontext
        import torch
        from PIL import Image
        from blora_nb.settings import TrainingSettings
        from blora_nb import training
        from blora_nb.running import optimized_unet
        from blora_nb.running.monitor import Monitor
        from blora_nb.running.placement import offloaded
        from full_sdxl import full_sdxl
        on_step_end = Monitor.on_step_end
        def noted(*given):
            note()
            on_step_end(*given)
        Monitor.on_step_end = noted
        if kind == "PEFT":
            optimized_unet.lean_lora = lambda unet: nullcontext(nullcontext)
        pipe, settings = full_sdxl(torch.float16), TrainingSettings(gradient_checkpointing="none" if kind == "PEFT" else kind, max_train_steps=int(arguments[0]))
        with offloaded(pipe.unet, pipe.text_encoder, pipe.text_encoder_2):
            moments = training.encode_image(pipe, Image.new("RGB", (1024, 1024)), 1024)
        training.run_steps(pipe, training.attach_lora(pipe.unet, settings.rank), moments, settings, progress=False)
json.dump(steps, open(result, "w"))
"""


def follow(python, folder, *arguments):
    """What the last of the steps took."""
    result = folder / "followed.json"
    done = subprocess.run(
        [python, "-c", FOLLOW, str(HERE), str(result), *arguments],
        capture_output=True,
        text=True,
        env=environment(False),
    )
    if not result.exists():
        raise RuntimeError(f"{arguments[:3]} ended without a result:\n{done.stderr[-3000:]}")
    steps = json.loads(result.read_text())
    result.unlink()
    return steps[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--base", help="folder that random_sdxl.py has made of the size full; by default a new one"
    )
    for peer in ("original", "advanced"):
        parser.add_argument(f"--{peer}", help="path of the script in a checkout")
        parser.add_argument(f"--{peer}_python", help="a Python that has what it needs")
    args = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for mode in ("none", "partial", "full"):
            rows[f"blora_nb, checkpointing {mode}"] = follow(
                sys.executable, folder, mode, str(STEPS)
            )
            print(rows, flush=True)
        rows["blora_nb, LoRA as PEFT computes it"] = follow(
            sys.executable, folder, "PEFT", str(STEPS)
        )
        base, pictures = Path(args.base or folder / "base"), folder / "pictures"
        if (args.original or args.advanced) and not args.base:
            subprocess.run(
                [
                    args.original_python or sys.executable,
                    str(HERE / "random_sdxl.py"),
                    str(base),
                    "full",
                ],
                check=True,
                capture_output=True,
            )
        pictures.mkdir()
        (pictures / "picture.png").write_bytes(
            (HERE.parent / "data" / "examples" / "star_sunset.png").read_bytes()
        )
        for name, script, python, more in (
            ("original script", args.original, args.original_python, ()),
            (
                "diffusers' advanced script, latents cached",
                args.advanced,
                args.advanced_python,
                ("--use_blora", "--cache_latents"),
            ),
        ):
            for how, flags in (
                (("", ()), (" with gradient checkpointing", ("--gradient_checkpointing",)))
                if script
                else ()
            ):
                flags = [
                    *peer_flags(str(base), str(pictures), str(folder / "out"), STEPS, "full", True),
                    *more,
                    *flags,
                ]
                rows[name + how] = follow(
                    python, folder, "peer", script, str(folder / "times.json"), *flags
                )
                print(name + how, rows[name + how], flush=True)
    if args.original and args.advanced:
        write(
            rows,
            {
                "ours": versions(sys.executable, False),
                "original": versions(args.original_python, False),
                "advanced": versions(args.advanced_python, False),
            },
        )


ABOUT = f"""# What a training step of SDXL asks of a GPU, followed

Made by `python benchmarks/followed.py`: each script, unchanged, takes whole training steps at SDXL's full size on a simulated GPU (simulated_gpu.py),
1024 px, batch 1, rank 64, float16. The numbers are of the last step. Not run on a GPU: nothing is computed there, and of seconds nothing is known.

{PEERS}

- **TFLOP**: in matrix products, attention and convolutions, attention scores computed again on the way back; what a slow GPU spends its time on.
- **operations**: what the computer has to hand to the GPU, one by one; what a fast GPU waits for.
- **waits**: how often the computer stands still until the GPU has caught up. Here it is the look at the losses, at most twice a second on a GPU and
  once in a step that is followed.
- **peak memory**: of all tensors alive at once, the base's weights among them; CUDA's own comes on top. The base has text encoders of 4 layers, not 12
  and 32; a script that keeps SDXL's own on the GPU takes about 1.3 GiB more than stands here.

"""


def write(rows, made_with):
    ours, text = next(iter(rows.values())), ABOUT
    text += (
        "; ".join(
            f"{who}: Python {x['python']}, torch {x['torch']}, diffusers {x['diffusers']}"
            for who, x in made_with.items()
        )
        + "\n\n"
    )
    text += (
        "| | "
        + " | ".join(WHAT)
        + " | operations, times ours |\n|---"
        + "|---" * (len(WHAT) + 1)
        + "|\n"
    )
    for name, row in rows.items():
        text += (
            f"| {name} | "
            + " | ".join(f"{row[what]:.{digits}f}" for what, digits in WHAT.items())
            + f" | {row['operations'] / ours['operations']:.2f} |\n"
        )
    (HERE / "followed.md").write_text(text)
    (HERE / "followed.json").write_text(
        json.dumps({"rows": rows, "versions": made_with}, indent=1) + "\n"
    )
    print(text)


if __name__ == "__main__":
    main()
