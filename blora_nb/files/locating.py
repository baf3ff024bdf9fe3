"""Where weights are: a file, a folder, or the Hugging Face hub; and PEFT's config beside them."""

import os
import re
from collections.abc import Iterable
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from blora_nb.errors import BLoRAError, not_there, several, shown
from blora_nb.files.lora_settings import PEFT_CONFIG
from blora_nb.files.names import are_pefts
from blora_nb.files.safe_files import LARGEST, PICKLES, read_json

if TYPE_CHECKING:
    from huggingface_hub import HfApi

FILE_NAME = "pytorch_lora_weights.safetensors"  # as diffusers and the original call it in a folder
PEFT_FILE = "adapter_model.safetensors"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(/[\w.-]+)*")
HUB_PAGE = re.compile(
    r"https?://(?:huggingface\.co|hf\.co)/(?!(?:datasets|spaces|api)/)([^/?#]+/[^/?#]+)"
    r"(?:/(?:blob|resolve|tree)/main(/[^?#]+)?)?/?(?:[?#].*)?"
)


def find_weights(source: str | Path) -> tuple[Path, Path | None]:
    """(the safetensors file that a user means, the `adapter_config.json` beside it or None).

    Args:
        source: a path, a folder, or a hub id ("user/repository" or "user/repository/file"), also
            as the address of its page.

    Raises:
        BLoRAError: there is no such file.
    """
    if not isinstance(source, str | PathLike):
        raise BLoRAError(
            "A B-LoRA is named by a file, a folder or an id on the Hugging Face hub, not given as "
            f"{type(source).__name__}."
        )
    page = HUB_PAGE.fullmatch(str(source))
    if page:
        source = page[1] + (page[2] or "")
    if not str(source).strip():
        raise BLoRAError(
            "The name of the file is empty. Name a file, a folder, or an id on the Hugging Face "
            "hub."
        )
    if "://" in str(source):
        raise BLoRAError(
            f"{shown(source, 300)} is an address. Of the Hugging Face hub, the main revision of a "
            "model can be read by its id (user/repository) or page; anything else: download the "
            "file and name it here."
        )
    path = Path(source)
    try:
        is_hub_id = HUB_ID.fullmatch(str(source)) and not path.exists()
        if is_hub_id and not path.parent.exists():
            return _from_hub(str(source))
        if path.is_dir():
            files = [entry.name for entry in sorted(path.iterdir()) if entry.is_file()]
            path = path / _only_weights(files, shown(path, 300))
        if path.is_symlink() and not path.exists():
            target = shown(os.readlink(path), 300)
            raise BLoRAError(f"{shown(path, 300)} is a link to {target}, which is not there.")
        if not path.is_file():
            raise BLoRAError(not_there("file or folder", path))
    except BLoRAError:
        raise
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise BLoRAError(f"{shown(source, 300)} cannot be opened ({why}).") from None
    config = path.with_name(PEFT_CONFIG)
    return path, config if config.is_file() else None


def _visible_weights(files: Iterable[str]) -> list[str]:
    """The safetensors files among these; not what programs have hidden."""
    return [
        name
        for name in files
        if name.endswith(".safetensors") and not PurePosixPath(name).name.startswith(".")
    ]


def _only_weights(files: Iterable[str], where: str) -> str:
    """The file that must be meant, of those in a folder or repository called `where`."""
    files = list(files)
    names = _visible_weights(files)
    for name in (FILE_NAME, PEFT_FILE):
        if name in names:
            return name
    if len(names) == 1:
        return names[0]
    pickled = [name for name in files if name.endswith(PICKLES)]
    why = "there is no .safetensors file in it"
    if names:
        why = f"there are {several(names)}; name one of them"
    elif pickled:
        why = (
            f"there is only {several(pickled)}, and such files can run code when opened, so they "
            "are not"
        )
    raise BLoRAError(f"In {where} there is no file {FILE_NAME}: {why}.")


def read_beside(path: Path, config: Path | None, keys: Iterable[str]) -> tuple[dict, list[str]]:
    """(entries of the `adapter_config.json` beside a file where it is about that file, notes).

    It is where the file has PEFT's names or endings, whatever it is called; and where nothing else
    says the alphas and there is no other file of weights in the folder that it could be about.
    """
    if config is None:
        return {}, []
    keys = list(keys)
    others = [name for name in _visible_weights(os.listdir(path.parent)) if name != path.name]
    if path.name == PEFT_FILE:
        return read_json(config), []
    if are_pefts(keys) or any(".lora_A." in key for key in keys):
        note = f"the {PEFT_CONFIG} beside it was used, though it may be about {several(others)}."
        return read_json(config), [note] if others else []
    if others or any(key.endswith(".alpha") for key in keys):
        return {}, [f"the {PEFT_CONFIG} beside it was not used, because the names are not PEFT's."]
    return read_json(config), [
        f"its names are not PEFT's, but the {PEFT_CONFIG} beside it was used: it is about no other."
    ]


def _from_hub(source: str) -> tuple[Path, Path | None]:
    """The weights downloaded from the Hugging Face hub, or taken from its cache."""
    from huggingface_hub import errors

    user, repository, *folders = source.split("/")
    repo_id, name = f"{user}/{repository}", "/".join(folders)
    nothing_here = f"There is no file or folder {source} here"
    try:
        return _download(repo_id, name)
    except BLoRAError as error:
        raise BLoRAError(f"{source} on the Hugging Face hub: {error}") from None
    except errors.RepositoryNotFoundError:
        raise BLoRAError(
            f"{nothing_here}, and no such repository on the Hugging Face hub (a private one needs: "
            "hf auth login)."
        ) from None
    except errors.LocalEntryNotFoundError:
        raise BLoRAError(
            f"{nothing_here}; as a repository of the Hugging Face hub it is not in the cache, and "
            "the hub cannot be reached."
        ) from None
    except errors.EntryNotFoundError:
        raise BLoRAError(
            f"The repository {repo_id} on the Hugging Face hub has no file {name}."
        ) from None
    except Exception as error:  # the network fails in many ways, of several libraries
        raise BLoRAError(
            f"{nothing_here}, and the Hugging Face hub did not give it ({type(error).__name__}: "
            f"{shown(error, 200)})."
        ) from None


def _download(repo_id: str, name: str) -> tuple[Path, Path | None]:
    """The weights and PEFT's config of a repository; an empty name means its only weights."""
    from huggingface_hub import HfApi, errors

    api, offline = HfApi(), False
    if not name:
        try:
            name = _only_weights(api.list_repo_files(repo_id), "the repository")
        except (BLoRAError, errors.RepositoryNotFoundError):
            raise
        except Exception:  # no network, which has many names; perhaps it is in the cache
            name, offline = FILE_NAME, True
    if not offline:
        _check_download_size(api, repo_id, name)
    path = Path(api.hf_hub_download(repo_id, name, local_files_only=offline))
    config = str(PurePosixPath(name).with_name(PEFT_CONFIG))
    try:
        return path, Path(api.hf_hub_download(repo_id, config, local_files_only=offline))
    except errors.LocalEntryNotFoundError:
        # the hub cannot be reached, and PEFT's own files have the scale in their config
        if path.name == PEFT_FILE:
            raise BLoRAError(
                f"{name} is in the cache, but the {PEFT_CONFIG} beside it is not, and the hub "
                "cannot be reached. Try again with a network."
            ) from None
        return path, None
    except errors.EntryNotFoundError:
        return path, None  # as in a folder without one


def _check_download_size(api: "HfApi", repo_id: str, name: str) -> None:
    """Raise a BLoRAError if a file is larger than a LoRA can be, before it is downloaded."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repo_id, name, endpoint=api.endpoint)
    try:
        size = get_hf_file_metadata(url, token=api.token).size or 0
    except Exception:
        # no network, or no such file: the download itself says so, or finds it in the cache
        return
    if size > LARGEST:
        raise BLoRAError(
            f"{name} has {size / 2**30:.1f} GiB; no LoRA of SDXL is larger than "
            f"{LARGEST / 2**30:.0f} GiB. Nothing was downloaded; name the file of a LoRA."
        )
