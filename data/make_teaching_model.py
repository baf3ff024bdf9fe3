"""Make the teaching model and the judge again, from nothing: one command, resumable, on the GPU
when there is one.

    python data/make_teaching_model.py

Each stage skips what is done already and resumes what was stopped; everything in between stands in
outputs/teaching_model. At the end the model replaces blora_nb/data/tiny_sdxl, whose card is kept.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from blora_nb.assets import TINY_SDXL
from training_pictures import WORK

HERE = Path(__file__).resolve().parent


def run(script, *arguments):
    processes = 1 if torch.cuda.is_available() else os.cpu_count()
    launcher = (
        ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)] if processes > 1 else []
    )
    print(">", script, *arguments, flush=True)
    subprocess.run(
        [sys.executable, *launcher, str(HERE / script), *arguments],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def publish(name, target):
    """Copy a finished model to `target`, keeping the README.md there."""
    for source in (WORK / name).rglob("*"):
        if source.is_file():
            goal = target / source.relative_to(WORK / name)
            goal.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, goal)


if __name__ == "__main__":
    run("train_autoencoder.py")
    run("train_tiny_sdxl.py")
    run(
        "train_tiny_sdxl.py", "--name", "tiny_sdxl_natural", "--routed", "0", "--pictures", "100000"
    )
    subprocess.run([sys.executable, str(HERE / "train_judge.py")], check=True)
    publish("tiny_sdxl", TINY_SDXL)
    print(
        "The B-LoRAs and the ControlNet in blora_nb/data belong to the model before. Remove "
        "them and make them again:"
    )
    print(
        "python data/train_examples.py; python data/train_tiny_controlnet.py. Then measure all "
        "of it: make bench; and make notebooks"
    )
