"""What a training step asks of a GPU, here and in other people's scripts.

    python benchmarks/followed.py \\
        --original PATH/train_dreambooth_b-lora_sdxl.py --original_python ENV/bin/python \\
        --advanced PATH/train_dreambooth_lora_sdxl_advanced.py --advanced_python ENV/bin/python \\
        [--base FOLDER]

Each script runs unchanged through whole training steps at SDXL's full size, in float16 at 1024 px,
on a simulated GPU; see simulated_gpu.py for what is and what is not known then. Without both peers
our own is followed and printed, and nothing written. The base is the architecture with random
weights (random_sdxl.py), 11 GB on disk while this runs.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import peers
from report import HERE, table, write

STEPS = 3
DIGITS = {"TFLOP": 2, "operations": 0, "waits": 0, "peak memory, GiB": 2}
ABOUT = f"""# What a training step of SDXL asks of a GPU, followed

Made by `python benchmarks/followed.py`: each script, unchanged, takes whole training steps at
SDXL's full size on a simulated GPU (simulated_gpu.py), 1024 px, batch 1, rank 64, float16. The
numbers are of the last step. Not run on a GPU: nothing is computed there, and of seconds nothing is
known.

{peers.ABOUT_PEERS}

- **TFLOP**: in matrix products, attention and convolutions, attention scores computed again on the
  way back; what a slow GPU spends its time on.
- **operations**: what the computer has to hand to the GPU, one by one; what a fast GPU waits for.
- **waits**: how often the computer stands still until the GPU has caught up. Here it is the look at
  the losses, at most twice a second on a GPU and once in a step that is followed.
- **peak memory**: of all tensors alive at once, the base's weights among them; CUDA's own comes on
  top. The base has text encoders of 4 layers, not 12 and 32; a script that keeps SDXL's own on the
  GPU takes about 1.3 GiB more than stands here.
"""


def follow(python: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """What the last of the steps took."""
    result = folder / "followed.json"
    command = [python, str(HERE / "follow_steps.py"), str(result), *arguments]
    steps, _ = peers.run(command, result, cuda=False)
    return steps[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    peers.add_flags(parser)
    args = parser.parse_args()
    rows = {}
    ours = {f"blora_nb, checkpointing {mode}": mode for mode in ("none", "partial", "full")}
    ours["blora_nb, LoRA as PEFT computes it"] = "PEFT"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, mode in ours.items():
            rows[name] = follow(sys.executable, folder, mode, str(STEPS))
            print(name, rows[name], flush=True)
        if args.original or args.advanced:
            base = peers.prepare(args, folder, "full")
            times = str(folder / "times.json")
            commands = peers.peer_commands(args, base, folder, "full", STEPS, cuda=True)
            for name, (python, script, *flags) in commands.items():
                rows[name] = follow(python, folder, "peer", script, times, *flags)
                print(name, rows[name], flush=True)
    if args.original and args.advanced:
        report(rows, peers.versions(args, cuda=False))


def report(rows: dict[str, dict[str, Any]], made_with: dict[str, dict[str, Any]]) -> None:
    ours = next(iter(rows.values()))["operations"]
    cells = []
    for name, row in rows.items():
        numbers = [f"{row[what]:.{digits}f}" for what, digits in DIGITS.items()]
        cells.append([name, *numbers, f"{row['operations'] / ours:.2f}"])
    rows_as_table = table([*DIGITS, "operations, times ours"], cells)
    text = f"{ABOUT}\n{peers.versions_line(made_with)}\n\n{rows_as_table}"
    write("followed", text, {"rows": rows, "versions": made_with})


if __name__ == "__main__":
    main()
