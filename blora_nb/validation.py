"""Pictures of one prompt and the same seeds at every checkpoint of a training, to choose a checkpoint by."""

import re
import warnings

from blora_nb.files.paths import safe_name
from blora_nb.files.saved_images import save_image
from blora_nb.running.checkpoints import checkpoints

SHEET = "validation.png"  # the pictures of all checkpoints side by side
PICTURE = re.compile(r"_seed(-?\d+)\.png$")


def validation_pictures(pipe, prompt, count):
    """A function for `train(on_checkpoint=…)`: pictures of a prompt, always with the seeds 0, 1, …, in each checkpoint's folder.

    Side by side they show which checkpoint to take: early ones keep the base model's variety, late ones the picture's detail.
    """
    from blora_nb.generation import encode, pictures

    embeds = encode(pipe, prompt, None)

    def validate(pipe, folder):
        files = {seed: folder / f"{safe_name(prompt)}_seed{seed}.png" for seed in range(count)}
        missing = [
            seed for seed, file in files.items() if not file.exists()
        ]  # some may be there from a training that was stopped
        try:
            for seed, image in zip(missing, pictures(pipe, embeds, missing, progress=False)):
                save_image(image, files[seed], {"prompt": prompt, "seed": seed})
        except (
            OSError,
            MemoryError,
            ValueError,
        ) as error:  # the training is worth more than its pictures
            warnings.warn(
                f"The pictures at {folder} could not all be made or written ({error}). The training goes on.",
                stacklevel=2,
            )

    return validate


def validated(folder):
    """Checkpoint folder to the pictures made at it, in the order of their seeds; the oldest first.

    Raises:
        FileNotFoundError: there is none with pictures.
    """
    found = {
        path: sorted(
            (p for p in path.iterdir() if PICTURE.search(p.name)),
            key=lambda p: int(PICTURE.search(p.name)[1]),
        )
        for path in checkpoints(folder)
    }
    if not any(found.values()):
        raise FileNotFoundError(
            f"{folder} has no checkpoint with pictures. They are made with --validation_prompt, from Python with train(…, output_dir=…, on_checkpoint=validation_pictures(…))."
        )
    return {path: pictures for path, pictures in found.items() if pictures}
