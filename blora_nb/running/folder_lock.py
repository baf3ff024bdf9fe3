"""One training at a time in a folder: two would mix their checkpoints."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def only_training_in(folder: str | Path | None) -> Iterator[None]:
    """Inside, no other training of this computer writes into a folder, or a FileExistsError.

    The lock is a file among the temporary ones, and ends with the process that holds it.
    """
    if folder is None:
        yield
        return
    name = hashlib.sha256(str(Path(folder).resolve()).encode(errors="replace")).hexdigest()[:16]
    lock = FileLock(Path(tempfile.gettempdir()) / f"blora_nb_training_{name}.lock", mode=0o666)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FileExistsError(
            f"Another training is writing into {folder} at the moment. Wait until it has ended, or "
            "choose another folder."
        ) from None
    except OSError:  # no room, or no right, to make the lock: the training needs it less than that
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no file that is open
            Path(lock.lock_file).unlink()
        lock.release()
