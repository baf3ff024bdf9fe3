"""Other projects' training scripts, which our own is compared with: how they are named and run."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report import EXAMPLES, HERE

# on a CPU; of full half its own, so that a CPU can be asked
SIDE = {"thin": 64, "small": 96, "quarter": 256, "full": 512}
RANK = {"thin": 4, "small": 16, "quarter": 16, "full": 64}
ABOUT_PEERS = """\
The peers are the scripts of https://github.com/yardenfren1996/B-LoRA at e08380d and of
https://github.com/huggingface/diffusers (examples/advanced_diffusion_training) at 58eb52c; both
READMEs turn gradient checkpointing on. Without both, named as its help says, the command writes
nothing."""
VERSIONS = """
import json, platform, torch, diffusers
print(json.dumps({
    "torch": torch.__version__,
    "diffusers": diffusers.__version__,
    "python": platform.python_version(),
    "threads": torch.get_num_threads(),
    "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
}))
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    base = "folder that random_sdxl.py has made for this size; by default a new one"
    parser.add_argument("--base", help=base)
    for peer in ("original", "advanced"):
        parser.add_argument(f"--{peer}", help="path of the script in a checkout")
        parser.add_argument(f"--{peer}_python", help="a Python that has what it needs")


def side_of(size: str, cuda: bool) -> int:
    """The resolution that a model of one of the sizes is trained at."""
    return 1024 if cuda and size == "full" else SIDE[size]


def environment(cuda: bool) -> dict[str, str]:
    """Of the processes that are measured: no network, no GPU unless it is asked for."""
    path = [str(HERE), os.environ.get("PYTHONPATH", "")]
    given = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(filter(None, path))}
    return given if cuda else {**given, "CUDA_VISIBLE_DEVICES": ""}


def run(command: Sequence[str], result: Path, cuda: bool) -> tuple[Any, str]:
    """What a process has written to `result` as JSON, and its last words.

    Raises:
        RuntimeError: it has written nothing.
    """
    done = subprocess.run(command, capture_output=True, text=True, env=environment(cuda))
    last_words = done.stderr[-3000:]
    if not result.exists():
        raise RuntimeError(f"{list(command[:3])} ended without a result:\n{last_words}")
    found = json.loads(result.read_text())
    result.unlink()
    return found, last_words


def versions(args: argparse.Namespace, cuda: bool) -> dict[str, dict[str, Any]]:
    """Who → versions of Python, PyTorch and diffusers."""
    pythons = {"ours": sys.executable}
    for peer in ("original", "advanced"):
        if getattr(args, peer):
            pythons[peer] = getattr(args, f"{peer}_python")
    found = {}
    for who, python in pythons.items():
        asked = subprocess.run(
            [python, "-c", VERSIONS],
            capture_output=True,
            text=True,
            check=True,
            env=environment(cuda),
        )
        found[who] = json.loads(asked.stdout.splitlines()[-1])
    return found


def versions_line(found: dict[str, dict[str, Any]]) -> str:
    parts = []
    for who, of in found.items():
        parts.append(
            f"{who}: Python {of['python']}, torch {of['torch']}, diffusers {of['diffusers']}"
        )
    return "; ".join(parts)


def prepare(args: argparse.Namespace, folder: Path, size: str, side: int | None = None) -> Path:
    """Make what a peer needs: a base of random weights, unless one is given, and a picture.

    Returns:
        The folder of the base. The picture is `folder`/pictures/picture.png.
    """
    from blora_nb.files.images import read_image

    picture = read_image(EXAMPLES / "star_sunset.png")
    (folder / "pictures").mkdir()
    if side:
        picture = picture.resize((side, side))
    picture.save(folder / "pictures" / "picture.png")
    if args.base:
        return Path(args.base)
    base = folder / "base"
    python = args.original_python if args.original else sys.executable
    command = [python, str(HERE / "random_sdxl.py"), str(base), size]
    subprocess.run(command, check=True, capture_output=True)
    return base


def peer_commands(
    args: argparse.Namespace, base: Path, folder: Path, size: str, steps: int, cuda: bool
) -> dict[str, list[str]]:
    """Name → Python, script, and the script's own flags."""
    flags = {
        "pretrained_model_name_or_path": base,
        "instance_data_dir": folder / "pictures",
        "output_dir": folder / "peer",
        "instance_prompt": "A [v]",
        "resolution": side_of(size, cuda),
        "rank": RANK[size],
        "train_batch_size": 1,
        "learning_rate": 5e-5,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "max_train_steps": steps,
        "checkpointing_steps": 10**6,
        "seed": 0,
        "mixed_precision": "fp16" if cuda else "no",
    }
    shared = [f"--{name}={value}" for name, value in flags.items()]
    recompute = "--gradient_checkpointing"
    found = {}
    if args.original:
        plain = [args.original_python, args.original, *shared]
        found["original script"] = plain
        found["original script with gradient checkpointing"] = [*plain, recompute]
    if args.advanced:
        cached = [args.advanced_python, args.advanced, *shared, "--use_blora", "--cache_latents"]
        name = "diffusers' advanced script"
        found[f"{name}, latents cached"] = cached
        found[f"{name} with gradient checkpointing, latents cached"] = [*cached, recompute]
    return found
