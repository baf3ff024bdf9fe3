"""Losses read without waiting for the device, trouble noticed early, the last good weights kept."""

from math import isfinite
from statistics import median
from time import monotonic
from typing import NoReturn

import torch
from torch import Tensor

from blora_nb.errors import TrainingError

# steps over which a spike is told from the ordinary ups and downs, and overflows from a scale that
# still adapts
WINDOW = 20


class LossGuard:
    """Collects each step's loss and gradient norm on the device, and reads them every few steps.

    Reading a number from a GPU makes the computer wait until the GPU has caught up, so it is done
    about twice a second. The weights are copied each time, into the computer's memory: the newest
    ones have not yet shown a finite loss, those before them have. A loss that rises is noticed
    late, so copies from at least `WINDOW` steps ago are kept too.

    Args:
        parameters: what is trained, of one dtype and on one device.
        losses: the losses so far; new ones are appended.
        scaled: whether a gradient scaler is at work (float16).
    """

    def __init__(
        self, parameters: list[Tensor], losses: list[float], learning_rate: float, scaled: bool
    ) -> None:
        self.parameters, self.losses = parameters, losses
        self.learning_rate, self.scaled = learning_rate, scaled
        self.every, self.looked = 1, monotonic()
        self.pending: list[Tensor] = []
        self.overflows = 0
        # median of the best window so far
        self.lowest: float | None = None
        self.since = len(losses)
        # False: the loss is of a kind whose ups and downs have no measure
        self.judged = True
        self.newest = self.confirmed = self.before_rise = self.next_before_rise = self._copy()

    def _copy(self) -> tuple[int, list[Tensor]]:
        """(step, the weights after it), in memory that a GPU can write to while it goes on."""
        sizes, first = [p.numel() for p in self.parameters], self.parameters[0]
        # pinned memory comes in large pieces
        whole = torch.empty(sum(sizes), dtype=first.dtype, pin_memory=first.is_cuda)
        parts = zip(whole.split(sizes), self.parameters, strict=True)
        weights = [part.view_as(p) for part, p in parts]
        torch._foreach_copy_(weights, [p.detach() for p in self.parameters], non_blocking=True)
        return len(self.losses), weights

    def add(self, loss: Tensor, norm: Tensor) -> list[tuple[int, float]]:
        """Note a step; returns the (step, loss) pairs that a look has just made known."""
        self.pending.append(torch.stack([loss.detach().float(), norm.detach().float()]))
        return self.read_pending() if len(self.pending) >= self.every else []

    def read_pending(self) -> list[tuple[int, float]]:
        """Read what is pending; returns (step, loss) pairs.

        Raises:
            TrainingError: at the first step that went wrong; the last good weights are put back.
        """
        if not self.pending:
            return []
        known = []
        for loss, norm in torch.stack(self.pending).tolist():
            self._check(loss, norm)
            self.losses.append(loss)
            known.append((len(self.losses), loss))
            self._check_level()
        self.pending.clear()
        if self.parameters[0].device.type != "cpu":
            seconds, self.looked = monotonic() - self.looked, monotonic()
            self.every = steps_between_looks(len(known), seconds)
        self.confirmed, self.newest = self.newest, self._copy()
        if self.confirmed[0] >= self.next_before_rise[0] + WINDOW:
            self.before_rise, self.next_before_rise = self.next_before_rise, self.confirmed
        return known

    def _check(self, loss: float, norm: float) -> None:
        """Stop where a loss or gradient is no number."""
        step = len(self.losses) + 1
        # with a gradient scaler single overflows are usual
        self.overflows = 0 if isfinite(norm) else self.overflows + 1
        if not isfinite(loss):
            self._stop(f"The loss became {loss} at step {step}.")
        if self.overflows and (not self.scaled or self.overflows >= WINDOW):
            self._stop(f"The gradient became {norm} at step {step}.")

    def _check_level(self) -> None:
        """Stop where the loss has risen to ten times its lowest level."""
        recent = self.losses[self.since :][-WINDOW:]
        if len(recent) < WINDOW:
            return
        level = median(recent)
        self.lowest = level if self.lowest is None else min(self.lowest, level)
        # above 1 it is worse than predicting nothing at all
        if self.judged and level > max(1, 10 * self.lowest):
            self.confirmed = self.before_rise
            self._stop(
                f"The loss has risen to {level:.3g}, ten times what it was before, by step "
                f"{len(self.losses)}."
            )

    def _stop(self, what: str) -> NoReturn:
        step, weights = self.confirmed
        with torch.no_grad():
            torch._foreach_copy_([p.detach() for p in self.parameters], weights)
        overflow = ""
        if self.scaled:
            overflow = (
                " In float16 the base model itself may overflow: load it with dtype bfloat16 or "
                "float32."
            )
        error = TrainingError(
            f"{what} Try a smaller learning rate than {self.learning_rate}.{overflow} "
            f"The weights of step {step} were still good."
        )
        error.step = step
        raise error


def steps_between_looks(steps: int, seconds: float) -> int:
    """Steps until the next look: half a second's worth, when `steps` took `seconds`."""
    return max(1, min(10, int(0.5 * steps / max(seconds, 1e-6))))
