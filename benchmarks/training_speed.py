"""How fast a B-LoRA trains here and in other people's scripts.

    python benchmarks/training_speed.py --size quarter [--device cuda] \\
        --original PATH/train_dreambooth_b-lora_sdxl.py --original_python ENV/bin/python \\
        --advanced PATH/train_dreambooth_lora_sdxl_advanced.py --advanced_python ENV/bin/python

Same device, same settings, in turn, medians. The peers are not part of this project: name a
checkout, and a Python with the packages it needs. With both of them the size's table in
training_speed.md and .json is written anew; without, our own training is measured and printed.
"""

import argparse
import json
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

import peers
from peers import ABOUT_PEERS, RANK, SIDE, side_of
from report import HERE, stored, table, write

WARM_UP = {"thin": 3, "small": 3, "quarter": 3, "full": 1}  # steps that are not counted


def contestants(
    args: argparse.Namespace, base: Path, folder: Path, result: Path
) -> dict[str, list[str]]:
    """Name → command; each writes its step times to `result`."""
    cuda = args.device == "cuda"
    picture = folder / "pictures" / "picture.png"

    def ours(mode: str, compiled: bool = False) -> list[str]:
        settings = {
            "rank": RANK[args.size],
            "resolution": side_of(args.size, cuda),
            "max_train_steps": args.steps,
            "gradient_checkpointing": mode,
            "compile": compiled,
        }
        script = HERE / "our_step_times.py"
        return [sys.executable, *map(str, (script, result, base, picture)), json.dumps(settings)]

    found = {
        "blora_nb": ours("none"),
        "blora_nb, blocks compiled": ours("none", compiled=True),
        "blora_nb, all recomputed": ours("full"),
    }
    commands = peers.peer_commands(args, base, folder, args.size, args.steps, cuda)
    for name, (python, script, *flags) in commands.items():
        found[name] = [python, str(HERE / "peer_step_times.py"), script, str(result), *flags]
    return found


def seconds_of_steps(times: list[tuple[int, float]], warm_up: int, cuda: bool) -> list[float]:
    """Seconds of each step after the warm-up; on a GPU their mean, as it is seldom waited for."""
    counted = [(step, seconds) for step, seconds in times if step >= warm_up]
    if len(counted) < 2:
        raise RuntimeError(f"There were too few steps after the warm-up: {times}")
    if cuda:
        (first, start), (last, end) = counted[0], counted[-1]
        return [(end - start) / (last - first)]
    return [end - start for (_, start), (_, end) in pairwise(counted)]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The numbers of one size."""
    cuda = args.device == "cuda"
    side, warm_up = side_of(args.size, cuda), WARM_UP[args.size] + (10 if cuda else 0)
    seen: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder, result = Path(temporary), Path(temporary) / "result.json"
        base = peers.prepare(args, folder, args.size, side)
        commands = contestants(args, base, folder, result)
        for round_ in range(args.rounds):
            for name, command in commands.items():
                found, _ = peers.run(command, result, cuda)
                found["steps"] = seconds_of_steps(found["times"], warm_up, cuda)
                seen.setdefault(name, []).append(found)
                speed, loss = median(found["steps"]), mean(found["losses"])
                speed_and_loss = f"{speed:.3f} s a step, mean loss {loss:.4f}"
                print(f"round {round_ + 1}, {name}: {speed_and_loss}", flush=True)
    ours = [median(found["steps"]) for found in seen["blora_nb"]]
    rows = {}
    for name, rounds in seen.items():
        theirs = [median(found["steps"]) for found in rounds]
        rows[name] = {
            "seconds a step": median(step for found in rounds for step in found["steps"]),
            "times ours": median(a / b for a, b in zip(theirs, ours)),
            "peak memory, MiB": max(found["peak_mib"] for found in rounds),
            "mean loss": mean(rounds[-1]["losses"]),
        }
    return {
        "rank": RANK[args.size],
        "side": side,
        "steps": args.steps,
        "rounds": args.rounds,
        "rows": rows,
        "versions": peers.versions(args, cuda),
    }


def section(size: str, numbers: dict[str, Any]) -> str:
    """Heading, versions and table of one size."""
    ours = numbers["versions"]["ours"]
    device = f"{ours['threads']} thread(s)"
    if ours.get("gpu"):
        device = f"{ours['gpu']}, float16, seconds on the clock, memory of the GPU"
    rows = []
    for name, row in numbers["rows"].items():
        speed, ratio = f"{row['seconds a step']:.3f}", f"{row['times ours']:.2f}"
        rows.append([name, speed, ratio, f"{row['peak memory, MiB']:.0f}"])
        rows[-1].append(f"{row['mean loss']:.3f}")
    columns = ["seconds a step", "times ours", "peak memory, MiB", "mean loss"]
    counts = f"{numbers['steps']} steps, {numbers['rounds']} rounds"
    return f"""
## {size}: {numbers["side"]} px, rank {numbers["rank"]}, {counts}, {device}

{peers.versions_line(numbers["versions"])}

{table(columns, rows)}"""


def report(sizes: dict[str, dict[str, Any]]) -> None:
    on_gpu = any(numbers["versions"]["ours"].get("gpu") for numbers in sizes.values())
    text = f"""# How fast a B-LoRA trains

Made by `python benchmarks/training_speed.py`: one picture, batch 1; the scripts run in turn.
{ABOUT_PEERS}

On a CPU in float32, and seconds are processor seconds (the computer was shared, so those on the
clock would tell more about other programs), memory that of the process; the ratio is the median
over the rounds of (their median step / ours in the same round). The models have random weights, so
the losses only tell that the same thing is computed: each program draws its own noise.\
{"" if on_gpu else " Not run on a GPU."}

The size thin has the depth of SDXL and a twentieth of its width or less: so little is computed that
a step takes as long as the computer needs to hand out its operations, which is what a fast GPU
waits for. On a GPU the peers hand out more still, as their mixed precision converts numbers in
every layer, which on this CPU they do not (followed.md counts it).
"""
    order = list(SIDE)
    for size in sorted(sizes, key=lambda size: order.index(size.split()[0])):
        text += section(size, sizes[size])
    write("training_speed", text, sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    steps = "on a GPU 50 or more, of which the first are not counted"
    parser.add_argument("--size", choices=tuple(SIDE), default="quarter")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=12, help=steps)
    parser.add_argument("--rounds", type=int, default=3)
    peers.add_flags(parser)
    args = parser.parse_args()
    if args.device == "cuda" and not peers.versions(args, cuda=True)["ours"]["gpu"]:
        parser.error("there is no GPU here")
    found = measure(args)
    if args.original and args.advanced:
        size = args.size + (" on a GPU" if args.device == "cuda" else "")
        report(stored("training_speed") | {size: found})
        return
    seconds = {name: round(row["seconds a step"], 4) for name, row in found["rows"].items()}
    print("Seconds a step; nothing is written without both peers:", seconds)


if __name__ == "__main__":
    main()
