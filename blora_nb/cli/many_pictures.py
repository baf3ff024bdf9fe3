"""Train the B-LoRAs of a folder of pictures, with the base model loaded once, and list them."""

import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blora_nb.cli.jobs import MANIFEST, Job
from blora_nb.defaults import is_teaching_model
from blora_nb.errors import BLoRAError, CheckpointError, TrainingError
from blora_nb.evaluation.rebuilding import rebuilt_in_words
from blora_nb.files.image_folders import find_images
from blora_nb.files.json_objects import json_object
from blora_nb.files.locating import FILE_NAME
from blora_nb.files.paths import free_path, safe_name, writable_folder
from blora_nb.files.safe_files import complete_file
from blora_nb.files.saved_images import save_image
from blora_nb.generation import draw_each, encode
from blora_nb.lora import BLoRA
from blora_nb.running.checkpoints import last_whole
from blora_nb.running.interrupt import stop_at_the_end_of_a_step
from blora_nb.running.loss_guard import WINDOW
from blora_nb.sampling import Sampling
from blora_nb.settings import TrainingSettings
from blora_nb.training import train

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

Failures = Sequence[tuple[Job, str]]


def train_all(
    pipe: "StableDiffusionXLPipeline",
    jobs: Sequence[Job],
    settings: TrainingSettings,
    resume: str | None = None,
    on_checkpoint: Callable | None = None,
    progress: bool = True,
    failed: list[tuple[Job, str]] | None = None,
) -> list[tuple[Job, str]]:
    """Train the B-LoRA of every job; one that fails does not stop the others.

    Args:
        failed: a list to be filled, for whoever wants to know after a Ctrl-C as well.

    Returns:
        (job, why) of those that failed.

    Raises:
        KeyboardInterrupt: after Ctrl-C, at the end of a step.
    """
    failed = [] if failed is None else failed
    # Ctrl-C between the last step and the saving must not lose the training
    with stop_at_the_end_of_a_step() as stop:
        for job in jobs:
            print(f"{job} -> {job.folder}", flush=True)
            try:
                blora = train(
                    pipe,
                    job.pictures if job.has_captions else list(job.pictures),
                    settings,
                    progress=progress,
                    output_dir=job.folder,
                    resume_from_checkpoint=resume,
                    on_checkpoint=on_checkpoint,
                    content=job.content,
                )
                last = blora.losses[-WINDOW:]
                blora.metadata["pictures"] = json.dumps(job.picture_names)
                blora.metadata["final_loss"] = f"{sum(last) / len(last):.4f}"
                print("written:", save_somewhere(blora, job.folder / FILE_NAME), flush=True)
            except (TrainingError, CheckpointError, OSError, MemoryError, ValueError) as error:
                print(f"failed: {job}: {error}", file=sys.stderr, flush=True)
                failed.append((job, str(error)))
            else:
                if is_teaching_model(pipe) and len(job.pictures) == 1 and not stop.asked:
                    [(picture, caption)] = job.pictures.items()
                    prompt = caption or settings.instance_prompt
                    print(f"{job}: {rebuilt_in_words(pipe, blora, picture, prompt)}", flush=True)
            if stop.asked:
                raise KeyboardInterrupt(
                    "What is not finished goes on with --resume_from_checkpoint latest."
                )
    return failed


def save_somewhere(blora: BLoRA, file: Path) -> Path:
    """Save a B-LoRA, if not under its name then beside it, else in the temporary folder.

    Its name may be taken by now, and the disk may be full or read-only.

    Raises:
        OSError: it was saved elsewhere, and the message says where, or there is no room at all.
    """
    try:
        return blora.save(file)
    except FileExistsError:
        saved = blora.save(free_path(file.parent, file.stem, file.suffix))
        raise OSError(
            f"{file} was written by another program during the training. This training's B-LoRA "
            f"is in {saved}."
        ) from None
    except OSError as error:
        elsewhere = save_in_temporary_folder(blora)
        if elsewhere:
            raise OSError(
                f"{error} The trained B-LoRA is not lost: it is in {elsewhere}; copy it before you "
                "restart the computer."
            ) from None
        whole = last_whole(file.parent)
        last = f" The last whole checkpoint is {whole}." if whole else ""
        raise OSError(
            f"{error} The computer's temporary folder, {tempfile.gettempdir()}, has no room for it "
            f"either.{last} Make room, then train again with "
            "--resume_from_checkpoint latest."
        ) from None


def save_in_temporary_folder(blora: BLoRA) -> Path | None:
    """The file of a B-LoRA in a new temporary folder; None, and nothing left, without room."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="blora_nb_"))
    except OSError:
        return None
    try:
        return blora.save(folder / FILE_NAME)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        return None


def write_manifest(jobs: Sequence[Job], output_dir: str | Path, failed: Failures = ()) -> Path:
    """Write `manifest.json`: a row for each job, as `manifest_row` makes it; returns its path.

    Of an earlier one the rows of other folders are kept.

    Raises:
        OSError: it cannot be written.
    """
    reasons = {job.folder: why for job, why in failed}
    rows = [manifest_row(job, output_dir, reasons.get(job.folder)) for job in jobs]
    folders = {row["folder"] for row in rows}
    rows = rows_of_others(Path(output_dir), folders) + rows
    text = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    path = Path(output_dir) / MANIFEST
    try:
        with complete_file(path, replace=True) as part:
            # names that are no UTF-8 become JSON's own escapes
            part.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise OSError(f"{error} What was trained is listed above.") from None
    return path


def rows_of_others(output_dir: Path, folders: set[str]) -> list[dict[str, Any]]:
    """The rows of the manifest that is there, of folders that are still there, without these."""
    try:
        rows = json.loads((output_dir / MANIFEST).read_text(encoding="utf-8"))
        return [
            row
            for row in rows
            if row["folder"] not in folders and (output_dir / row["folder"]).is_dir()
        ]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def manifest_row(job: Job, output_dir: str | Path, why: str | None) -> dict[str, Any]:
    """The pictures, folder and state of a job, read from the finished file itself.

    A finished one has its settings and its loss, None where the file does not say it; a failed one
    the reason `why`.
    """
    row = {"pictures": job.picture_names, "folder": os.path.relpath(job.folder, output_dir)}
    if why is not None:
        return row | {"state": "failed", "why": why}
    if not job.finished:
        return row | {"state": "not finished"}
    try:
        metadata = BLoRA.load(job.folder).metadata
    except BLoRAError as error:
        return row | {"state": "failed", "why": str(error)}
    try:
        loss = float(metadata.get("final_loss", "nan"))
    except ValueError:
        loss = math.nan
    return row | {
        "state": "finished",
        # JSON has no NaN
        "loss": loss if math.isfinite(loss) else None,
        "training": json_object(metadata.get("training", "")) or {},
    }


def make_class_pictures(pipe: "StableDiffusionXLPipeline", settings: TrainingSettings) -> None:
    """Generate the class pictures that `class_data_dir` lacks, for prior preservation."""
    folder = writable_folder(settings.class_data_dir or "")
    try:
        there = len(find_images(folder))
    except ValueError:
        there = 0
    prompt = settings.class_prompt or ""
    seeds = range(there, settings.num_class_images)
    how = Sampling(batch_size=settings.sample_batch_size)
    drawn = draw_each(pipe, encode(pipe, prompt), seeds, how)
    for seed, picture in zip(seeds, drawn):
        path = free_path(folder, f"{safe_name(prompt)}_seed{seed}", ".png")
        save_image(picture, path, {"prompt": prompt, "seed": seed})
