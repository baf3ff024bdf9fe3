"""Muon for the inner matrices of a network, AdamW for the rest; shared between processes.

Each kernel is taken as a matrix [out, in · height · width] that shares the kernel's memory.
Orthogonalising is costly, so each process does its share of the matrices.
Without weight decay the matrices grow until steps of a fixed size hardly move them.

PyTorch's own `torch.optim.Muon` computes in bfloat16 only: on a processor without instructions for
it, it takes eight times as long as the rest of the step.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from processes import HAS_BFLOAT16

MOMENTUM = 0.95
# of the quintic Newton-Schulz iteration: Jordan et al., "Muon", 2024
A, B, C = 3.4445, -4.7750, 2.0315


def orthogonalized(matrix: Tensor, iterations: int = 5) -> Tensor:
    """The matrix with singular values of about 1 (0.5 to 1.5)."""
    x = matrix.bfloat16() if HAS_BFLOAT16 else matrix
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return (x.T if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, then a step along the orthogonalized matrix (Jordan et al., 2024)."""

    def __init__(self, matrices: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                momentum = state["momentum_buffer"].lerp_(matrix.grad, 1 - MOMENTUM)
                update = orthogonalized(matrix.grad.lerp(momentum, MOMENTUM))
                stretch = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-group["lr"] * stretch)


def is_inner_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon takes it: kernels and linear layers, not what the network reads and writes with.

    The first and the last layer, embeddings, biases and norms stay with AdamW. So do the tutors:
    Muon gave the one strongest direction of a style, its lightness, all of their weights.
    """
    layer = name.split(".")[-2] if "." in name else ""
    outer = layer in ("conv_in", "conv_out", "") or name.startswith("tutors.")
    return parameter.ndim in (2, 4) and not outer


class MatrixMuon:
    """Muon on a model's inner matrices, `torch.optim.AdamW` on everything else.

    Args:
        model: whose parameters are trained; see `is_inner_matrix`.
        muon_lr, adam_lr: learning rates at their peak.
        weight_decay: of the matrices; each step takes `lr · weight_decay` of them away.
        rank, world: this process and how many there are.

    Raises:
        ValueError: a kernel is not contiguous.
    """

    def __init__(
        self,
        model: nn.Module,
        muon_lr: float,
        adam_lr: float,
        weight_decay: float = 0.0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        named = list(model.named_parameters())
        self.kernels = [p for name, p in named if is_inner_matrix(name, p)]
        self.rest = [p for name, p in named if not is_inner_matrix(name, p)]
        self.matrices = [torch.nn.Parameter(p.detach().flatten(1)) for p in self.kernels]
        if any(m.data_ptr() != k.data_ptr() for m, k in zip(self.matrices, self.kernels)):
            raise ValueError(
                "A kernel is not contiguous (channels_last?): its matrix would be a copy, and the "
                "kernel would never change."
            )
        by_size = sorted(range(len(self.matrices)), key=lambda i: -self.matrices[i].numel())
        self.owner = {i: place % world for place, i in enumerate(by_size)}
        self.rank, self.world = rank, world
        mine = [m for i, m in enumerate(self.matrices) if self.owner[i] == rank]
        self.muon = Muon(mine, muon_lr, weight_decay)
        self.adam = torch.optim.AdamW(self.rest, lr=adam_lr, betas=(0.9, 0.99), weight_decay=0.0)
        self.peaks = muon_lr, adam_lr

    def scale_learning_rate(self, factor: float) -> None:
        """Set both learning rates to a share of what they were at the start."""
        for optimizer, peak in zip((self.muon, self.adam), self.peaks):
            for group in optimizer.param_groups:
                group["lr"] = peak * factor

    def step(self) -> None:
        for kernel, matrix in zip(self.kernels, self.matrices):
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        self.muon.step()
        self.adam.step()
        if self.world > 1:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Give every process the matrices that the others have changed."""
        own = [torch.zeros_like(matrix) for matrix in self.matrices]
        for i, matrix in enumerate(self.matrices):
            if self.owner[i] == self.rank:
                own[i] = matrix
        flat = torch.cat([matrix.flatten() for matrix in own])
        dist.all_reduce(flat)
        for matrix, moved in zip(self.matrices, flat.split([m.numel() for m in self.matrices])):
            matrix.copy_(moved.view_as(matrix))

    def zero_grad(self) -> None:
        for parameter in self.kernels + self.rest:
            parameter.grad = None

    def state_dict(self) -> dict:
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
