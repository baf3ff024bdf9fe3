"""Files that may be broken or hostile: find the weights, open them safely, write complete files or none."""

import os
import re
import tempfile
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import safetensors

from blora_nb.errors import BLoRAError, parse_json, several, shown
from blora_nb.files.formats import LARGEST, peft_names
from blora_nb.files.scales import PEFT_CONFIG

FILE_NAME = (
    "pytorch_lora_weights.safetensors"  # what diffusers and the original call it in a folder
)
PEFT_FILE = "adapter_model.safetensors"
LONGEST_HEADER = 16 * 2**20  # bytes; a LoRA of all of SDXL has about 0.5 MB
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(/[\w.-]+)*")
HUB_PAGE = re.compile(
    r"https?://(?:huggingface\.co|hf\.co)/(?!(?:datasets|spaces|api)/)([^/?#]+/[^/?#]+)(?:/(?:blob|resolve|tree)/main(/[^?#]+)?)?/?(?:[?#].*)?"
)
NO_SAFETENSORS = {
    b"PK": "is a zip or pickle checkpoint (.ckpt, .pt, .bin). Such files can run code when they are opened, so it was not; look for a .safetensors file of the same weights",
    b"\x80": "is a pickle. Such files can run code when they are opened, so it was not; look for a .safetensors file of the same weights",
    b"version ": "is only the Git LFS pointer to the weights; get them with: git lfs pull",
    b"<": "is a web page, probably saved in place of the weights; download the file itself",
}


class NotWritten(OSError):
    """A file that could not be written; the message says which one, why, and what to do."""


@contextmanager
def complete_file(path):
    """A path to write to; the file is at its place when the block ends without error, and nowhere otherwise.

    Raises:
        FileExistsError: there is such a file already. NotWritten: the disk is full or read-only, or the folder is not there.
    """
    path, part = Path(path), None
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists already. Choose another name, or remove it first.")
    try:
        handle, part = tempfile.mkstemp(".part", path.name[:40], path.parent)
        os.close(handle)
        yield Path(part)
        os.chmod(part, 0o666 & ~_umask())
        _put(part, path)
    except BaseException as error:
        if part:
            Path(part).unlink(missing_ok=True)
        if isinstance(error, (OSError, safetensors.SafetensorError)) and not isinstance(
            error, (FileExistsError, NotWritten)
        ):
            why = getattr(error, "strerror", None) or str(error)
            trouble = NotWritten(
                f"{path} cannot be written ({why}). Make room there, or name another place."
            )
            trouble.strerror = why
            raise trouble from None
        raise


def _put(part, path):
    """Give a finished file its name, unless somebody else has written one of that name meanwhile."""
    try:
        os.link(part, path)
        os.unlink(part)
    except FileExistsError:
        raise FileExistsError(
            f"{path} was written by another program meanwhile. Choose another name, or remove it first."
        ) from None
    except OSError:  # a file system without hard links
        os.replace(part, path)


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def find_weights(source):
    """The safetensors file meant by a path, a folder or a hub id ("user/repository" or "user/repository/file"), and PEFT's config.

    Returns:
        (path, path of the `adapter_config.json` beside it or None); `read_beside` says whether it
        is about this file.
    """
    if page := HUB_PAGE.fullmatch(str(source)):
        source = page[1] + (page[2] or "")
    if not str(source).strip():
        raise BLoRAError(
            "The name of the file is empty. Name a file, a folder, or an id on the Hugging Face hub."
        )
    if "://" in str(source):
        raise BLoRAError(
            f"{shown(source, 300)} is an address. Of the Hugging Face hub, the main revision of a model can be read by its id (user/repository) or page; anything else: download the file and name it here."
        )
    path = Path(source)
    try:
        if path.is_dir():
            path = path / _the_one(
                [p.name for p in sorted(path.iterdir()) if p.is_file()], shown(path, 300)
            )
        elif not path.exists() and HUB_ID.fullmatch(str(source)) and not path.parent.exists():
            return _from_hub(str(source))
        if path.is_symlink() and not path.exists():
            raise BLoRAError(
                f"{shown(path, 300)} is a link to {shown(os.readlink(path), 300)}, which is not there."
            )
        if not path.is_file():
            raise BLoRAError(
                f"There is no file or folder {shown(path, 300)}. Check the name (it is looked for from {Path.cwd()})."
            )
    except (OSError, ValueError) as error:
        if isinstance(error, BLoRAError):
            raise
        raise BLoRAError(
            f"{shown(source, 300)} cannot be opened ({getattr(error, 'strerror', None) or error})."
        ) from None
    config = path.with_name(PEFT_CONFIG)
    return path, config if config.is_file() else None


def read_beside(path: Path, config: Path | None, keys) -> tuple[dict, list[str]]:
    """The `adapter_config.json` beside a file of weights, where it is about that file.

    It is where the file has PEFT's names or endings, whatever it is called; and where nothing else
    says the alphas and there is no other file of weights in the folder that it could be about.

    Returns:
        (its entries or {}, notes).

    Raises:
        BLoRAError: it is no JSON object.
    """
    if config is None:
        return {}, []
    others = [
        name
        for name in os.listdir(path.parent)
        if name.endswith(".safetensors") and name != path.name and not name.startswith(".")
    ]
    if path.name == PEFT_FILE or peft_names(keys) or any(".lora_A." in key for key in keys):
        doubtful = others and path.name != PEFT_FILE
        note = f"the {PEFT_CONFIG} beside it was used, though it may be about {several(others)}."
        return read_json(config), [note] if doubtful else []
    if others or any(key.endswith(".alpha") for key in keys):
        return {}, [f"the {PEFT_CONFIG} beside it was not used, because the names are not PEFT's."]
    return read_json(config), [
        f"its names are not PEFT's, but the {PEFT_CONFIG} beside it was used: it is about no other."
    ]


def _the_one(files, where):
    """The name among the files of a folder or repository, called `where` in errors, that must be meant."""
    names = [
        name
        for name in files
        if name.endswith(".safetensors") and not Path(name).name.startswith(".")
    ]
    for name in (FILE_NAME, PEFT_FILE):
        if name in names:
            return name
    if len(names) == 1:
        return names[0]
    pickled = [name for name in files if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    nothing = (
        f"there is only {several(pickled)}, and such files can run code when opened, so they are not"
        if pickled
        else "there is no .safetensors file in it"
    )
    raise BLoRAError(
        f"In {where} there is no file {FILE_NAME}: {f'there are {several(names)}; name one of them' if names else nothing}."
    )


def _from_hub(source):
    """The weights downloaded from the Hugging Face hub, or taken from its cache."""
    from huggingface_hub import HfApi, errors

    repo_id, name = "/".join(source.split("/")[:2]), "/".join(source.split("/")[2:])
    api, reached = HfApi(), True
    try:
        if not name:
            try:
                name = _the_one(api.list_repo_files(repo_id), "the repository")
            except (BLoRAError, errors.RepositoryNotFoundError):
                raise
            except Exception:  # no network, which has many names; perhaps it is in the cache
                name, reached = FILE_NAME, False
        if reached:
            _check_size(api, repo_id, name)
        path = Path(api.hf_hub_download(repo_id, name, local_files_only=not reached))
        config = str(PurePosixPath(name).with_name(PEFT_CONFIG))
        try:
            return path, Path(api.hf_hub_download(repo_id, config, local_files_only=not reached))
        except errors.EntryNotFoundError:
            return path, None  # as in a folder without one
    except BLoRAError as error:
        raise BLoRAError(f"{source} on the Hugging Face hub: {error}") from None
    except errors.RepositoryNotFoundError:
        raise BLoRAError(
            f"There is no file or folder {source} here, and no such repository on the Hugging Face hub (a private one needs: hf auth login)."
        ) from None
    except errors.LocalEntryNotFoundError:
        raise BLoRAError(
            f"There is no file or folder {source} here; as a repository of the Hugging Face hub it is not in the cache, and the hub cannot be reached."
        ) from None
    except errors.EntryNotFoundError:
        raise BLoRAError(
            f"The repository {repo_id} on the Hugging Face hub has no file {name}."
        ) from None
    except Exception as error:  # the network fails in many ways, of several libraries
        raise BLoRAError(
            f"There is no file or folder {source} here, and the Hugging Face hub did not give it ({type(error).__name__}: {shown(error, 200)})."
        ) from None


def _check_size(api, repo_id, name):
    """Raise a BLoRAError, before anything is downloaded, if the file is larger than a LoRA can be."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:
        size = get_hf_file_metadata(
            hf_hub_url(repo_id, name, endpoint=api.endpoint), token=api.token
        ).size
    except (
        Exception
    ):  # no network, no such file: the download itself says so, or finds it in the cache
        return
    if (size or 0) > LARGEST:
        raise BLoRAError(
            f"{name} has {size / 2**30:.1f} GiB; no LoRA of SDXL is larger than {LARGEST / 2**30:.0f} GiB. Nothing was downloaded; name the file of a LoRA."
        )


def read_json(path):
    """A small JSON object from a file.

    Raises:
        BLoRAError: too large, or no such thing.
    """
    with open(path, "rb") as file:
        text = file.read(LONGEST_HEADER + 1)
    return parse_json(text, path) if len(text) <= LONGEST_HEADER else parse_json("", path)


@contextmanager
def open_weights(path):
    """A safetensors file, opened: `keys()`, `metadata()`, `get_slice(key)`, `get_tensor(key)`; nothing is read ahead.

    Raises:
        BLoRAError: it is no complete safetensors file.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(8)
        size, header = os.stat(path).st_size, int.from_bytes(start, "little")
        for mark, what in NO_SAFETENSORS.items():
            if start.startswith(mark) and header > LONGEST_HEADER:
                raise BLoRAError(f"{path} is not a complete safetensors file: it {what}.")
        if header > LONGEST_HEADER or len(start) < 8 or header + 8 > size:
            why = (
                "it is empty"
                if not size
                else f"its header would have {header:,} bytes and the file has {size:,}"
            )
            raise BLoRAError(
                f"{path} is not a complete safetensors file ({why}). Copy or download it again; other formats are not opened."
            )
        with safetensors.safe_open(path, "pt") as opened:
            yield opened
    except BLoRAError:
        raise
    except (safetensors.SafetensorError, OSError, MemoryError, RuntimeError) as error:
        # what the reader raises for headers that contradict themselves or name dtypes PyTorch lacks
        raise BLoRAError(
            f"{path} is not a complete safetensors file ({shown(error, 200)}). Copy or download it again; other formats are not opened."
        ) from None
