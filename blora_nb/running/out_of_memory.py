"""A training that needs more memory than there is: explained, with nothing kept alive."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from blora_nb.errors import TrainingError
from blora_nb.running.checkpoints import checkpoints
from blora_nb.running.memory import explain_out_of_memory, forget, is_out_of_memory
from blora_nb.settings import TrainingSettings

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline


@contextmanager
def out_of_memory_explained(
    pipe: "StableDiffusionXLPipeline", settings: TrainingSettings, output_dir: str | Path | None
) -> Iterator[None]:
    """Inside, running out of memory is a `TrainingError`: what was wanted, changed, and kept."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        forget(error)
        written = checkpoints(output_dir) if output_dir else []
        last = written[-1] if written else None
        raise TrainingError(explain_out_of_memory(pipe, settings, error, last)) from None
