"""One command for a machine with an NVIDIA GPU: measure all that was only computed without one.

    python benchmarks/gpu.py [--minutes 30] [--wheels FOLDER] \\
        [--original PATH/train_dreambooth_b-lora_sdxl.py --original_python ENV/bin/python] \\
        [--advanced PATH/train_dreambooth_lora_sdxl_advanced.py --advanced_python ENV/bin/python]
    python benchmarks/gpu.py --simulate    # the dry run, without a GPU: nothing is measured

SDXL at full size with random weights, the teaching model, and the original's recorded run. Each
part is a process of its own with a limit; its result is in outputs/gpu/DEVICE.json and .md before
the next begins. The same command goes on where it was stopped. benchmarks/gpu.md says more.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import gpu_packages
import peers
from gpu_parts import PARTS, Part
from gpu_table import document
from report import HERE, OUTPUTS

ROOT = HERE.parent
NEED_BASE = ("train", "generate", "peer", "two_gpus")
LEAST = 20  # seconds that must be left for another part to begin
# what the device is, asked in a process of its own, which takes no memory on it afterwards
ASK = """
import json, torch
found = {"gpus": torch.cuda.device_count() if torch.cuda.is_available() else 0}
if found["gpus"]:
    device = torch.cuda.get_device_properties(0)
    found["device"], found["memory, GiB"] = device.name, device.total_memory / 2**30
    found["capability"], found["CUDA"] = f"{device.major}.{device.minor}", torch.version.cuda
print(json.dumps(found))
"""

Results = dict[str, Any]


class Unfinished(Exception):
    """The time of this call is over."""


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--list", action="store_true", help="print the names of the parts, and what is done")
    add("--part", action="append", metavar="NAME", help="only parts whose names begin so")
    again = 'repeat parts whose names begin so; "failed": those that failed'
    add("--again", action="append", default=[], metavar="NAME", help=again)
    add(
        "--minutes", type=float, metavar="N", help="how long this call may run; by default no limit"
    )
    add("--part_minutes", type=float, default=8, metavar="N", help="limit of a part; 8 by default")
    add("--output", type=Path, help="the JSON file; by default outputs/gpu/DEVICE.json")
    wheels = "install what is missing from a folder of wheels, without a network, never PyTorch"
    add("--wheels", type=Path, metavar="FOLDER", help=wheels)
    add("--steps", type=int, default=40, help="of a training of SDXL; the first 10 are not counted")
    add("--simulate", action="store_true", help="a dry run on the simulated GPU, without one")
    size = "of the dry run's SDXL; the smaller one takes less time"
    add("--size", choices=("small", "full"), default="full", help=size)
    peers.add_flags(parser)
    return parser


def named(names: list[str]) -> set[str]:
    """The names of the parts that are meant: one in full, or all that begin so."""
    found = set()
    for name in names:
        alike = {part.name for part in PARTS if part.name.startswith(name)}
        found |= {name} if name in alike else alike
    return found


def check_names(parser: argparse.ArgumentParser, names: list[str]) -> None:
    """End with an error for a name that no part begins with."""
    for name in names:
        if name != "failed" and not named([name]):
            parser.error(f"no part's name begins with {name!r}; --list prints them")


def environment(simulate: bool) -> dict[str, str]:
    """Of a part's process: this copy of the project, no network."""
    given = peers.environment(cuda=not simulate)
    return given | {"PYTHONPATH": os.pathsep.join([str(ROOT), given["PYTHONPATH"]])}


def ask(parser: argparse.ArgumentParser, simulate: bool) -> dict[str, Any]:
    """What the rows were made with: device, versions. Ends with an error where there is no GPU."""
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"gpus": 0}
    torch = gpu_packages.version_of("torch")
    if simulate:
        if found["gpus"]:
            parser.error("there is a real GPU here: leave out --simulate")
        found["device"] = "simulated GPU"
    elif not found["gpus"]:
        parser.error(
            f"PyTorch {torch} finds no NVIDIA GPU here, and nothing was measured. Run this on a "
            "machine with one, with a PyTorch made for its CUDA (pytorch.org, Get started), or "
            "try the dry run, which needs none: python benchmarks/gpu.py --simulate"
        )
    packages = ("diffusers", "transformers", "peft", "accelerate", *gpu_packages.OPTIONAL)
    there = {name: gpu_packages.version_of(name) for name in packages}
    return found | {"torch": torch} | there


# ----------------------------------------------------------------------------------------- results


def read(output: Path, device: str, args: argparse.Namespace) -> Results:
    """The results so far, or none."""
    size = args.size if args.simulate else "full"
    empty: Results = {"device": device, "simulated": args.simulate, "size": size, "parts": {}}
    if not output.exists():
        return empty
    found = json.loads(output.read_text())
    for key in ("device", "simulated", "size"):
        if found[key] != empty[key]:
            there = f"{output} has results of another run ({key}: {found[key]}, not {empty[key]})"
            raise ValueError(f"{there}; name another --output")
    return found


def write_whole(file: Path, text: str) -> None:
    """Write a file completely or not at all."""
    unfinished = file.with_name(file.name + ".part")
    unfinished.write_text(text)
    unfinished.replace(file)


def keep(output: Path, results: Results) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, json.dumps(results, indent=1) + "\n")
    write_whole(output.with_suffix(".md"), document(results))


# ------------------------------------------------------------------------------------------- parts


def asked(args: argparse.Namespace, results: Results) -> list[Part]:
    """The parts of this call, in their order: those not done, and those to be repeated.

    What could not run, for want of a package or a script, is tried again.
    """
    again, only = named(args.again), named(args.part or [])
    found = []
    for part in PARTS:
        state = results["parts"].get(part.name, {}).get("state", "cannot")
        repeated = part.name in again or ("failed" in args.again and state == "failed")
        wanted = part.name in only if args.part else not args.again
        if repeated or (wanted and state == "cannot"):
            found.append(part)
    return found


def obstacle(part: Part, args: argparse.Namespace) -> str:
    """Why a part cannot run here, known without trying; empty where it can."""
    lacking = gpu_packages.missing(part.needs)
    if lacking:
        return f"the package {lacking[0]} is missing ({sys.executable} -m pip install {lacking[0]})"
    if args.simulate and part.not_simulated:
        return part.not_simulated
    peer = part.options.get("peer")
    if peer and not getattr(args, peer):
        return f"no script was named with --{peer}"
    if part.kind in NEED_BASE and not args.simulate and not has_base(args.base):
        return "there is no base; the part before makes it"
    return ""


def has_base(folder: str) -> bool:
    return (Path(folder) / "model_index.json").exists()


@contextmanager
def started(command: list[str], log: Path, simulate: bool) -> Iterator[subprocess.Popen]:
    """A process in a group of its own; whatever happens, nothing of it is left behind."""
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env=environment(simulate), start_new_session=True
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):  # a child may live on when the part itself has died
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run(part: Part, how: dict[str, Any], args: argparse.Namespace, log: Path, until: float) -> dict:
    """The result of a part.

    Raises:
        Unfinished: this call's time was over before the part's.
    """
    limit = 60 * args.part_minutes
    left = until - time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, str(HERE / "gpu_part.py"), str(result), part.name]
        with started([*command, json.dumps(how)], log, args.simulate) as process:
            try:
                process.wait(min(limit, left))
            except subprocess.TimeoutExpired:
                if left < limit:
                    raise Unfinished from None
                return {"state": "failed", "why": f"stopped after {args.part_minutes:g} minutes"}
        if result.exists():
            return json.loads(result.read_text())
    lines = log.read_text(errors="replace").strip().split("\n")
    return {"state": "failed", "why": f"ended with {process.returncode}: {lines[-1][:200]}"}


def measure(args: argparse.Namespace, output: Path, results: Results, made_with: dict) -> None:
    """All parts that were asked for; what each found is kept at once."""
    until = time.monotonic() + 60 * args.minutes if args.minutes else float("inf")
    how: dict[str, Any] = {"base": args.base, "simulate": args.simulate, "size": args.size}
    for peer in ("original", "advanced"):
        how |= {name: getattr(args, name) for name in (peer, f"{peer}_python")}
    how["steps"] = 2 if args.simulate else args.steps
    if args.simulate:
        how |= {"warm_up": 1, "inference_steps": 2, "pictures": 1}
    logs = output.with_suffix(".logs")
    logs.mkdir(parents=True, exist_ok=True)
    todo = asked(args, results)
    if (
        any(part.kind in NEED_BASE for part in todo)
        and not args.simulate
        and not has_base(args.base)
    ):
        todo = [part for part in PARTS if part in todo or part.kind == "base"]
    for number, part in enumerate(todo, 1):
        start = time.monotonic()
        why = obstacle(part, args)
        if not why and until - start < LEAST:
            raise Unfinished
        print(f"{number} of {len(todo)}, {part.name}: ", end="", flush=True)
        log = logs / (re.sub(r"\W+", "-", part.name) + ".log")
        found: dict[str, Any] = (
            {"state": "cannot", "why": why} if why else run(part, how, args, log, until)
        )
        found["wall, s"] = None if args.simulate else time.monotonic() - start
        results["parts"][part.name] = found | {"made with": made_with}
        keep(output, results)
        print(found.get("why") or f"{found['state']}, {brief(found['numbers'])}", flush=True)


def brief(numbers: dict[str, Any]) -> str:
    """The first numbers of a part, for a line on the screen."""
    shown = []
    for name, number in list(numbers.items())[:3]:
        if isinstance(number, float):
            shown.append(f"{name}: {number:.3g}")
        else:
            shown.append(f"{name}: {'not measured' if number is None else number}")
    return "; ".join(shown)


def print_list(results: Results) -> None:
    for part in PARTS:
        found = results["parts"].get(part.name, {})
        state = found.get("state", "not run yet")
        print(f"{part.name}: {state}" + (f" ({found['why']})" if "why" in found else ""))


def stop(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> int:
    parser = arguments()
    args = parser.parse_args()
    check_names(parser, [*(args.part or []), *args.again])
    if why := gpu_packages.no_start():
        parser.error(why)
    if args.wheels:
        if not args.wheels.is_dir():
            parser.error(f"there is no folder {args.wheels}")
        for line in gpu_packages.install(args.wheels, ROOT / "pyproject.toml"):
            print(line, file=sys.stderr)
    if why := gpu_packages.not_installed():
        parser.error(why)
    made_with = ask(parser, args.simulate)
    for peer in ("original", "advanced"):
        python = getattr(args, f"{peer}_python") or sys.executable
        setattr(args, f"{peer}_python", python)
    args.base = str(Path(args.base or OUTPUTS / "gpu" / "base").resolve())
    slug = re.sub(r"\W+", "-", made_with["device"])
    output = (args.output or OUTPUTS / "gpu" / f"{slug}.json").resolve()
    try:
        results = read(output, made_with["device"], args)
    except ValueError as error:
        parser.error(str(error))
    if args.list:
        print_list(results)
        return 0
    signal.signal(signal.SIGTERM, stop)
    last_words, code = "", 0
    try:
        measure(args, output, results, made_with)
    except Unfinished:
        last_words = "The time is over; the same command goes on."
    except KeyboardInterrupt:
        last_words, code = "Stopped; the same command goes on.", 130
    keep(output, results)
    print(f"\n{document(results)}\nWritten to {output} and {output.with_suffix('.md').name}.")
    if last_words:
        print(last_words)
    return code


if __name__ == "__main__":
    sys.exit(main())
