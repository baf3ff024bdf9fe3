"""Do img2img and ControlNet keep a layout that the halves alone do not? The same pictures and seeds with and without each.

    python benchmarks/structure.py    # about 8 minutes on one core; writes structure.md, .json and .png

A B-LoRA is trained from a drawing of an object in a pose half as free as those that the ControlNet learnt, which the judge still
understands, and in a combination that the teaching model never saw. Its content half and another picture's style half are put
together; the judge names object and style of what comes out, and the layout is compared with the same object drawn in the same
pose: of the pixels that belong to either silhouette, the share that belongs to both (intersection over union). A silhouette is
what differs from the picture's own background, the median colour of its rim. As one style draws lines and another fills, the
object is drawn in the style that is wanted and in the content picture's own, and the larger overlap counts.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "data")]

from blora_nb.assets import fingerprint
from blora_nb.defaults import native_resolution
from blora_nb.figures import picture_grid
from blora_nb.generation import generate
from blora_nb.metrics import Judge
from blora_nb.pipeline import load_pipeline
from blora_nb.structure import load_controlnet, outline
from blora_nb.training import train
from drawings import draw, free_pose
from recipes import PAIRED, against
from separation import PROMPT, held_out_pictures, pairs, summary

OUTSIDE = (
    60  # a pixel whose colour differs by more than this from the background's belongs to the object
)
RIM = 8  # pixels from the edge that are taken for background


def layout(seed):
    """A pose half-way between the ordinary one and a free one."""
    return tuple((free + ordinary) / 2 for free, ordinary in zip(free_pose(seed), (0.75, 0, 0, 0)))


def silhouette(picture):
    """Where a picture is not its own background: a Boolean [height, width]."""
    pixels = np.asarray(picture, dtype=int)
    rim = np.concatenate(
        [
            pixels[:RIM].reshape(-1, 3),
            pixels[-RIM:].reshape(-1, 3),
            pixels[:, :RIM].reshape(-1, 3),
            pixels[:, -RIM:].reshape(-1, 3),
        ]
    )
    return np.abs(pixels - np.median(rim, axis=0)).max(axis=2) > OUTSIDE


def ways(controlnet, picture, edges):
    """What is compared: name → options of `generate`."""
    found = {"halves only": {}}
    found |= {
        f"img2img, strength {strength}": {"image": picture, "strength": strength}
        for strength in (0.8, 0.6, 0.4)
    }
    found |= {
        f"ControlNet, scale {scale}": {
            "controlnet": controlnet,
            "control_image": edges,
            "controlnet_conditioning_scale": scale,
        }
        for scale in (0.5, 1.0)
    }
    return found | {
        "ControlNet and img2img, strength 0.8": found["img2img, strength 0.8"]
        | found["ControlNet, scale 1.0"]
    }


def measure(count, seeds):
    pipe, judge, table, shown = load_pipeline(device="cpu"), Judge.load(), {}, []
    side, controlnet, pictures = (
        native_resolution(pipe),
        load_controlnet(pipe, "tiny"),
        held_out_pictures(),
    )
    for number, other in pairs(pictures)[:: len(pictures) // count]:
        object_name, its_style, _ = pictures[number]
        picture = draw(object_name, its_style, number, side, layout(number))
        content, style = (train(pipe, one, progress=False) for one in (picture, pictures[other][2]))
        style_name, wanted = (
            pictures[other][1],
            draw(object_name, pictures[other][1], number, side, layout(number)),
        )
        targets, row = (silhouette(wanted), silhouette(picture)), {}
        for name, options in ways(controlnet, picture, outline(picture, side)).items():
            images = generate(
                pipe, PROMPT, content, style, seeds=range(seeds), progress=False, **options
            )
            verdicts = judge.name(images)
            for image, (found_object, found_style) in zip(images, verdicts):
                one = silhouette(image)
                table.setdefault(name, []).append(
                    (
                        found_object == object_name,
                        found_style == style_name,
                        max(
                            (one & target).sum() / max(1, (one | target).sum())
                            for target in targets
                        ),
                    )
                )
            row[name] = images[0]
        shown.append({"content picture": picture, "style picture": pictures[other][2], **row})
        print(
            object_name,
            its_style,
            "in",
            style_name,
            {name: np.round(np.mean(t, axis=0), 2).tolist() for name, t in table.items()},
            flush=True,
        )
    return {
        name: summary(verdicts, seeds)
        | {"layout": float(np.mean([overlap for *_, overlap in verdicts]))}
        for name, verdicts in table.items()
    }, shown


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    rows, shown = measure(args.pictures, args.seeds)
    text = f"# Layouts kept, on the teaching model\n\nMade by `python benchmarks/structure.py`; model {fingerprint()}, {next(iter(rows.values()))['pictures']} pictures a row ({args.pictures} pairs, {args.seeds} seeds).\n"
    text += f"Share of pictures in which the judge finds the content picture's object, the style picture's style, both; the difference\nfrom the halves alone, {PAIRED}\nLayout is the mean overlap with the object drawn in the content picture's pose, in its own style or the one wanted (intersection over union of the\nsilhouettes).\n\n"
    text += (
        "| | object right | style right | both right | difference | layout |\n|---|---|---|---|---|---|\n"
        + "".join(
            f"| {name} | {r['object']:.2f} | {r['style']:.2f} | {r['both']:.2f} | {against(r, rows['halves only'])} | {r['layout']:.2f} |\n"
            for name, r in rows.items()
        )
    )
    (HERE / "structure.md").write_text(text)
    (HERE / "structure.json").write_text(
        json.dumps({"model": fingerprint(), "rows": rows}, indent=1) + "\n"
    )
    figure = picture_grid(
        [list(row.values()) for row in shown[:4]],
        None,
        [name.replace(", ", ",\n").replace(" and ", "\nand ") for name in shown[0]],
        "First seed of the first four pairs",
        side=1.35,
    )
    (HERE / "structure.png").write_bytes(figure.png())
    print(text)


if __name__ == "__main__":
    main()
