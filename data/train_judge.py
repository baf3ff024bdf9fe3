"""Train the judge of the measurements: a small classifier that names the object and the style of a
drawing.

python data/train_judge.py     # about ten minutes on one core; writes blora_nb/data/judge/
"""

import json
import os
import random
from multiprocessing import Pool

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from safetensors.torch import save_file
from tqdm import tqdm

from blora_nb.assets import DATA
from blora_nb.course.drawings import (
    COLOURS,
    HELD_OUT_OBJECTS,
    HELD_OUT_STYLES,
    OBJECTS,
    STYLES,
    draw,
)
from blora_nb.metrics import SIDE, Judge

EVERY_OBJECT, EVERY_STYLE = [*OBJECTS, *HELD_OUT_OBJECTS], [*STYLES, *HELD_OUT_STYLES]
COUNT, TEST = 16_000, 1_600
FOLDER = DATA / "judge"


def example(seed):
    """(pixels uint8 [48, 48, 3], object number, style number or -1): sometimes blurred or noisy,
    as generated pictures are."""
    random_ = random.Random(f"judge {seed}")
    object_name, style = random_.choice(EVERY_OBJECT), random_.choice(EVERY_STYLE)
    named = random_.random() < 0.75
    if not named:
        fill, ground = random_.sample(list(COLOURS), 2)
        style = random_.choice(["", "outlined "]) + f"{fill} on {ground}"
    picture = draw(object_name, style, 10_000_000 + seed, 96)  # seeds that no training picture has
    if random_.random() < 0.5:
        picture = picture.filter(ImageFilter.GaussianBlur(random_.uniform(0, 2)))
    pixels = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)
    if random_.random() < 0.5:
        noise = np.random.default_rng(seed).normal(0, random_.uniform(0, 25), (SIDE, SIDE, 3))
        pixels = (pixels + noise) * random_.uniform(0.9, 1.1)
    return (
        pixels.clip(0, 255).astype(np.uint8),
        EVERY_OBJECT.index(object_name),
        EVERY_STYLE.index(style) if named else -1,
    )


def main():
    with Pool(os.cpu_count()) as pool:
        drawn = list(
            tqdm(
                pool.imap(example, range(COUNT + TEST), chunksize=50),
                total=COUNT + TEST,
                desc="drawing",
                mininterval=5,
            )
        )
    pixels = torch.from_numpy(np.stack([d[0] for d in drawn])).permute(0, 3, 1, 2)
    objects, styles = (torch.tensor([d[i] for d in drawn]) for i in (1, 2))
    torch.manual_seed(0)
    judge, steps, batch = Judge(EVERY_OBJECT, EVERY_STYLE), 2200, 64
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.02)
    for step in tqdm(range(steps), desc="training", mininterval=5):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(
            1, (step + 1) / 100, (steps - step) / (0.6 * steps)
        )
        rows = torch.randint(COUNT, (batch,))
        x = pixels[rows].float() / 127.5 - 1
        dx, dy = torch.randint(-4, 5, (2,)).tolist()
        object_logits, style_logits = judge(x.roll((dy, dx), (2, 3)))
        loss = F.cross_entropy(object_logits, objects[rows]) + F.cross_entropy(
            style_logits, styles[rows], ignore_index=-1
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    judge.eval()
    with torch.no_grad():
        parts = [
            judge(pixels[i : i + 200].float() / 127.5 - 1) for i in range(COUNT, COUNT + TEST, 200)
        ]
    right_object = torch.cat([p[0] for p in parts]).argmax(1) == objects[COUNT:]
    right_style = (torch.cat([p[1] for p in parts]).argmax(1) == styles[COUNT:])[
        styles[COUNT:] >= 0
    ]
    report = {
        "objects": EVERY_OBJECT,
        "styles": EVERY_STYLE,
        "object_accuracy": round(right_object.float().mean().item(), 4),
        "style_accuracy": round(right_style.float().mean().item(), 4),
        "test_pictures": TEST,
    }
    FOLDER.mkdir(exist_ok=True)
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in judge.state_dict().items()},
        FOLDER / "judge.safetensors",
    )
    (FOLDER / "config.json").write_text(json.dumps(report, indent=1) + "\n")
    print({k: v for k, v in report.items() if "accuracy" in k})


if __name__ == "__main__":
    main()
