"""Long work behind a button: one piece at a time on a pipeline, with progress, Cancel, and errors that are shown and kept."""

import html
import os
import threading
import time
import traceback
from contextlib import contextmanager

import ipywidgets as widgets

from blora_nb.registry import pipeline_lock
from blora_nb.running.device import host

# JupyterLab sends a control's first message to the kernel's main thread and the later ones, clicks among them, to another.
# So a value typed just before the click may arrive after it; work in the background gives it this long, in seconds.
SETTLING = 0.1


class Cancelled(Exception):
    """Raised inside the work when Cancel was pressed; it passes through `generate` and `train`, which clean up."""


def threads_reach_the_page():
    """Whether widgets changed by a background thread show: so in JupyterLab and Voilà; Colab shows them only afterwards."""
    in_server = "JPY_SESSION_NAME" in os.environ or os.environ.get(
        "SERVER_SOFTWARE", ""
    ).startswith("voila")
    return in_server and host() not in ("Colab", "Kaggle")


class Worker(widgets.VBox):
    """A progress bar, a line of status and a Cancel button round the work of one panel.

    Args:
        pipe: the pipeline that is worked on; other panels on it wait.
        background: True works in a thread, so that Cancel can be pressed; False works inside the callback, and only an
            interrupt of the kernel stops it. By default a thread where its progress is seen (`threads_reach_the_page`).

    Attributes:
        errors: the exceptions of all work so far, in order. buttons: what is disabled during the work.
    """

    def __init__(self, pipe, background=None):
        self.pipe, self.background = (
            pipe,
            threads_reach_the_page() if background is None else background,
        )
        self.errors, self.buttons, self.busy, self.thread = [], [], False, None
        self._stop, self._starting = threading.Event(), threading.Lock()
        self.cancel = widgets.Button(
            description="Cancel",
            icon="stop",
            disabled=True,
            layout=widgets.Layout(width="auto", display="" if self.background else "none"),
        )
        self.cancel.on_click(lambda _: self.stop())
        self.progress = widgets.IntProgress(
            description="Progress", layout=widgets.Layout(width="auto")
        )
        self.status = widgets.HTML()
        super().__init__([self.progress, self.status])
        self.say("Ready.")

    def say(self, text, remarks=(), kind="note"):
        """Show a sentence in the panel, and remarks after it.

        `kind` "error" marks it as an error, in words and colour.
        """
        text = " ".join([text, *(f"Note: {remark}" for remark in remarks)])
        lead, colour = (
            ("<b>Error.</b> ", "var(--jp-error-color1, #b3261e)")
            if kind == "error"
            else ("", "inherit")
        )
        self.status.value = f'<div role="status" aria-live="polite" style="color:{colour};line-height:1.4;min-height:1.4em;overflow-wrap:anywhere">{lead}{html.escape(text)}</div>'

    def start(self, doing, work, background=None):
        """Run `work()`, which reads the controls and then calls `self.step` as it goes on. While other work of this panel is under way, do nothing.

        Args:
            doing: what the status says meanwhile, e.g. "Drawing". background: by default as the worker was made.
        """
        with self._starting:
            if self.busy:
                return
            self.busy = True
        self._stop.clear()
        self._was_disabled = [button.disabled for button in self.buttons]
        for button in self.buttons:
            button.disabled = True
        self.cancel.disabled, self.doing = False, doing
        if self.background if background is None else background:
            self.thread = threading.Thread(target=self._run, args=(work,), daemon=True)
            self.thread.start()
        else:
            self._run(work)

    def stop(self):
        """Ask the work to end at its next step."""
        if self.busy:
            self._stop.set()
            self.cancel.disabled = True
            self.say("Stopping after this step …")

    def wait(self, seconds=None):
        """Wait for the work in the background to end."""
        if self.thread:
            self.thread.join(seconds)

    def step(self, done, total, *_):
        """The progress callback of `generate` and `train`."""
        if self._stop.is_set():
            raise Cancelled
        self.progress.max, self.progress.value = total, done
        self.say(
            f"{self.doing}: step {done} of {total}"
            + ("" if self.background else " (interrupt the kernel to stop)")
        )

    def _run(self, work):
        try:
            if threading.current_thread() is self.thread:
                time.sleep(SETTLING)
            with self._turn():
                work()
        except Cancelled:
            self.say("Cancelled.")
        except KeyboardInterrupt:
            self.say("Stopped by an interrupt of the kernel.")
        except (
            Exception
        ) as error:  # a callback's exception would vanish in a log, a thread's altogether
            self.show(error)
        finally:
            self.progress.value, self.cancel.disabled, self.busy = 0, True, False
            for button, disabled in zip(self.buttons, self._was_disabled):
                button.disabled = disabled
            self.after()

    def after(self):
        """Called when work has ended, however it did; for the panel to set its buttons."""

    def show(self, error):
        """Keep an exception and show it, with its traceback folded."""
        self.errors.append(error)
        self.say(str(error) or type(error).__name__, kind="error")
        trace = html.escape("".join(traceback.format_exception(error)))
        self.status.value += f'<details><summary>Details</summary><pre style="font-size:11px;line-height:1.3;overflow:auto;max-height:12em">{trace}</pre></details>'

    @contextmanager
    def _turn(self):
        """Inside, the pipeline is ours; waiting for it can be cancelled."""
        lock = pipeline_lock(self.pipe)
        if not lock.acquire(blocking=False):
            self.say("Waiting for other work on this model to end …")
            while not lock.acquire(timeout=0.1):
                if self._stop.is_set():
                    raise Cancelled
        try:
            yield
        finally:
            lock.release()
