"""Ctrl-C, the kernel's interrupt button and SIGTERM: a training stops at the end of a step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Optional


class Stop:
    """Whether a stop has been asked for."""

    # the one that listens to the signals at the moment
    listening: Optional["Stop"] = None

    def __init__(self) -> None:
        self.asked = False


@contextmanager
def stop_at_the_end_of_a_step() -> Iterator[Stop]:
    """Inside, the first signal only sets `asked`, the second one stops at once.

    Nested ones share the flag of the outermost.
    """
    if threading.current_thread() is not threading.main_thread():
        yield Stop()  # Python delivers signals to the main thread only
        return
    if Stop.listening:
        yield Stop.listening
        return
    stop = Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, ask) for number in signals}
    Stop.listening = stop
    try:
        yield stop
    finally:
        Stop.listening = None
        for number, handler in before.items():
            signal.signal(number, handler)
