"""Work shared between the processes that `accelerate launch` or `torchrun` has started."""

import atexit
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch

Item = TypeVar("Item")

# A process waits for the others as long as they train. The default, 10 minutes on GPUs, would end
# them all.
PATIENCE = timedelta(days=30)


def join_processes(device: str | None = None) -> tuple[str | None, bool, Callable[[list], list]]:
    """Join the other processes, if there are any.

    Args:
        device: the one asked for; "cpu" keeps the processes off the GPUs.

    Returns:
        This process's device; whether it is the main process; and a function that waits for the
        others and gathers a list from all.
    """
    from accelerate import PartialState
    from accelerate.utils import gather_object

    on_cpu = device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=on_cpu, timeout=PATIENCE)
    if state.num_processes > 1:
        device = "cpu" if on_cpu else str(state.device)
        # a process that leaves without it is aborted now and then
        atexit.register(state.destroy_process_group)
    return device, state.is_main_process, gather_object


def split_jobs(decide: Callable[[], list[Item]]) -> list[Item]:
    """This process's part of the list that `decide` returns; a single process has all of it.

    The main process decides for all, because the others might see a file that has just been
    finished. Where that raises, the others end, too.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    state = PartialState()
    decided: list[list[Item] | None] = [None]
    try:
        if state.is_main_process:
            decided = [decide()]
    finally:
        broadcast_object_list(decided)
    everything = decided[0]
    if everything is None:
        sys.exit(1)
    with state.split_between_processes(everything) as mine:
        if state.num_processes > 1:
            here = f"process {state.process_index + 1} of {state.num_processes}"
            print(f"{here} trains {len(mine)} of {len(everything)}", flush=True)
        return mine
