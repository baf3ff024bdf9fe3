"""What happens beside the steps of a training: progress, checkpoints, Ctrl-C, bad losses."""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from torch import Tensor

from blora_nb.errors import CheckpointError, TrainingError, TrainingWarning
from blora_nb.files.paths import free_path
from blora_nb.lora import IN_TRAINING, BLoRA, applied, collect
from blora_nb.running.checkpoints import TrainingState, write_checkpoint
from blora_nb.running.interrupt import stop_at_the_end_of_a_step
from blora_nb.running.loss_guard import WINDOW, LossGuard
from blora_nb.running.out_of_memory import MemoryReleased
from blora_nb.settings import TrainingSettings

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

TrainingProgress = bool | Callable[[int, int, float], object]
OnCheckpoint = Callable[["StableDiffusionXLPipeline", Path], object]


@dataclass(frozen=True)
class Reporting:
    """Where a training shows and keeps what it does; the names are those of `train`."""

    progress: TrainingProgress = True
    output_dir: str | Path | None = None
    on_checkpoint: OnCheckpoint | None = None


class Monitor:
    """The callbacks of a training. Used as a context round the loop.

    Raises:
        TrainingError: from `LossGuard`; what was still good is kept.
        KeyboardInterrupt: at the end of the step in which a stop was asked for.
    """

    def __init__(
        self,
        pipe: "StableDiffusionXLPipeline",
        state: TrainingState,
        settings: TrainingSettings,
        suspended: Callable[[], AbstractContextManager[None]],
        reporting: Reporting,
    ) -> None:
        from tqdm.auto import tqdm

        self.pipe, self.state, self.settings = pipe, state, settings
        self.suspended, self.reporting = suspended, reporting
        parameters = list(state.parameters.values())
        scaled = state.scaler.is_enabled()
        self.guard = LossGuard(parameters, state.losses, settings.learning_rate, scaled)
        self.bar = tqdm(
            total=settings.max_train_steps,
            initial=state.step,
            desc="training",
            disable=reporting.progress is not True,
        )
        self.contexts = ExitStack()

    def __enter__(self) -> Self:
        self.stop = self.contexts.enter_context(stop_at_the_end_of_a_step())
        self.contexts.callback(self.bar.close)
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        with self.contexts:
            if isinstance(error, TrainingError) and error.step is not None:
                self._keep_last_good(error)

    def on_train_start(self) -> None:
        if self.state.resumed_from:
            # its pictures may have been interrupted
            self._call_on_checkpoint(self.state.resumed_from)

    def on_step_end(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """After each step, with its loss and gradient norm, scalars still on the device."""
        other_loss_from = self.settings.x0_loss_from
        if step == other_loss_from:
            self._look()
        self.guard.judged = other_loss_from is None or step < other_loss_from
        known = self.guard.add(loss, norm)
        # read once: a stop that is asked for from here on takes effect after the next step
        stopping = self.stop.asked
        path = None
        if stopping or self.settings.checkpoint_at(step):
            path = self._checkpoint(stopping)
        self._show(known)
        if stopping:
            resume = ""
            if path:
                folder = self.reporting.output_dir
                resume = f' Go on with resume_from_checkpoint="latest" (in {folder}).'
            raise KeyboardInterrupt(f"Stopped after step {step}.{resume}")

    def on_train_end(self) -> None:
        self._look()

    def _look(self) -> None:
        self._show(self.guard.read_pending())

    def _show(self, known: list[tuple[int, float]]) -> None:
        """Show the progress of (step, loss) pairs."""
        for step, loss in known:
            recent = self.state.losses[-WINDOW:]
            self.bar.set_postfix(loss=f"{sum(recent) / len(recent):.3f}", refresh=False)
            self.bar.update()
            if callable(self.reporting.progress):
                self.reporting.progress(step, self.settings.max_train_steps, loss)

    def _collect(self) -> BLoRA:
        return collect(self.pipe.unet, self.settings, self.state.metadata)

    def _checkpoint(self, stopping: bool) -> Path | None:
        """The path of a new checkpoint; None without a folder, or where it cannot be written.

        Hours of work go on then, and the end may find room again.
        """
        folder = self.reporting.output_dir
        if folder is None:
            return None
        self._look()
        blora = self._collect()
        try:
            path = write_checkpoint(folder, blora, self.state, self.settings)
        except CheckpointError as error:
            then = "The training goes on without it; make room in the folder."
            if stopping:
                then = "What was learned since then is not kept."
            warnings.warn(f"{error} {then}", TrainingWarning, stacklevel=3)
            return None
        if not stopping:
            self._call_on_checkpoint(path)
        return path

    def _call_on_checkpoint(self, path: Path) -> None:
        """Call the user's function, with the pipeline as it is outside a training."""
        if self.reporting.on_checkpoint is None:
            return
        try:
            # outermost: it may be the models that draw which find no room to come back
            with MemoryReleased(), self.suspended():
                self.reporting.on_checkpoint(self.pipe, path)
        except MemoryError as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            warnings.warn(
                f"There was no room for what is made at checkpoints ({reason}). {path} is "
                "complete, and the training goes on.",
                TrainingWarning,
                stacklevel=2,
            )
        if IN_TRAINING not in applied(self.pipe):
            raise TrainingError(
                "The function called at checkpoints took the B-LoRA in training off the pipeline. "
                f"Let it draw with generation.sample instead of generate. {path} is complete."
            )

    def _keep_last_good(self, error: TrainingError) -> None:
        """Put the last good weights, which are on the U-Net again, into the error and a file."""
        if error.step == 0:
            error.args = (f"{error} Nothing had been learned yet.",)
            return
        error.blora = self._collect()
        folder = self.reporting.output_dir
        if folder is None:
            return
        try:
            path = free_path(folder, f"last_good-{error.step}", ".safetensors")
            where = f"They are in {error.blora.save(path)}."
        except OSError as trouble:
            where = (
                f"They could not be written to {folder} ({trouble}); from Python they are the "
                "error's `blora`."
            )
        error.args = (f"{error} {where}",)
