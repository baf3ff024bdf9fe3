"""Run another project's training script, unchanged, and note when each step ended, and its loss.

    python benchmarks/peer_step_times.py SCRIPT RESULT.json --its --own --flags

It runs in the script's own environment. All that is replaced is Accelerate's logging, which the
script calls once a step; after the last step it ends the script, which would go on to save, load
the base model again and draw. Seconds are the processor's, on a GPU those on the clock once it has
caught up; the peak of memory is the process's, on a GPU that of the tensors on it.
"""

import importlib.util
import json
import resource
import sys
import time
from typing import Any


def now() -> float:
    """Seconds: processor time, on a GPU the time on the clock."""
    import torch

    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def peak() -> float:
    """Most memory so far, in MiB."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def reserved() -> float | None:
    """Most memory in MiB that PyTorch has taken from a GPU, with what it keeps for later."""
    import torch

    return torch.cuda.max_memory_reserved() / 2**20 if torch.cuda.is_available() else None


def main() -> None:
    import accelerate
    import accelerate.accelerator

    script, result, *arguments = sys.argv[1:]
    times: list[tuple[int, float]] = []
    losses: list[float] = []
    steps = next(int(a.split("=")[1]) for a in arguments if a.startswith("--max_train_steps="))

    def log(self: object, values: dict, step: int | None = None, **more: object) -> None:
        times.append((len(times) + 1, now()))
        losses.append(float(values["loss"]))
        if len(times) == steps:
            sys.exit()

    accelerate.accelerator.filter_trackers = lambda *a, **k: []
    accelerate.Accelerator.log = log
    accelerate.Accelerator.init_trackers = lambda *a, **k: None
    spec = importlib.util.spec_from_file_location("peer", script)
    assert spec is not None
    assert spec.loader is not None
    peer: Any = importlib.util.module_from_spec(spec)
    sys.modules["peer"] = peer
    spec.loader.exec_module(peer)
    try:
        peer.args = peer.parse_args(arguments)  # the original reads it as a global
        peer.main(peer.args)
    finally:
        found = {"times": times, "losses": losses, "peak_mib": peak(), "reserved_mib": reserved()}
        with open(result, "w") as file:
            json.dump(found, file)


if __name__ == "__main__":
    main()
