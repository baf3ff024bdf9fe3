"""The pictures the teaching model learns from: which ones, their captions, and a cache of them on
disk.

python data/training_pictures.py     # draws them once into outputs/teaching_model/pictures.npy
"""

import os
import random
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from tqdm import tqdm

from blora_nb.course.drawings import COLOURS, OBJECTS, STYLES, draw, is_held_out

SIZE = 96  # pixels of a training picture
COUNT = 32_000
WORK = (
    Path(__file__).parent.parent / "outputs" / "teaching_model"
)  # everything a training run leaves behind


def training_list(count=COUNT):
    """`count` triples (object, style, seed): three in five in a named style, the others in two
    named colours."""
    random_ = random.Random(0)
    seen = [(o, s) for o in OBJECTS for s in STYLES if not is_held_out(o, s)]
    pictures = []
    for seed in range(count):
        if seed % 5 < 3:
            object_name, style_name = random_.choice(seen)
        else:
            fill, ground = random_.sample(list(COLOURS), 2)
            object_name = random_.choice(list(OBJECTS))
            style_name = random_.choice(["", "outlined "]) + f"{fill} on {ground}"
        pictures.append((object_name, style_name, seed))
    return pictures


def draw_array(item):
    object_name, style_name, seed = item
    return np.asarray(draw(object_name, style_name, seed, SIZE))


def load_pictures():
    """uint8 [count, SIZE, SIZE, 3], memory-mapped; drawn on the first call (a few minutes)."""
    path = WORK / "pictures.npy"
    if not path.exists():
        WORK.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npy")
        array = np.lib.format.open_memmap(part, "w+", np.uint8, (COUNT, SIZE, SIZE, 3))
        with Pool(os.cpu_count()) as pool:
            drawn = pool.imap(draw_array, training_list(), chunksize=100)
            for i, picture in enumerate(tqdm(drawn, total=COUNT, desc="drawing", mininterval=5)):
                array[i] = picture
        array.flush()
        part.rename(path)
    return np.load(path, mmap_mode="r")


if __name__ == "__main__":
    print(load_pictures().shape)
