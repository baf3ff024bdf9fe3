"""How fast a B-LoRA trains here and in other people's scripts: same device, same settings, in turn, medians.

    python benchmarks/training_speed.py --size quarter [--device cuda] \\
        --original PATH/train_dreambooth_b-lora_sdxl.py --original_python ENV/bin/python \\
        --advanced PATH/train_dreambooth_lora_sdxl_advanced.py --advanced_python ENV/bin/python

The peers are not part of this project: name a checkout, and a Python with the packages it needs. With both of
them the size's table in training_speed.md and .json is written anew; without, our own training is measured and printed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
SIDE = {
    "thin": 64,
    "small": 96,
    "quarter": 256,
    "full": 512,
}  # on a CPU; of full half its own, so that a CPU can be asked
RANK = {"thin": 4, "small": 16, "quarter": 16, "full": 64}
PEERS = """The peers are the scripts of https://github.com/yardenfren1996/B-LoRA at e08380d and of https://github.com/huggingface/diffusers
(examples/advanced_diffusion_training) at 58eb52c; both READMEs turn gradient checkpointing on. Without both, named as its help says, the command
writes nothing."""
WARM_UP = {"thin": 3, "small": 3, "quarter": 3, "full": 1}  # steps that are not counted

OURS = """
import json, sys
import torch
from blora_nb.settings import TrainingSettings
from blora_nb.pipeline import load_pipeline
from blora_nb.training import train
from blora_nb.running.loss_guard import LossGuard
from peer_step_times import now, peak
base, picture, result, steps, rank, side, mode, compiled = sys.argv[1:]
cuda, times = torch.cuda.is_available(), []
look = LossGuard.look
def timed(watch):
    known = look(watch)
    if known:
        times.append((known[-1][0], now()))
    return known
LossGuard.look = timed
pipe = load_pipeline(base, dtype=torch.float16 if cuda else None)
blora = train(pipe, picture, TrainingSettings(rank=int(rank), resolution=int(side), max_train_steps=int(steps), gradient_checkpointing=mode, compile=compiled == "compiled"), progress=False)
json.dump({"times": times, "losses": blora.losses, "peak_mib": peak()}, open(result, "w"))
"""
VERSIONS = "import json, torch, diffusers, platform; print(json.dumps({'torch': torch.__version__, 'diffusers': diffusers.__version__, 'python': platform.python_version(), 'threads': torch.get_num_threads(), 'gpu': torch.cuda.get_device_name() if torch.cuda.is_available() else None}))"


def side_of(size, cuda):
    return 1024 if cuda and size == "full" else SIDE[size]


def peer_flags(base, pictures, out, steps, size, cuda):
    flags = {
        "pretrained_model_name_or_path": base,
        "instance_data_dir": pictures,
        "output_dir": out,
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
    return [f"--{name}={value}" for name, value in flags.items()]


def contestants(args, base, pictures, picture, folder):
    """Name to command; each command ends with the file for its result."""
    result, cuda = str(folder / "result.json"), args.device == "cuda"
    ours = lambda mode, compiled="": [
        sys.executable,
        "-c",
        OURS,
        base,
        picture,
        result,
        str(args.steps),
        str(RANK[args.size]),
        str(side_of(args.size, cuda)),
        mode,
        compiled,
    ]
    peer = lambda python, script, *more: [
        python,
        str(HERE / "peer_step_times.py"),
        script,
        result,
        *peer_flags(base, pictures, str(folder / "peer"), args.steps, args.size, cuda),
        *more,
    ]
    found = {
        "blora_nb": ours("none"),
        "blora_nb, blocks compiled": ours("none", "compiled"),
        "blora_nb, all recomputed": ours("full"),
    }
    if args.original:
        found["original script"] = peer(args.original_python, args.original)
        found["original script with gradient checkpointing"] = peer(
            args.original_python, args.original, "--gradient_checkpointing"
        )
    if args.advanced:
        found["diffusers' advanced script, latents cached"] = peer(
            args.advanced_python, args.advanced, "--use_blora", "--cache_latents"
        )
        found["diffusers' advanced script with gradient checkpointing, latents cached"] = peer(
            args.advanced_python,
            args.advanced,
            "--use_blora",
            "--cache_latents",
            "--gradient_checkpointing",
        )
    return found, result


def environment(cuda):
    """Of the processes that are measured: no network, no GPU unless it is asked for."""
    hidden = {} if cuda else {"CUDA_VISIBLE_DEVICES": ""}
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])),
        **hidden,
    }


def run(command, result, warm_up, cuda):
    """(seconds of each step, losses, peak memory in MiB)"""
    done = subprocess.run(command, capture_output=True, text=True, env=environment(cuda))
    if not Path(result).exists():
        raise RuntimeError(f"{command[:3]} ended without a result:\n{done.stderr[-3000:]}")
    found = json.loads(Path(result).read_text())
    Path(result).unlink()
    times = [
        (step, seconds) for step, seconds in found["times"] if step >= warm_up
    ]  # on a GPU several steps become known at once
    if len(times) < 2:
        raise RuntimeError(f"{command[:3]} made too few steps:\n{done.stderr[-3000:]}")
    (first, start), (last, end) = times[0], times[-1]
    steps = (
        [(end - start) / (last - first)]
        if cuda
        else [b - a for (_, a), (_, b) in zip(times, times[1:])]
    )
    return steps, found["losses"], found["peak_mib"]


def measure(args):
    from blora_nb.files.images import read_image

    cuda = args.device == "cuda"
    side = side_of(args.size, cuda)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        base, pictures = folder / "base", folder / "pictures"
        if args.base:
            base = Path(args.base)
        else:
            subprocess.run(
                [
                    args.original_python if args.original else sys.executable,
                    str(HERE / "random_sdxl.py"),
                    str(base),
                    args.size,
                ],
                check=True,
                capture_output=True,
            )
        pictures.mkdir()
        read_image(HERE.parent / "data" / "examples" / "star_sunset.png").resize((side,) * 2).save(
            pictures / "picture.png"
        )
        found, result = contestants(
            args, str(base), str(pictures), str(pictures / "picture.png"), folder
        )
        rows = {name: {"steps": [], "losses": [], "peak_mib": 0, "medians": []} for name in found}
        for round_ in range(args.rounds):
            for name, command in found.items():
                steps, losses, peak = run(
                    command, result, WARM_UP[args.size] + (10 if cuda else 0), cuda
                )
                row = rows[name]
                row["steps"] += steps
                row["medians"].append(median(steps))
                row["losses"] = losses
                row["peak_mib"] = max(row["peak_mib"], peak)
                print(
                    f"round {round_ + 1}, {name}: {median(steps):.3f} s a step, mean loss {sum(losses) / len(losses):.4f}",
                    flush=True,
                )
    best = rows["blora_nb"]["medians"]
    return {
        "rank": RANK[args.size],
        "side": side,
        "steps": args.steps,
        "rounds": args.rounds,
        "rows": {
            name: {
                "seconds a step": median(row["steps"]),
                "times ours": median(theirs / ours for theirs, ours in zip(row["medians"], best)),
                "peak memory, MiB": row["peak_mib"],
                "mean loss": sum(row["losses"]) / len(row["losses"]),
            }
            for name, row in rows.items()
        },
        "versions": {"ours": versions(sys.executable, cuda)}
        | ({"original": versions(args.original_python, cuda)} if args.original else {})
        | ({"advanced": versions(args.advanced_python, cuda)} if args.advanced else {}),
    }


def versions(python, cuda):
    return json.loads(
        subprocess.run(
            [python, "-c", VERSIONS],
            capture_output=True,
            text=True,
            check=True,
            env=environment(cuda),
        ).stdout.splitlines()[-1]
    )


def write(sizes):
    text = f"# How fast a B-LoRA trains\n\nMade by `python benchmarks/training_speed.py`: one picture, batch 1; the scripts run in turn. {PEERS}\n\nOn a CPU in float32, and\nseconds are processor seconds (the computer was shared, so that those on the clock tell more of the others), memory that of the\nprocess; the ratio is the median over\n"
    text += (
        "the rounds of (their median step / ours in the same round). The models have random weights, so the losses only tell that the\nsame thing is computed: each program draws its own noise."
        + (
            ""
            if any(r["versions"]["ours"].get("gpu") for r in sizes.values())
            else " Not run on a GPU."
        )
        + "\n"
    )
    text += "\nThe size thin has the depth of SDXL and a twentieth of its width or less: so little is computed that a step takes as long as the computer needs to hand\nout its operations, which is what a fast GPU waits for. On a GPU the peers hand out more still, as their mixed precision converts numbers in\nevery layer, which on this CPU they do not (followed.md counts it).\n"
    order = list(SIDE)
    for size, r in sorted(sizes.items(), key=lambda item: order.index(item[0].split()[0])):
        gpu = r["versions"]["ours"].get("gpu")
        device = (
            f"{gpu}, float16, seconds on the clock, memory of the GPU"
            if gpu
            else f"{r['versions']['ours']['threads']} thread(s)"
        )
        v = "; ".join(
            f"{who}: Python {x['python']}, torch {x['torch']}, diffusers {x['diffusers']}"
            for who, x in r["versions"].items()
        )
        text += f"\n## {size}: {r['side']} px, rank {r['rank']}, {r['steps']} steps, {r['rounds']} rounds, {device}\n\n{v}\n\n| | seconds a step | times ours | peak memory, MiB | mean loss |\n|---|---|---|---|---|\n"
        text += "".join(
            f"| {name} | {x['seconds a step']:.3f} | {x['times ours']:.2f} | {x['peak memory, MiB']:.0f} | {x['mean loss']:.3f} |\n"
            for name, x in r["rows"].items()
        )
    (HERE / "training_speed.md").write_text(text)
    (HERE / "training_speed.json").write_text(json.dumps(sizes, indent=1) + "\n")
    print(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=tuple(SIDE), default="quarter")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--steps",
        type=int,
        default=12,
        help="on a GPU 50 or more, of which the first are not counted",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--base", help="folder that random_sdxl.py has made for this size; by default a new one"
    )
    for peer in ("original", "advanced"):
        parser.add_argument(f"--{peer}", help="path of the script in a checkout")
        parser.add_argument(f"--{peer}_python", help="a Python that has what it needs")
    args = parser.parse_args()
    if args.device == "cuda" and not versions(sys.executable, True)["gpu"]:
        parser.error("there is no GPU here")
    found, stored = measure(args), HERE / "training_speed.json"
    if not (args.original and args.advanced):
        print(
            "Seconds a step; nothing is written without both peers:",
            {name: round(row["seconds a step"], 4) for name, row in found["rows"].items()},
        )
        return
    write(
        (json.loads(stored.read_text()) if stored.exists() else {})
        | {args.size + (" on a GPU" if args.device == "cuda" else ""): found}
    )


if __name__ == "__main__":
    main()
