"""Long work behind a button: one at a time on a pipeline, with progress, Cancel and errors."""

import html
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from blora_nb.registry import pipeline_lock
from blora_nb.running.device import host
from blora_nb.widgets.markup import AUTO

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

# JupyterLab sends a control's first message to the kernel's main thread and the later ones, clicks
# among them, to another. So a value typed just before the click may arrive after it; work in the
# background waits so many seconds for it.
SETTLING = 0.1

ERROR_COLOUR = "var(--jp-error-color1, #b3261e)"
STATUS = "line-height:1.4;min-height:1.4em;overflow-wrap:anywhere"
TRACEBACK = "font-size:11px;line-height:1.3;overflow:auto;max-height:12em"


class Cancelled(Exception):
    """Raised inside the work after Cancel; `generate` and `train` clean up and pass it on."""


def threads_reach_the_page() -> bool:
    """Whether the page shows at once how a background thread changes widgets.

    It does in JupyterLab and Voilà; Colab shows the changes only afterwards.
    """
    in_voila = os.environ.get("SERVER_SOFTWARE", "").startswith("voila")
    in_server = in_voila or "JPY_SESSION_NAME" in os.environ
    return in_server and host() not in ("Colab", "Kaggle")


class Worker(widgets.VBox):
    """A progress bar, a line of status and a Cancel button for the work of one panel.

    Args:
        pipe: the pipeline that is worked on; other panels on it wait.
        background: True works in a thread, so that Cancel can be pressed; False works inside the
            callback, and only an interrupt of the kernel stops it. By default a thread where its
            progress is seen (`threads_reach_the_page`).
        when_done: called when work has ended, in whatever way.

    Attributes:
        errors: the exceptions of all work so far, in order.
        buttons: those that are disabled during the work.
    """

    def __init__(
        self,
        pipe: "StableDiffusionXLPipeline",
        background: bool | None = None,
        when_done: Callable[[], None] = lambda: None,
    ) -> None:
        self.pipe = pipe
        self.background = threads_reach_the_page() if background is None else background
        self.when_done = when_done
        self.errors: list[Exception] = []
        self.buttons: list[widgets.Button] = []
        self.busy = False
        self.doing = ""
        self.thread: threading.Thread | None = None
        self._cancelled = threading.Event()
        self._starting = threading.Lock()
        self.cancel = widgets.Button(
            description="Cancel",
            icon="stop",
            disabled=True,
            layout=AUTO | {"display": "" if self.background else "none"},
        )
        self.cancel.on_click(lambda _: self.stop())
        self.progress = widgets.IntProgress(description="Progress", layout=AUTO)
        self.status = widgets.HTML()
        super().__init__([self.progress, self.status])
        self.say("Ready.")

    def say(self, text: str, remarks: Iterable[str] = (), error: bool = False) -> None:
        """Show a sentence in the panel, and remarks after it.

        An error is marked as one, in words and colour.
        """
        text = html.escape(" ".join([text, *(f"Note: {remark}" for remark in remarks)]))
        colour = "inherit"
        if error:
            text = f"<b>Error.</b> {text}"
            colour = ERROR_COLOUR
        self.status.value = (
            f'<div role="status" aria-live="polite" style="color:{colour};{STATUS}">{text}</div>'
        )

    def show(self, error: Exception) -> None:
        """Keep an exception and show it, with its traceback folded."""
        self.errors.append(error)
        self.say(str(error) or type(error).__name__, error=True)
        trace = html.escape("".join(traceback.format_exception(error)))
        self.status.value += (
            f'<details><summary>Details</summary><pre style="{TRACEBACK}">{trace}</pre></details>'
        )

    def start(self, doing: str, work: Callable[[], None], background: bool | None = None) -> None:
        """Run `work()`, which calls `self.step` as it goes on; do nothing during other work.

        Args:
            doing: what the status says meanwhile, e.g. "Drawing".
            work: reads the controls itself, when it begins.
            background: by default as the worker was made.
        """
        with self._starting:
            if self.busy:
                return
            self.busy = True
        self._cancelled.clear()
        self.doing = doing
        self._was_disabled = [button.disabled for button in self.buttons]
        for button in self.buttons:
            button.disabled = True
        self.cancel.disabled = False
        if self.background if background is None else background:
            self.thread = threading.Thread(target=self._run, args=(work,), daemon=True)
            self.thread.start()
        else:
            self._run(work)

    def stop(self) -> None:
        """Ask the work to end at its next step."""
        if self.busy:
            self._cancelled.set()
            self.cancel.disabled = True
            self.say("Stopping after this step …")

    def wait(self, seconds: float | None = None) -> None:
        """Wait for the work in the background to end."""
        if self.thread:
            self.thread.join(seconds)

    def step(self, done: int, total: int, *_: Any) -> None:
        """The progress callback of `generate` and `train`."""
        if self._cancelled.is_set():
            raise Cancelled
        self.progress.max = total
        self.progress.value = done
        how_to_stop = "" if self.background else " (interrupt the kernel to stop)"
        self.say(f"{self.doing}: step {done} of {total}{how_to_stop}")

    def _run(self, work: Callable[[], None]) -> None:
        try:
            if threading.current_thread() is self.thread:
                time.sleep(SETTLING)
            with self._pipeline_held():
                work()
        except Cancelled:
            self.say("Cancelled.")
        except KeyboardInterrupt:
            self.say("Stopped: the kernel was interrupted.")
        # a callback's exception would only be in a log, a thread's nowhere
        except Exception as error:
            self.show(error)
        finally:
            self.progress.value = 0
            self.cancel.disabled = True
            for button, disabled in zip(self.buttons, self._was_disabled):
                button.disabled = disabled
            # last: other work may start at once
            self.busy = False
            self.when_done()

    @contextmanager
    def _pipeline_held(self) -> Iterator[None]:
        """Inside, nothing else works on the pipeline; waiting for it can be cancelled."""
        lock = pipeline_lock(self.pipe)
        if not lock.acquire(blocking=False):
            self.say("Waiting for other work on this model to end …")
            while not lock.acquire(timeout=0.1):
                if self._cancelled.is_set():
                    raise Cancelled
        try:
            yield
        finally:
            lock.release()
