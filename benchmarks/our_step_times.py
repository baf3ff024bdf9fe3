"""Train a B-LoRA and note when each of its steps ended; `training_speed.py` runs this.

python benchmarks/our_step_times.py RESULT.json BASE PICTURE '{"rank": 16, "max_train_steps": 9}'
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch

from blora_nb.pipeline import load_pipeline
from blora_nb.running.loss_guard import LossGuard
from blora_nb.settings import TrainingSettings
from blora_nb.training import train
from peer_step_times import now, peak


@contextmanager
def step_ends(note: Callable[[int], None]) -> Iterator[None]:
    """Inside, `note` is called with a step that a training has ended.

    On a GPU the losses of several steps become known at once, and only then has it caught up.
    """
    read_pending = LossGuard.read_pending

    def noted(guard: LossGuard) -> list[tuple[int, float]]:
        known = read_pending(guard)
        if known:
            note(known[-1][0])
        return known

    with patch.object(LossGuard, "read_pending", noted):
        yield


def main() -> None:
    result, base, picture, settings = sys.argv[1:]
    times: list[tuple[int, float]] = []
    pipe = load_pipeline(base, dtype=torch.float16 if torch.cuda.is_available() else None)
    with step_ends(lambda step: times.append((step, now()))):
        blora = train(pipe, picture, TrainingSettings(**json.loads(settings)), progress=False)
    found = {"times": times, "losses": blora.losses, "peak_mib": peak()}
    Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
