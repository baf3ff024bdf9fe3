"""Several training processes as one.

On a CPU, one process for each core is twice as fast as one process with all cores.
"""

import os
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

T = TypeVar("T")


HAS_BFLOAT16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def start_processes() -> tuple[int, int, str]:
    """Rank, number of processes, and device, as `torchrun` says; without it there is one."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if world > 1:
        dist.init_process_group("gloo")
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    return rank, world, device


def process_0_first(work: Callable[[], T], rank: int, world: int) -> T:
    """The result of `work()`, which the others call once process 0 has written its files."""
    if rank == 0:
        result = work()
    wait_for_all(world)
    return result if rank == 0 else work()


def average_gradients(parameters: Iterable[nn.Parameter], world: int) -> None:
    """Give every process the mean of all processes' gradients."""
    if world == 1:
        return
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, mean in zip(gradients, (flat / world).split([g.numel() for g in gradients])):
        gradient.copy_(mean.view_as(gradient))


def gather(state: dict, rank: int, world: int) -> list[dict]:
    """The states of all processes as a list, at process 0."""
    if world == 1:
        return [state]
    states: list = [None] * world
    dist.gather_object(state, states if rank == 0 else None)
    return states


def wait_for_all(world: int) -> None:
    if world > 1:
        dist.barrier()


def half_precision() -> torch.autocast:
    """Compute in bfloat16 where the processor has instructions for it.

    Without them bfloat16 is ten times slower than float32.
    """
    return torch.autocast("cpu", torch.bfloat16, enabled=HAS_BFLOAT16)
