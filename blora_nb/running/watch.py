"""An eye on a running training: losses without waiting for the device, a stop at the end of a step, trouble noticed early."""

import signal
import threading
from contextlib import contextmanager
from math import isfinite
from statistics import median
from time import monotonic

import torch

from blora_nb.errors import TrainingError

WINDOW = 20  # steps over which a spike is told from the ordinary ups and downs, and overflows from a scale still adapting


class Watch:
    """Collects each step's loss and gradient norm on the device and looks at them every few steps.

    Reading a number from a GPU makes the computer wait until the GPU has caught up, so it is done about twice a second and not at
    every step of a fast GPU; on a CPU there is nothing to wait for.
    The weights are copied at each look, twice over: those of the last look have not yet shown a finite loss. A loss that rises is
    noticed late, so copies of at least `WINDOW` steps ago are kept too. All of them are in the computer's memory, none on the GPU.
    """

    def __init__(self, parameters, losses, learning_rate, scaled):
        self.parameters, self.losses, self.learning_rate, self.scaled = (
            parameters,
            losses,
            learning_rate,
            scaled,
        )
        self.every, self.looked = 1, monotonic()
        self.pending, self.overflows = [], 0
        self.lowest = None  # median of the best window so far
        self.since, self.judged = (
            len(losses),
            True,
        )  # False: the loss is of a kind whose ups and downs have no measure
        self.tried = self.good = self.before = self.next_before = self._copy()

    def _copy(self):
        """(step, the weights after it), in memory that a GPU can write to while it goes on."""
        sizes, here = [p.numel() for p in self.parameters], self.parameters[0]
        whole = torch.empty(
            sum(sizes), dtype=here.dtype, pin_memory=here.is_cuda
        )  # pinned memory comes in large pieces
        weights = [part.view_as(p) for part, p in zip(whole.split(sizes), self.parameters)]
        torch._foreach_copy_(weights, [p.detach() for p in self.parameters], non_blocking=True)
        return len(self.losses), weights

    def saw(self, loss, norm):
        """Note a step; returns the (step, loss) pairs that a look has just made known."""
        self.pending.append(torch.stack([loss.detach().float(), norm.detach().float()]))
        return self.look() if len(self.pending) >= self.every else []

    def look(self):
        """Read what is pending. Raises a TrainingError at the first step that went wrong, the last good weights put back."""
        if not self.pending:
            return []
        known, steps = [], len(self.pending)
        for loss, norm in torch.stack(self.pending).tolist():
            step = len(self.losses) + 1
            self.overflows = (
                0 if isfinite(norm) else self.overflows + 1
            )  # with a gradient scaler single ones are usual
            if not isfinite(loss):
                self._stop(f"The loss became {loss} at step {step}.")
            if self.overflows and (not self.scaled or self.overflows >= WINDOW):
                self._stop(f"The gradient became {norm} at step {step}.")
            self.losses.append(loss)
            known.append((step, loss))
            recent = self.losses[self.since :][-WINDOW:]
            if len(recent) == WINDOW:
                level = median(recent)
                self.lowest = level if self.lowest is None else min(self.lowest, level)
                if self.judged and level > max(
                    1, 10 * self.lowest
                ):  # above 1 it is worse than predicting nothing at all
                    self.good = self.before
                    self._stop(
                        f"The loss has risen to {level:.3g}, ten times what it was before, by step {step}."
                    )
        self.pending.clear()
        if self.parameters[0].device.type != "cpu":
            seconds, self.looked = monotonic() - self.looked, monotonic()
            self.every = steps_between_looks(steps, seconds)
        self.good, self.tried = self.tried, self._copy()
        if self.good[0] >= self.next_before[0] + WINDOW:
            self.before, self.next_before = self.next_before, self.good
        return known

    def _stop(self, what):
        step, weights = self.good
        with torch.no_grad():
            torch._foreach_copy_([p.detach() for p in self.parameters], weights)
        overflow = (
            " In float16 the base model itself may overflow: load it with dtype bfloat16 or float32."
            if self.scaled
            else ""
        )
        error = TrainingError(
            f"{what} Try a smaller learning rate than {self.learning_rate}.{overflow} The weights of step {step} were still good."
        )
        error.step = step
        raise error


def steps_between_looks(steps, seconds):
    """How many steps to let pass until the next look, when `steps` took `seconds`: half a second's worth, 1 to 10."""
    return max(1, min(10, int(0.5 * steps / max(seconds, 1e-6))))


class Report:
    """What is told about a running training: a progress bar with the loss, or a call of `progress(step, steps, loss)` for each step."""

    def __init__(self, watch, steps, progress):
        from tqdm.auto import tqdm

        self.watch, self.steps, self.progress = (
            watch,
            steps,
            progress if callable(progress) else None,
        )
        self.bar = tqdm(
            total=steps, initial=len(watch.losses), desc="training", disable=progress is not True
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()

    def tell(self, known):
        """Tell of (step, loss) pairs."""
        for step, loss in known:
            recent = self.watch.losses[-WINDOW:]
            self.bar.set_postfix(loss=f"{sum(recent) / len(recent):.3f}", refresh=False)
            self.bar.update()
            if self.progress:
                self.progress(step, self.steps, loss)

    def look(self):
        """Tell of everything that is pending."""
        self.tell(self.watch.look())


class Stop:
    asked = False
    outer = None  # the one that listens to the signals at the moment


@contextmanager
def stop_at_the_end_of_a_step():
    """Inside, Ctrl-C (and the kernel's interrupt button, and a polite kill) only sets `asked`; the second one stops at once. One within another is the same."""
    stop, signals = Stop(), (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python delivers signals to the main thread only
        return
    if Stop.outer:
        yield Stop.outer
        return

    def ask(number, frame):
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    before, Stop.outer = {s: signal.signal(s, ask) for s in signals}, stop
    try:
        yield stop
    finally:
        Stop.outer = None
        for s, handler in before.items():
            signal.signal(s, handler)
