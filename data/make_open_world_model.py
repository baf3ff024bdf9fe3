"""Make the teaching model of the open world and its judge again, from nothing: one command, resumable.

    pip install resvg-py scipy        # for the icons, which npm fetches
    python data/make_open_world_model.py

Each stage skips what is done already and resumes what was stopped; everything in between stands in
outputs/teaching_model. Computed from its speed, about twelve hours on two cores; never run as a whole. The finished model stands in outputs/teaching_model/tiny_sdxl.
"""

import os
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from world.paths import WORK

HERE = Path(__file__).resolve().parent


def run(script: str, *arguments: object, processes: int = 1) -> None:
    launcher = (
        ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)] if processes > 1 else []
    )
    command = [sys.executable, *launcher, str(HERE / script), *map(str, arguments)]
    print(">", script, *arguments, flush=True)
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def main() -> None:
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--pictures", type=int, default=2_000_000, help="that the U-Net is trained on"
    )
    parser.add_argument(
        "--natural-pictures",
        type=int,
        default=200_000,
        help="for the model trained without encouragement",
    )
    parser.add_argument("--vae-steps", type=int, default=6000)
    parser.add_argument("--word-steps", type=int, default=3000)
    parser.add_argument("--judge-steps", type=int, default=3000)
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count(), help="of the training, one a core"
    )
    args = parser.parse_args()
    if not (WORK / "shapes.npz").exists():
        run("world/fetch_shapes.py")
    run("train_unet.py", "--pictures", args.pictures, processes=args.processes)
    run(
        "train_unet.py",
        "--name",
        "natural",
        "--natural",
        "--pictures",
        args.natural_pictures,
        processes=args.processes,
    )
    run("train_vae.py", "--steps", args.vae_steps, processes=args.processes)
    run("teach_words.py", "--steps", args.word_steps)
    run("train_open_judge.py", "--steps", args.judge_steps)
    print(
        f"The model is in {WORK / 'tiny_sdxl'}. What hangs on it: B-LoRAs, ControlNet, tables, outputs of the lessons."
    )


if __name__ == "__main__":
    main()
