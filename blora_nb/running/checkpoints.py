"""Checkpoints: all that a training needs to go on bit for bit.

They are written whole or not at all, and read without unpickling:

    <folder>/checkpoint-250/pytorch_lora_weights.safetensors   a B-LoRA like any other
    <folder>/checkpoint-250/training_state.safetensors         optimizer, random numbers, losses
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from blora_nb.errors import CheckpointError, TrainingWarning
from blora_nb.files.locating import FILE_NAME
from blora_nb.lora import BLoRA
from blora_nb.settings import TrainingSettings

STATE_NAME = "training_state.safetensors"
# settings that change how a training runs, not what comes out of it
WITHOUT_EFFECT = {
    "gradient_checkpointing",
    "compile",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "class_data_dir",
    "num_class_images",
    "sample_batch_size",
    "license",
}


@dataclass
class TrainingState:
    """Everything that changes in the course of a training.

    Attributes:
        parameters: names as in a `BLoRA` to the LoRA's tensors on the U-Net.
        optimizer, lr_scheduler, scaler, generator: as PyTorch makes them.
        losses: the loss of each step so far.
        learned: hashes such as {"picture": …, "base model": …}, or None.
        metadata: what else a file of the B-LoRA says: base model, licence, thumbnail.
        resumed_from: the checkpoint that it was brought to by `resume`, or None.
    """

    parameters: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    generator: torch.Generator
    losses: list[float]
    learned: dict[str, str | None] | None
    metadata: dict[str, str] = field(default_factory=dict)
    resumed_from: Path | None = None

    @property
    def step(self) -> int:
        return len(self.losses)

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, JSON-able rest), the LoRA itself left out."""
        optimizer = self.optimizer.state_dict()
        tensors = {
            "generator": self.generator.get_state(),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
        }
        numbers = {}
        for path, value in _leaves(optimizer["state"]):
            if isinstance(value, Tensor):
                tensors[f"optimizer/{path}"] = value.detach().cpu().contiguous().clone()
            else:
                numbers[f"optimizer/{path}"] = value
        rest = {
            "step": self.step,
            "learned": self.learned,
            "groups": optimizer["param_groups"],
            "numbers": numbers,
            "schedule": {"last_epoch": self.lr_scheduler.last_epoch},
            "scaler": self.scaler.state_dict(),
        }
        return tensors, rest

    def unpack(
        self, tensors: dict[str, Tensor], rest: dict[str, Any], weights: dict[str, Tensor]
    ) -> None:
        """Restore what `pack` returned, in place."""
        state: dict[int, dict] = {}
        for name, value in (tensors | rest["numbers"]).items():
            if name.startswith("optimizer/"):
                _, number, *outer, last = name.split("/")
                place = state.setdefault(int(number), {})
                for key in outer:
                    place = place.setdefault(key, {})
                place[last] = value
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])
        self.optimizer.load_state_dict({"state": state, "param_groups": rest["groups"]})
        self.lr_scheduler.last_epoch = rest["schedule"]["last_epoch"]
        if rest["scaler"]:
            self.scaler.load_state_dict(rest["scaler"])
        self.generator.set_state(tensors["generator"])
        self.losses[:] = tensors["losses"].tolist()


def _leaves(tree: dict, path: str = "") -> Iterator[tuple[str, Any]]:
    """("outer/inner", value) of everything in nested dictionaries, as 8-bit Adam's state has."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}/")
        else:
            yield f"{path}{key}", value


# -------------------------------------------------------------------------------- which there are


def step_of(path: Path) -> int:
    """The number in `checkpoint-250`, or 0 for any other name."""
    name, _, number = path.name.partition("-")
    return int(number) if name == "checkpoint" and number.isdecimal() else 0


def checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoint folders in a folder, the oldest first, whole or broken."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_dir() and step_of(path)]
    return sorted(found, key=step_of)


def check_unused(folder: str | Path) -> None:
    """Raise a FileExistsError where a new training would mix its checkpoints with older ones."""
    if checkpoints(folder):
        raise FileExistsError(
            f"{folder} holds the checkpoints of an earlier training. To go on with it, or, if it "
            'had finished, to get its B-LoRA: resume_from_checkpoint="latest". For a new '
            "training choose another folder."
        )


def checkpoint_to_resume(
    output_dir: str | Path | None, resume_from_checkpoint: str | None
) -> Path | None:
    """The checkpoint that a training goes on from, or None; see `find_checkpoint`.

    Raises:
        FileExistsError: a new training would mix with an old one.
    """
    if output_dir is None:
        return None
    if Path(output_dir).is_file():
        raise FileExistsError(f"{output_dir} is a file. Checkpoints need a folder: name another.")
    file = Path(output_dir) / FILE_NAME
    if file.exists():
        raise FileExistsError(
            f"{file} exists already. Choose another output_dir, or remove it first."
        )
    path = None
    if resume_from_checkpoint:
        path = find_checkpoint(output_dir, resume_from_checkpoint)
        if path is None or path.parent.resolve() == Path(output_dir).resolve():
            return path
    check_unused(output_dir)
    return path


def last_whole(folder: str | Path | None) -> Path | None:
    """The newest complete checkpoint in a folder, if there is one."""
    found = checkpoints(folder) if folder else []
    return next((path for path in reversed(found) if _fingerprint_of(path)), None)


def find_checkpoint(folder: str | Path, wanted: str = "latest") -> Path | None:
    """What `--resume_from_checkpoint` means: "latest", a checkpoint's name, or its path.

    A broken one is named in a warning and left where it is; "latest" then takes the one before it,
    or None where there is none.

    Raises:
        CheckpointError: the one asked for by name is missing or broken.
    """
    if wanted == "latest":
        found = checkpoints(folder)
        for path in reversed(found):
            try:
                read_checkpoint(path)
            except CheckpointError as error:
                then = "going back to the one before it"
                if path == found[0]:
                    then = "none is complete, so the training starts anew"
                warnings.warn(f"{error} Left out; {then}.", TrainingWarning, stacklevel=2)
            else:
                return path
        return None
    path = Path(wanted) if Path(wanted).is_dir() else Path(folder) / Path(wanted).name
    try:
        if not path.is_dir():
            raise CheckpointError(f"There is no checkpoint {path}.")
        read_checkpoint(path)
    except CheckpointError as error:
        whole = ", ".join(p.name for p in checkpoints(folder) if _fingerprint_of(p)) or "none"
        raise CheckpointError(f"{error} Complete in {folder}: {whole}.") from None
    return path


# -------------------------------------------------------------------------------- writing, reading


def write_checkpoint(
    folder: str | Path, blora: BLoRA, state: TrainingState, settings: TrainingSettings
) -> Path:
    """Write `checkpoint-<step>` into a folder, under a hidden name first.

    The same checkpoint is left alone. Another one of this step, as a GPU writes when it resumes
    from an earlier step, is kept as `checkpoint-<step>.earlier`, and a broken one as `.broken`. Of
    earlier steps `settings.checkpoints_total_limit` are kept, this one included.

    Raises:
        CheckpointError: the disk is full or read-only; nothing half-written is left behind.
    """
    path = Path(folder) / f"checkpoint-{state.step}"
    part = path.with_name(f".{path.name}.part")
    try:
        if path.exists():
            there = _fingerprint_of(path)
            if there == blora.fingerprint:
                return path
            aside = path.with_name(path.name + (".earlier" if there else ".broken"))
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)
            if there:
                warnings.warn(
                    f"{path} was another one of the same step; it is kept as {aside.name}.",
                    TrainingWarning,
                    stacklevel=2,
                )
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        tensors, rest = state.pack()
        texts = {
            "state": json.dumps(rest),
            "settings": json.dumps(asdict(settings)),
            "weights": blora.fingerprint,
        }
        header = texts | {"sha256": checksum(tensors, texts)}
        safetensors.torch.save_file(tensors, part / STATE_NAME, header)
        for file in (part / STATE_NAME, blora.save(part)):
            with open(file, "rb+") as written:
                # a power cut must not find a new name on old blocks
                os.fsync(written.fileno())
        os.replace(part, path)
    except (OSError, safetensors.SafetensorError) as error:
        earlier = last_whole(folder)
        kept = f"The last complete one is {earlier}." if earlier else "There is no earlier one."
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"The checkpoint of step {state.step} cannot be written to {folder} ({reason}). {kept}"
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    limit = settings.checkpoints_total_limit
    if limit:
        # later ones are broken, or of a training that went on from an earlier step
        until_now = [p for p in checkpoints(folder) if step_of(p) <= state.step]
        for old in until_now[:-limit]:
            shutil.rmtree(old, ignore_errors=True)
    return path


def checksum(tensors: dict[str, Tensor], texts: dict[str, str]) -> str:
    """The sha256, in hexadecimal digits, of a training state: its tensors and texts."""
    digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _fingerprint_of(path: Path) -> str | None:
    """That of a checkpoint's weights; None where it is not complete."""
    try:
        return read_checkpoint(path)[0].fingerprint
    except CheckpointError:
        return None


def read_checkpoint(
    path: str | Path,
) -> tuple[BLoRA, dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """(B-LoRA, tensors, JSON-able rest, settings as a dict) of one checkpoint folder.

    Raises:
        CheckpointError: it is not there, or not complete.
    """
    path = Path(path)
    try:
        blora = BLoRA.load_unfinished(path)
        with safetensors.safe_open(path / STATE_NAME, "pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            texts = opened.metadata() or {}
        texts.pop("format", None)
        expected = texts.pop("sha256")
        same_weights = texts["weights"] == blora.fingerprint
        if not same_weights or checksum(tensors, texts) != expected:
            raise ValueError("its content is not what was written")
        return blora, tensors, json.loads(texts["state"]), json.loads(texts["settings"])
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"The checkpoint {path} is not complete ({error}).") from None


# ---------------------------------------------------------------------------------------- resuming


def other_settings(
    stored: dict[str, Any], settings: TrainingSettings, may_differ: frozenset[str] = frozenset()
) -> list[str]:
    """What differs between a training's stored settings and those asked for, in words."""
    ignored = WITHOUT_EFFECT | may_differ
    different = []
    for setting in fields(settings):
        # a setting that came later had its default
        then = stored.get(setting.name, setting.default)
        now = getattr(settings, setting.name)
        if setting.name not in ignored and then != now:
            different.append(f"{setting.name} was {then} and is {now}")
    return different


def resume(path: Path, state: TrainingState, settings: TrainingSettings) -> None:
    """Bring a fresh `TrainingState` to where a checkpoint was written.

    Raises:
        CheckpointError: it belongs to another picture, other settings or another model.
    """
    blora, tensors, rest, stored = read_checkpoint(path)
    constant = settings.lr_scheduler.startswith("constant")
    may_differ = frozenset({"max_train_steps"} if constant else ())
    different = other_settings(stored, settings, may_differ)
    if different:
        raise CheckpointError(
            f"{path} was written with other settings: {'; '.join(different)}. Give the same ones, "
            "or start in another folder."
        )
    for what, now in (state.learned or {}).items():
        if (rest.get("learned") or {}).get(what) != now:
            raise CheckpointError(
                f"{path} belongs to another {what}. Name the same one, or start in another folder."
            )
    steps = len(tensors["losses"])
    if steps > settings.max_train_steps:
        raise CheckpointError(
            f"{path} has {steps} steps behind it, more than the {settings.max_train_steps} asked "
            "for. Ask for more, or use the checkpoint as it is: it is a B-LoRA like any other."
        )
    shapes = {name: parameter.shape for name, parameter in state.parameters.items()}
    if {name: tensor.shape for name, tensor in blora.state_dict.items()} != shapes:
        raise CheckpointError(
            f"{path} does not fit this base model's layers. Name the same base, or start in "
            "another folder."
        )
    try:
        state.unpack(tensors, rest, blora.state_dict)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"The training state in {path} cannot be used ({type(error).__name__}: {error}). Name "
            "an earlier checkpoint, or use this one as it is: it is a B-LoRA like any other."
        ) from None
    state.resumed_from = path
