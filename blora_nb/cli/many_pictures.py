"""A folder of pictures: one B-LoRA from each with the base model loaded once, or one from all."""

import json
import os
import shutil
import sys
import tempfile
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from blora_nb.errors import BLoRAError, BLoRAWarning, CheckpointError, ImageWarning, TrainingError
from blora_nb.files.images import (
    find_images,
    free_path,
    read_with_remarks,
    safe_name,
    save_image,
    writable_folder,
)
from blora_nb.files.metadata import training_metadata
from blora_nb.files.safe_files import FILE_NAME
from blora_nb.lora import BLoRA
from blora_nb.running.checkpoints import check_unused, checkpoints, other_settings
from blora_nb.running.interrupt import stop_at_the_end_of_a_step
from blora_nb.running.training_pictures import class_pictures, fingerprints, squares_of
from blora_nb.training import train

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Job:
    """One B-LoRA to train: from which pictures (with a prompt each, or None for the same), into which folder, beside which content half if any."""

    pictures: dict
    folder: Path
    content: Path | None = None

    @property
    def finished(self):
        return (self.folder / FILE_NAME).exists()


def plan(instance_data_dir, output_dir, together=False, captions_file=None, content=None):
    """The jobs that a folder of pictures makes. Every picture and content half is read once, so that a broken one shows before the work.

    Args:
        content: the content half to keep: a B-LoRA's file or folder, or for several pictures the folder that an earlier training of them left.

    Raises:
        ImageError: no picture, or a broken one. BLoRAError: no content half. ValueError: captions that fit no picture, or two pictures of one name.
    """
    paths = find_images(instance_data_dir)
    for path in paths:
        read_with_remarks(path)  # what is worth a remark is said where the picture is learnt
    captions = read_captions(captions_file, paths) if captions_file else {}
    if not captions_file and (unused := unused_captions(paths)):
        warnings.warn(unused, ImageWarning, stacklevel=2)
    if captions_file and not together:
        raise ValueError("A captions file is for one B-LoRA from all pictures: add --together.")
    if together or len(paths) == 1:
        return [
            Job(
                {path: captions.get(path) for path in paths},
                Path(output_dir),
                with_content(content),
            )
        ]
    folders = [Path(output_dir) / path.stem for path in paths]
    if taken := [path.name for path in paths if path.stem == MANIFEST]:
        raise ValueError(
            f"{taken[0]} would get a folder where the list of all B-LoRAs, {MANIFEST}, is written. Rename it."
        )
    if twice := [path.name for path, folder in zip(paths, folders) if folders.count(folder) > 1]:
        raise ValueError(
            f"{' and '.join(twice[:2])} have the same name but for the ending; their B-LoRAs would get the same folder. Rename one."
        )
    return [
        Job({path: None}, folder, with_content(content and Path(content) / path.stem))
        for path, folder in zip(paths, folders)
    ]


def with_content(source):
    """The source of a content half, read once to see that it has one; None for none."""
    if isinstance(source, Path) and not source.exists():
        raise ValueError(
            f"The folder of the first training, {source.parent}, has no B-LoRA of {source.name}. Train that picture first, or name the folder that an earlier training of these pictures left."
        )
    if source:
        BLoRA.load(source).content
    return source


def read_captions(file, paths):
    """Path to prompt, from lines like {"file_name": "dog1.jpg", "text": "A [v] dog in the snow"} (the `datasets` library's metadata.jsonl)."""
    by_name, captions, lines_of = {path.name: path for path in paths}, {}, {}
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{file} is no text in UTF-8. Save it as UTF-8.") from None
    except OSError as error:
        raise ValueError(
            f"The captions file {file} cannot be read ({error.strerror or error})."
        ) from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, text = row["file_name"], row["text"]
            if not (isinstance(name, str) and isinstance(text, str) and text.strip()):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f'{file}, line {number}: expected something like {{"file_name": "dog1.jpg", "text": "A [v] dog"}}, not: {line[:80]}'
            ) from None
        if name not in by_name:
            raise ValueError(f"{file}, line {number}: there is no picture {name}.")
        if name in lines_of:
            raise ValueError(
                f"{file}, line {number}: {name} has a caption already, in line {lines_of[name]}. "
                "Remove one of the two."
            )
        lines_of[name] = number
        captions[by_name[name]] = text
    missing = [path.name for path in paths if path not in captions]
    if missing:
        raise ValueError(f"{file} has no caption for {', '.join(missing)}.")
    return captions


def unused_captions(paths) -> str | None:
    """A sentence about captions that lie beside the pictures and are not used; None without any."""
    beside = [path.with_suffix(end) for path in paths for end in (".txt", ".caption")]
    beside += [path.with_name(path.name + ".txt") for path in paths]
    lists = ("metadata.jsonl", "metadata.csv")  # as the `datasets` library has them
    beside += [path.parent / name for path in paths[:1] for name in lists]
    names = [path.name for path in dict.fromkeys(beside) if path.is_file()]
    if not names:
        return None
    named = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return (
        f"The captions beside the pictures ({named}) are not used: all pictures have the instance "
        "prompt. For a prompt of its own for each, with --together, write a --captions_file with "
        'lines like {"file_name": "dog1.jpg", "text": "A [v] dog in the snow"}.'
    )


def check_output(jobs, resume):
    """The jobs that are not finished.

    Raises, before any work, where something would be overwritten, cannot be written, or only looks finished.
    """
    for job in jobs:
        if resume and job.finished:
            try:
                learned = json.loads(BLoRA.load(job.folder).metadata.get("pictures", "null"))
            except (BLoRAError, ValueError) as error:
                raise BLoRAError(
                    f"{error} Remove it, and the training goes on from its last checkpoint."
                ) from None
            if learned and learned != [path.name for path in job.pictures]:
                raise FileExistsError(
                    f"{job.folder / FILE_NAME} is the B-LoRA of {', '.join(learned)}. Choose another output_dir."
                )
        if not resume and job.finished:
            raise FileExistsError(
                f'{job.folder / FILE_NAME} exists already. Choose another output_dir, remove it, or keep what is finished with resume_from_checkpoint="latest".'
            )
        if not resume:
            check_unused(job.folder)
        for left in (
            writable_folder(job.folder).glob(f"{FILE_NAME}*.part") if not job.finished else ()
        ):
            left.unlink()  # by a process that was killed while it wrote
    return [job for job in jobs if not job.finished]


def check_finished(pipe, jobs, settings):
    """Name what is finished; return (job, why) of what is finished and not what is asked for.

    Args:
        jobs: finished ones, from `plan`; `check_output` has looked at their files.
    """
    others = []
    for job in jobs:
        if why := other_training(pipe, job, settings):
            names = ", ".join(map(str, job.pictures))
            print(f"failed: {names}: {why}", file=sys.stderr, flush=True)
            others.append((job, why))
        else:
            print(f"finished already: {job.folder}", flush=True)
    return others


def other_training(pipe, job, settings) -> str | None:
    """What differs between a finished B-LoRA and what its job asks for, and what to do, or None.

    They are the same where the pixels, prompts, settings and base are, as with checkpoints.
    """
    file = job.folder / FILE_NAME
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BLoRAWarning)
        metadata = BLoRA.load(job.folder).metadata
    stored = json.loads(metadata.get("training", "{}"))
    different = other_settings(stored, settings, frozenset({"max_train_steps"}))
    content = job.content and BLoRA.load(job.content).content
    prompts = list(job.pictures.values()) if any(job.pictures.values()) else None
    if "learned" in metadata:
        paths = (job.pictures, class_pictures(settings))
        squares = [squares_of(pictures, settings.resolution, silent=True) for pictures in paths]
        now = fingerprints(pipe, squares[0], prompts, squares[1], content)
        then = json.loads(metadata["learned"])
    else:  # a file of an earlier version
        now = training_metadata(pipe, settings, *job.pictures if len(job.pictures) == 1 else ())
        now = {"picture": now.get("picture_sha256"), "base model": now.get("base_model_sha256")}
        now["content half"] = content and content.fingerprint
        names = ("picture_sha256", "base_model_sha256", "content_fingerprint")
        then = dict(zip(now, (metadata.get(name) for name in names)))
    different += [f"it is of another {what}" for what in now if then.get(what) != now[what]]
    steps, asked = stored.get("max_train_steps"), settings.max_train_steps
    if steps == asked and not different:
        return None
    remedy = "Choose another output_dir, or move this folder away to train anew."
    last = next(reversed(checkpoints(job.folder)), None)
    longer = not different and steps and steps < asked
    if longer and last and settings.lr_scheduler.startswith("constant"):
        remedy = f"To go on from {last}, move {file} away and train again with "
        remedy += 'resume_from_checkpoint="latest".'
    if steps != asked:
        different.append(f"it had {steps} training steps and {asked} are asked for")
    why = "; ".join(different)
    return f"{file} is finished, and another one than is asked for: {why}. {remedy}"


def train_all(pipe, jobs, settings, resume=None, on_checkpoint=None, progress=True):
    """Train every job that is not finished; one that fails does not stop the others. Returns (job, why) of the failed ones."""
    failed = []
    with (
        stop_at_the_end_of_a_step() as stop
    ):  # also where it is asked for between the last step and the saving, which would lose all of them
        for job in jobs:
            names = ", ".join(str(path) for path in job.pictures)
            print(f"{names} -> {job.folder}", flush=True)
            prompted = any(job.pictures.values())
            try:
                blora = train(
                    pipe,
                    job.pictures if prompted else list(job.pictures),
                    settings,
                    progress,
                    job.folder,
                    resume,
                    on_checkpoint,
                    job.content,
                )
                blora.metadata["pictures"] = json.dumps([path.name for path in job.pictures])
                blora.metadata["final_loss"] = (
                    f"{sum(blora.losses[-20:]) / len(blora.losses[-20:]):.4f}"
                )
                print("written:", save_somewhere(blora, job.folder / FILE_NAME), flush=True)
            except (TrainingError, CheckpointError, OSError, MemoryError, ValueError) as error:
                print(f"failed: {names}: {error}", file=sys.stderr, flush=True)
                failed.append((job, str(error)))
            if stop.asked:
                raise KeyboardInterrupt(
                    'What is not finished goes on with resume_from_checkpoint="latest".'
                )
    return failed


def save_somewhere(blora, file):
    """Save a B-LoRA; where its place is taken or the disk full or read-only by now, beside it or in the computer's temporary folder, and say so."""
    try:
        return blora.save(file)
    except FileExistsError:
        saved = blora.save(free_path(file.parent, file.stem, file.suffix))
        raise OSError(
            f"{file} was written by another program during the training. This training's B-LoRA is in {saved}."
        ) from None
    except OSError as error:
        try:
            with ExitStack() as undone:
                folder = Path(tempfile.mkdtemp(prefix="blora_nb_"))
                undone.callback(shutil.rmtree, folder, ignore_errors=True)
                saved = blora.save(folder / FILE_NAME)
                undone.pop_all()
        except OSError:
            last = next(
                (
                    f" The last checkpoint is whole: {path}."
                    for path in reversed(checkpoints(file.parent))
                ),
                "",
            )
            raise OSError(
                f'{error} The computer\'s temporary folder, {tempfile.gettempdir()}, has no room for it either.{last} Make room, then train again with resume_from_checkpoint="latest".'
            ) from None
        raise OSError(
            f"{error} The trained B-LoRA is not lost: it is in {saved}; copy it before you restart the computer."
        ) from None


def write_manifest(jobs, output_dir, failed=()):
    """`manifest.json`: for each job its pictures, file, settings, and loss, or why it failed; read from the finished files themselves."""
    reasons, rows = {str(job.folder): why for job, why in failed}, []
    for job in jobs:
        row = {
            "pictures": [path.name for path in job.pictures],
            "folder": os.path.relpath(job.folder, output_dir),
        }
        try:
            if str(job.folder) in reasons:
                row |= {"state": "failed", "why": reasons[str(job.folder)]}
            elif job.finished:
                metadata = BLoRA.load(job.folder).metadata
                row |= {
                    "state": "finished",
                    "loss": float(metadata.get("final_loss", "nan")),
                    "training": json.loads(metadata.get("training", "{}")),
                }
            else:
                row |= {"state": "not finished"}
        except BLoRAError as error:
            row |= {"state": "failed", "why": str(error)}
        rows.append(row)
    path = Path(output_dir) / MANIFEST
    part = path.with_name(MANIFEST + ".part")
    try:  # names that are no UTF-8 become JSON's own escapes
        part.write_text(
            json.dumps(rows, indent=1, ensure_ascii=False) + "\n",
            encoding="utf-8",
            errors="backslashreplace",
        )
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(
            f"{path} cannot be written ({error.strerror or error}). What was trained is listed above."
        ) from None
    return path


def make_class_pictures(pipe, settings):
    """Generate the class pictures that `class_data_dir` lacks, for prior preservation."""
    from blora_nb.generation import encode, pictures

    folder = writable_folder(settings.class_data_dir)
    try:
        there = len(find_images(folder))
    except ValueError:
        there = 0
    seeds = range(there, settings.num_class_images)
    for seed, picture in zip(
        seeds,
        pictures(
            pipe, encode(pipe, settings.class_prompt), seeds, batch_size=settings.sample_batch_size
        ),
    ):
        save_image(
            picture,
            free_path(folder, f"{safe_name(settings.class_prompt)}_seed{seed}", ".png"),
            {"prompt": settings.class_prompt, "seed": seed},
        )
