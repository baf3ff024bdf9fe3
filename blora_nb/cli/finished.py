"""What earlier trainings left in the output folders: what is finished, and is it what is wanted."""

import json
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from blora_nb.cli.jobs import Job
from blora_nb.errors import BLoRAError, BLoRAWarning
from blora_nb.files.json_objects import json_object
from blora_nb.files.locating import FILE_NAME
from blora_nb.files.metadata import LICENCE
from blora_nb.files.paths import writable_folder
from blora_nb.lora import BLoRA
from blora_nb.running.checkpoints import check_unused, last_whole, other_settings
from blora_nb.running.training_pictures import class_pictures, squares_of, what_is_learned
from blora_nb.settings import TrainingSettings

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline


def check_output(jobs: Sequence[Job], resume: str | None) -> list[Job]:
    """The jobs that are not finished.

    Raises, before any work:
        FileExistsError: something would be overwritten, or is the B-LoRA of other pictures.
        OSError: a folder cannot be written to. BLoRAError: a file only looks finished.
    """
    for job in jobs:
        if not job.finished:
            if not resume:
                check_unused(job.folder)
            # left by a process that was killed while it wrote
            for part in writable_folder(job.folder).glob(f"{FILE_NAME}*.part"):
                part.unlink()
        elif resume:
            check_pictures(job)
        else:
            raise FileExistsError(
                f"{job.folder / FILE_NAME} exists already. Choose another --output_dir, remove it, "
                "or keep what is finished with --resume_from_checkpoint latest."
            )
    return [job for job in jobs if not job.finished]


def check_pictures(job: Job) -> None:
    """Raise where a finished file is damaged, or is the B-LoRA of other pictures."""
    try:
        learned = json.loads(BLoRA.load(job.folder).metadata.get("pictures", "null"))
    except (BLoRAError, ValueError) as error:
        raise BLoRAError(
            f"{error} Remove it, and the training goes on from its last checkpoint."
        ) from None
    if isinstance(learned, list) and learned != job.picture_names:
        raise FileExistsError(
            f"{job.folder / FILE_NAME} is the B-LoRA of {', '.join(map(str, learned))}. Choose "
            "another --output_dir."
        )


def check_finished(
    pipe: "StableDiffusionXLPipeline", jobs: Sequence[Job], settings: TrainingSettings
) -> list[tuple[Job, str]]:
    """Print what is finished; returns (job, why) of what is finished and not what is asked for.

    Args:
        jobs: finished ones, from `plan`; `check_output` has looked at their files.
    """
    others = []
    for job in jobs:
        why = other_training(pipe, job, settings)
        if why:
            print(f"failed: {job}: {why}", file=sys.stderr, flush=True)
            others.append((job, why))
        else:
            print(f"finished already: {job.folder}", flush=True)
            licence, asked = metadata_of(job).get(LICENCE), settings.license
            if asked and licence != asked:
                named = f"names the licence {licence}" if licence else "names no licence"
                print(
                    f"note: {job.folder / FILE_NAME} {named}: {asked} is only written after a "
                    "training. Train in another folder to have it.",
                    file=sys.stderr,
                )
    return others


def metadata_of(job: Job) -> dict[str, str]:
    """What the file of a finished job says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BLoRAWarning)
        return BLoRA.load(job.folder).metadata


def other_training(
    pipe: "StableDiffusionXLPipeline", job: Job, settings: TrainingSettings
) -> str | None:
    """How a finished B-LoRA differs from what its job asks for, and what to do; None if in nothing.

    They are the same where the pixels, prompts, settings and base are, as with checkpoints.
    """
    file = job.folder / FILE_NAME
    metadata = metadata_of(job)
    stored = json_object(metadata.get("training", "")) or {}
    then = json_object(metadata.get("learned", "")) or {}
    content = BLoRA.load(job.content).content if job.content else None
    squares = squares_of(job.pictures, settings.resolution, silent=True)
    class_squares = squares_of(class_pictures(settings), settings.resolution, silent=True)
    prompts = list(job.pictures.values()) if job.has_captions else None
    now = what_is_learned(pipe, squares, prompts, class_squares, content)
    different = other_settings(stored, settings, frozenset({"max_train_steps"}))
    different += [f"it is of another {what}" for what in now if then.get(what) != now[what]]
    steps, asked = stored.get("max_train_steps"), settings.max_train_steps
    if steps == asked and not different:
        return None
    remedy = "Choose another --output_dir, or move this folder away to train anew."
    last = last_whole(job.folder)
    only_longer = not different and steps and steps < asked
    if only_longer and last and settings.lr_scheduler.startswith("constant"):
        remedy = (
            f"To go on from {last}, move {file} away and train again with "
            "--resume_from_checkpoint latest."
        )
    if steps != asked:
        different.append(f"it had {steps} training steps and {asked} are asked for")
    why = "; ".join(different)
    return f"{file} is finished, but is not the B-LoRA asked for: {why}. {remedy}"
