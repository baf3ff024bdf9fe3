"""Do img2img and ControlNet keep a layout that the halves alone do not?

    python benchmarks/structure.py    # 8 minutes on one core; writes structure.md, .json and .png

The same pictures and seeds with and without each. A B-LoRA is trained from a drawing that the
teaching model never saw, somewhere in the frame. Its content half and another picture's style half
are put together; with the ControlNet the drawing's outline takes the place of the content half. Of
the content picture and 23 others, which is the result most like in shape, and which in style? And
the layout is compared with the same object drawn in the same pose: of the pixels that belong to
either silhouette, the share that belongs to both (intersection over union). A silhouette is what
differs from the picture's own background, the median colour of its rim. As one style draws lines
and another fills, the object is drawn in the style that is wanted and in the content picture's own,
and the larger overlap counts.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "data"))

from blora_nb.course.drawings import Pose, draw, free_pose
from blora_nb.defaults import native_resolution
from blora_nb.evaluation.metrics import JudgeScorer
from blora_nb.figures.grids import picture_grid
from blora_nb.generation import generate
from blora_nb.pipeline import load_pipeline
from blora_nb.structure import load_controlnet, outline
from blora_nb.training import train
from course_drawings import PROMPT, drawings, pairs, verdicts
from report import HERE, PAIR_BY_PAIR, against, fingerprint, shares, summary, table, write

if TYPE_CHECKING:
    from diffusers import ControlNetModel

# a pixel whose colour differs by more than this from the background's belongs to the object
OUTSIDE = 60
RIM = 8  # pixels from the edge that are taken for background
ALONE = "halves only"
INSTEAD = "ControlNet, no content half"


def layout(seed: int) -> Pose:
    """A pose half-way between the ordinary one and a free one."""
    scale, shift_x, shift_y, turn = free_pose(seed)
    return (scale + 0.75) / 2, shift_x / 2, shift_y / 2, turn / 2


def silhouette(picture: Image.Image) -> np.ndarray:
    """Where a picture is not its own background: a Boolean [height, width]."""
    pixels = np.asarray(picture, dtype=int)
    strips = (pixels[:RIM], pixels[-RIM:], pixels[:, :RIM], pixels[:, -RIM:])
    background = np.median(np.concatenate([strip.reshape(-1, 3) for strip in strips]), axis=0)
    return np.abs(pixels - background).max(axis=2) > OUTSIDE


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two silhouettes."""
    return float((a & b).sum() / max(1, (a | b).sum()))


def ways(
    controlnet: "ControlNetModel", picture: Image.Image, edges: Image.Image
) -> dict[str, dict[str, Any]]:
    """What is compared: name → options of `generate`."""
    found: dict[str, dict[str, Any]] = {ALONE: {}}
    for strength in (0.8, 0.6, 0.4):
        found[f"img2img, strength {strength}"] = {"image": picture, "strength": strength}
    control = {"controlnet": controlnet, "control_image": edges}
    instead = control | {"content": None}
    return found | {
        INSTEAD: instead,
        f"{INSTEAD}, img2img 0.8": instead | found["img2img, strength 0.8"],
        "ControlNet, both halves, scale 0.5": control | {"controlnet_conditioning_scale": 0.5},
    }


def measure(
    count: int, seeds: int
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Image.Image]]]:
    """The rows of the table, and for each pair its pictures by name."""
    pipe, scorer, pictures = load_pipeline(device="cpu"), JudgeScorer(), drawings()
    side = native_resolution(pipe)
    controlnet = load_controlnet(pipe, "tiny")
    found: dict[str, list[tuple[bool, bool, float]]] = {}
    shown = []
    chosen = pairs(pictures)[:: len(pictures) // count]
    for number, (content, style) in enumerate(chosen):
        object_name, its_style = content.split("_")
        style_name, style_picture = style.split("_")[1], pictures[style]
        picture = draw(object_name, its_style, number, side, layout(number))
        wanted = draw(object_name, style_name, number, side, layout(number))
        candidates = pictures | {content: picture}
        targets = silhouette(wanted), silhouette(picture)
        halves = {
            "content": train(pipe, picture, progress=False),
            "style": train(pipe, style_picture, progress=False),
        }
        row = {"content picture": picture, "style picture": style_picture}
        for name, options in ways(controlnet, picture, outline(picture, side)).items():
            drawn: dict[str, Any] = {"seeds": range(seeds), "progress": False} | halves | options
            images = generate(pipe, PROMPT, **drawn)
            row[name] = images[0]
            right = verdicts(scorer, images, content, style, candidates)
            for image, (object_right, style_right) in zip(images, right):
                kept = max(overlap(silhouette(image), target) for target in targets)
                found.setdefault(name, []).append((object_right, style_right, kept))
        shown.append(row)
        so_far = {name: np.mean(t, axis=0).round(2).tolist() for name, t in found.items()}
        print(content, "in", style_name, so_far, flush=True)
    rows = {}
    for name, of_name in found.items():
        rows[name] = summary(of_name, seeds)
        rows[name]["layout"] = float(np.mean([kept for *_, kept in of_name]))
    return rows, shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    rows, shown = measure(args.pictures, args.seeds)
    cells = []
    for name, row in rows.items():
        difference = against(row, rows[ALONE])
        cells.append([name, *shares(row, "object", "style", "both"), difference])
        cells[-1] += shares(row, "layout")
    columns = ["object right", "style right", "both right", "difference", "layout"]
    text = f"""# Layouts kept, on the teaching model

Made by `python benchmarks/structure.py`; model {fingerprint()}, {rows[ALONE]["pictures"]} \
pictures a row ({args.pictures} pairs, {args.seeds} seeds).
Share of pictures that are, of 24, most like the content picture's object in shape, most like the
style picture's style, both; the difference from the halves alone, {PAIR_BY_PAIR}
Layout is the mean overlap with the object drawn in the content picture's pose, in its own style or
the one wanted (intersection over union of the silhouettes).

{table(columns, cells)}"""
    titles = [name.replace(", ", ",\n").replace(" and ", "\nand ") for name in shown[0]]
    figure = picture_grid(
        [list(row.values()) for row in shown[:4]],
        column_labels=titles,
        caption="First seed of the first four pairs",
        side=1.35,
    )
    (HERE / "structure.png").write_bytes(figure.png())
    write("structure", text, {"model": fingerprint(), "rows": rows})


if __name__ == "__main__":
    main()
