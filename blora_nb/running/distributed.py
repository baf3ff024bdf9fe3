"""Work shared between the processes that `accelerate launch` or `torchrun` has started; a single process has all of it."""

import atexit
import os
import sys
from datetime import timedelta

import torch

PATIENCE = timedelta(
    days=30
)  # a process waits for the others as long as they train; the default, 10 minutes on GPUs, would end them all


def share(decide):
    """This process's part of the list that `decide()` returns, in processes started by `accelerate launch` or `torchrun`; all of it in one started by hand.

    The main process decides for all, because the others might see a file that has just been finished. Where that raises, the
    others end, too.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    state = PartialState()
    if state.num_processes == 1:
        return decide()
    box = [None]
    try:
        if state.is_main_process:
            box = [decide()]
    finally:
        broadcast_object_list(box)
    if box[0] is None:
        sys.exit(1)
    mine = box[0][state.process_index :: state.num_processes]
    print(
        f"process {state.process_index + 1} of {state.num_processes} trains {len(mine)} of {len(box[0])}",
        flush=True,
    )
    return mine


def launched(device=None):
    """(this process's device, is it the main one, a function that waits for the others and gathers a list of all)."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return device, True, lambda items: items
    from accelerate import PartialState
    from accelerate.utils import gather_object

    cpu = device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=cpu, timeout=PATIENCE)
    atexit.register(
        state.destroy_process_group
    )  # a process that leaves without it is aborted now and then
    return "cpu" if cpu else str(state.device), state.is_main_process, gather_object
