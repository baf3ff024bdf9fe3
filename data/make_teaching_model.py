"""Make the teaching model and its judge again: one command, resumable.

    pip install resvg-py scipy        # for the icons, which npm fetches
    python data/make_teaching_model.py

Each stage skips what is done already and resumes what was stopped; everything in between stands in
outputs/teaching_model, the finished model in outputs/teaching_model/tiny_sdxl. Computed from its
speed, about nine hours on two cores; never run as a whole.
"""

import os
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

from world.paths import WORK

HERE = Path(__file__).resolve().parent


def run(script: str, *arguments: object, processes: int = 1) -> None:
    """Run one of the scripts beside this one, in one process or several."""
    launcher = []
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    command = [sys.executable, *launcher, str(HERE / script), *map(str, arguments)]
    print(">", script, *arguments, flush=True)
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def main() -> None:
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--pictures", type=int, default=1_100_000, help="that the U-Net is trained on")
    add("--vae-steps", type=int, default=2400)
    add("--word-steps", type=int, default=3000)
    add("--judge-steps", type=int, default=3000)
    add("--processes", type=int, default=os.cpu_count(), help="of the training, one a core")
    args = parser.parse_args()
    many = {"processes": args.processes}
    if not (WORK / "shapes.npz").exists():
        run("world/fetch_shapes.py")
    run("train_unet.py", "--pictures", args.pictures, **many)
    run("train_vae.py", "--steps", args.vae_steps, **many)
    run("teach_words.py", "--steps", args.word_steps)
    run("train_eyes.py")
    run("train_judge.py", "--steps", args.judge_steps)
    print(f"In {WORK} are tiny_sdxl, judge and eyes.safetensors. To ship them, copy all three to")
    print(
        "blora_nb/data, remove the B-LoRAs in blora_nb/data/bloras, and make again what depends on"
    )
    print("them: train_examples.py, train_controlnet.py, make bench, make notebooks.")


if __name__ == "__main__":
    main()
