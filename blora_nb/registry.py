"""One pipeline, several callers: the lock that lets one at a time put LoRAs on it and draw."""

import threading
from weakref import WeakKeyDictionary

# The state all callers must share. JupyterLab runs the callbacks of widgets beside the running cell, and two pieces of
# work on one pipeline would change each other's LoRAs.
LOCKS = WeakKeyDictionary()


def pipeline_lock(pipe):
    """The lock of a pipeline, the same one at every call; whoever holds it may take it again."""
    return LOCKS.setdefault(pipe, threading.RLock())


def options_of(pipe):
    """What `load_pipeline`, `use_scheduler` and `merge_few_step_lora` were asked for, by the names of the command line."""
    return getattr(
        pipe,
        "blora_nb_options",
        {"pretrained_model_name_or_path": str(pipe.config.get("_name_or_path") or "")},
    )
