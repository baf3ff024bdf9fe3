"""Checkpoints: all that a training needs to go on bit for bit, written whole or not at all, read without unpickling.

<folder>/checkpoint-250/pytorch_lora_weights.safetensors   a B-LoRA like any other, to generate with
<folder>/checkpoint-250/training_state.safetensors         optimizer, schedule, random numbers, losses
"""

import hashlib
import json
import os
import shutil
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from blora_nb.errors import BLoRAError, CheckpointError
from blora_nb.lora import BLoRA

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
        learned: what the training is of, such as {"pictures": a hash, "base model": a hash}, or None.
        resumed_from: the checkpoint that it was brought to by `resume`, or None.
    """

    parameters: dict
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    generator: torch.Generator
    losses: list
    learned: dict | None
    resumed_from: Path | None = None

    @property
    def step(self):
        return len(self.losses)

    def pack(self):
        """(tensors, JSON-able rest), the LoRA itself left out."""
        tensors = {
            "generator": self.generator.get_state(),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
        }
        optimizer, numbers = self.optimizer.state_dict(), {}
        for path, value in leaves(optimizer["state"]):
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer/{path}"] = value.detach().cpu().contiguous().clone()
            else:
                numbers[f"optimizer/{path}"] = value
        schedule = {"last_epoch": self.lr_scheduler.last_epoch}
        return tensors, {
            "step": self.step,
            "learned": self.learned,
            "groups": optimizer["param_groups"],
            "numbers": numbers,
            "schedule": schedule,
            "scaler": self.scaler.state_dict(),
        }

    def unpack(self, tensors, rest, weights):
        """The other way round, in place."""
        state = {}
        for name, value in [*tensors.items(), *rest["numbers"].items()]:
            first, *path = name.split("/")
            if first == "optimizer":
                place = state.setdefault(int(path[0]), {})
                for key in path[1:-1]:
                    place = place.setdefault(key, {})
                place[path[-1]] = value
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])
        self.optimizer.load_state_dict({"state": state, "param_groups": rest["groups"]})
        self.lr_scheduler.last_epoch = rest["schedule"]["last_epoch"]
        if rest["scaler"]:
            self.scaler.load_state_dict(rest["scaler"])
        self.generator.set_state(tensors["generator"])
        self.losses[:] = tensors["losses"].tolist()


def leaves(tree, path=""):
    """("outer/inner", value) of everything in nested dictionaries; 8-bit Adam nests its state, PyTorch's AdamW does not."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key}/")
        else:
            yield f"{path}{key}", value


def step_of(path):
    """The number in `checkpoint-250`, or None for any other name."""
    name, _, number = path.name.partition("-")
    return int(number) if name == "checkpoint" and number.isdigit() else None


def checkpoints(folder):
    """The checkpoint folders in a folder, the oldest first, whole or broken."""
    folder = Path(folder)
    return (
        sorted((p for p in folder.iterdir() if p.is_dir() and step_of(p)), key=step_of)
        if folder.is_dir()
        else []
    )


def check_unused(folder):
    """Raise a FileExistsError where a new training would mix its checkpoints with those of an earlier one."""
    if checkpoints(folder):
        raise FileExistsError(
            f'{folder} holds the checkpoints of an earlier training. To go on with it, or to have its B-LoRA where it had come to its end: resume_from_checkpoint="latest". For a new training choose another folder.'
        )


def write_checkpoint(folder, blora, state, settings, limit=None):
    """Write `checkpoint-<step>` into a folder, under a hidden name first; a step that is already there is left alone.

    Raises:
        CheckpointError: the disk is full or read-only; nothing half-written is left behind.
    """
    path = Path(folder) / f"checkpoint-{state.step}"
    part = path.with_name(f".{path.name}.part")
    try:
        if path.exists():
            if _is_whole(path):
                return path
            os.replace(path, path.with_name(path.name + ".broken"))
        shutil.rmtree(part, ignore_errors=True)
        tensors, rest = state.pack()
        texts = {
            "state": json.dumps(rest),
            "settings": json.dumps(asdict(settings)),
            "weights": blora.fingerprint,
        }
        part.mkdir(parents=True)
        safetensors.torch.save_file(
            tensors, part / STATE_NAME, texts | {"sha256": checksum(tensors, texts)}
        )
        for file in (part / STATE_NAME, blora.save(part)):
            with open(file, "rb+") as written:
                os.fsync(written.fileno())  # a power cut must not find a new name on old blocks
        os.replace(part, path)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        earlier = checkpoints(folder)
        kept = f"The last complete one is {earlier[-1]}." if earlier else "There is no earlier one."
        raise CheckpointError(
            f"The checkpoint of step {state.step} cannot be written to {folder} ({getattr(error, 'strerror', None) or error}). {kept}"
        ) from None
    earlier = [
        p for p in checkpoints(folder) if step_of(p) <= state.step
    ]  # later ones are broken, or of a training that went on from an earlier step
    for old in earlier[:-limit] if limit else []:
        shutil.rmtree(old, ignore_errors=True)
    return path


def checksum(tensors, texts):
    """The sha256 of a training state, in hexadecimal digits: of its tensors and of the texts beside them."""
    digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(
            f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode()
            + tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def _is_whole(path):
    try:
        read_checkpoint(path)
    except CheckpointError:
        return False
    return True


def read_checkpoint(path):
    """(B-LoRA, tensors, JSON-able rest, settings as a dict) of one checkpoint folder.

    Raises:
        CheckpointError: missing, empty, cut off, or no checkpoint.
    """
    path = Path(path)
    try:
        blora = BLoRA.load_unfinished(path)
        with safetensors.safe_open(path / STATE_NAME, "pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}
            metadata = opened.metadata() or {}
        if expected := metadata.pop("sha256", None):  # checkpoints of earlier versions have none
            if (
                metadata.get("weights") != blora.fingerprint
                or checksum(
                    tensors, {name: text for name, text in metadata.items() if name != "format"}
                )
                != expected
            ):
                raise ValueError("its content is not what was written")
        return blora, tensors, json.loads(metadata["state"]), json.loads(metadata["settings"])
    except (
        BLoRAError,
        OSError,
        safetensors.SafetensorError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:
        raise CheckpointError(f"The checkpoint {path} is not complete ({error}).") from None


def find_checkpoint(folder, wanted="latest"):
    """What `--resume_from_checkpoint` means: "latest", a checkpoint's name, or its path. None: there is none to go on from.

    A broken one is named in a warning and left where it is; "latest" then takes the one before it.

    Raises:
        CheckpointError: the one asked for by name is missing or broken.
    """
    if wanted != "latest":
        path = Path(wanted) if Path(wanted).is_dir() else Path(folder) / Path(wanted).name
        try:
            if not path.is_dir():
                raise CheckpointError(f"There is no checkpoint {path}.")
            return read_checkpoint(path) and path
        except CheckpointError as error:
            raise CheckpointError(
                f"{error} Complete in {folder}: {', '.join(p.name for p in checkpoints(folder) if _is_whole(p)) or 'none'}."
            ) from None
    for path in reversed(checkpoints(folder)):
        try:
            return read_checkpoint(path) and path
        except CheckpointError as error:
            warnings.warn(f"{error} Left out; going back to the one before it.", stacklevel=2)
    return None


def other_settings(stored: dict, settings, may_differ=frozenset()) -> list[str]:
    """What differs between the stored settings of a training and those asked for, in words.

    Args:
        may_differ: names of settings that are not compared, beside those without effect.
    """
    now = asdict(settings)
    return [
        f"{name} was {stored.get(name)} and is {now[name]}"
        for name in now
        if name not in WITHOUT_EFFECT | may_differ and stored.get(name) != now[name]
    ]


def resume(path, state, settings):
    """Bring a fresh `TrainingState` to where a checkpoint was written.

    Raises:
        CheckpointError: it belongs to another picture, other settings or another model.
    """
    blora, tensors, rest, stored = read_checkpoint(path)
    may_differ = {"max_train_steps"} if settings.lr_scheduler.startswith("constant") else set()
    if different := other_settings(stored, settings, may_differ):
        raise CheckpointError(
            f"{path} was written with other settings: {'; '.join(different)}. Give the same ones, or start in another folder."
        )
    if state.learned and rest.get("learned") is None:
        raise CheckpointError(
            f"{path} was written by an earlier version, which did not note what it was trained on. Use it as it is (it is a B-LoRA like any other), or start in another folder."
        )
    for what, now in (state.learned or {}).items():
        if (
            rest["learned"].get(what, rest.get("content") if what == "content half" else None)
            != now
        ):  # where earlier versions kept that
            raise CheckpointError(
                f"{path} belongs to another {what}. Name the same one, or start in another folder."
            )
    if len(tensors["losses"]) > settings.max_train_steps:
        raise CheckpointError(
            f"{path} has {len(tensors['losses'])} steps behind it, more than the {settings.max_train_steps} asked for. Ask for more, or use the checkpoint as it is: it is a B-LoRA like any other."
        )
    if {k: t.shape for k, t in blora.state_dict.items()} != {
        k: p.shape for k, p in state.parameters.items()
    }:
        raise CheckpointError(
            f"{path} does not fit this base model's layers. Name the same base, or start in another folder."
        )
    try:
        state.unpack(tensors, rest, blora.state_dict)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"The training state in {path} cannot be used ({type(error).__name__}: {error}). Name an earlier checkpoint, or use this one as it is: it is a B-LoRA like any other."
        ) from None
    state.resumed_from = path
