"""The example pictures of the course, and a trained B-LoRA for each of them, so that a class need not wait."""

from pathlib import Path

from blora_nb.assets import DATA
from blora_nb.defaults import TINY_DEFAULTS, defaults_for
from blora_nb.files.images import read_image
from blora_nb.lora import BLoRA
from blora_nb.training import train

OUTPUTS = DATA.parent / "outputs"


def example_names():
    """The names of the pictures in data/examples, such as "cat_wood"."""
    return sorted(path.stem for path in (DATA / "examples").glob("*.png"))


def example_picture(name):
    """One of them, a PIL image of 1024 x 1024 pixels.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in example_names():
        raise ValueError(f"There is no example {name!r}; there are {', '.join(example_names())}.")
    return read_image(DATA / "examples" / f"{name}.png")


def example_blora(pipe, name, afresh=False):
    """The B-LoRA of an example picture, for this pipeline.

    For the teaching model it is in data/bloras. For another base model it is trained at the first call and kept in
    outputs/bloras, in a folder named after the model.

    Args:
        afresh: train it now in any case, with a progress bar, and keep nothing.
    """
    picture = example_picture(name)
    if afresh:
        return train(pipe, picture)
    tiny = defaults_for(pipe) is TINY_DEFAULTS
    folder = DATA / "bloras" if tiny else OUTPUTS / "bloras" / Path(pipe.config._name_or_path).name
    file = folder / f"{name}.safetensors"
    if not file.exists():
        train(pipe, picture).save(file)
    return BLoRA.load(file)
