"""How many steps a picture of the teaching model needs; writes sampling.md and sampling.json.

    python benchmarks/sampling.py     # five minutes on one core

The pictures are the examples of the course, of which no table of separation uses one.
"""

from statistics import fmean
from typing import TYPE_CHECKING, Any

from PIL import Image
from tqdm import tqdm

from blora_nb.course.examples import example_blora, example_names, example_picture
from blora_nb.defaults import TINY_DEFAULTS
from blora_nb.evaluation.metrics import scorer_for
from blora_nb.generation import sample
from blora_nb.lora import BLoRA, apply, remove
from blora_nb.pipeline import load_pipeline, use_scheduler
from report import fingerprint, table, write
from separation import psnr

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

    from blora_nb.evaluation.metrics import Scorer

SAMPLERS = [
    ("euler", 20),
    ("euler", 14),
    ("euler", 12),
    ("euler", 10),
    ("dpm++", 12),
    ("dpm++", 8),
    ("unipc", 12),
    ("unipc", 8),
]


def measure(
    pipe: "StableDiffusionXLPipeline",
    scorer: "Scorer",
    pictures: list[Image.Image],
    bloras: list[BLoRA],
    steps: int,
) -> dict[str, float]:
    """The scores of both halves of each picture, and of each content with the next one's style."""
    options: dict[str, Any] = {"num_inference_steps": steps, "progress": False}
    rebuilt, kept, moved = [], [], []
    for picture, blora in zip(pictures, bloras, strict=True):
        apply(pipe, blora, blora)
        rebuilt += [psnr(image, picture) for image in sample(pipe, "A [v]", (0, 1), **options)]
    for i, picture in enumerate(pictures):
        other = (i + 1) % len(pictures)
        apply(pipe, bloras[i], bloras[other])
        images = sample(pipe, "A [c] in [s] style", (0,), **options)
        kept += scorer.content_kept(images, picture)
        moved += scorer.style_moved(images, pictures[other])
    remove(pipe)
    return {"rebuilt": fmean(rebuilt), "kept": fmean(kept), "moved": fmean(moved)}


def main() -> None:
    pipe = load_pipeline("tiny", device="cpu")
    scorer = scorer_for(pipe)
    names = example_names()
    pictures = [example_picture(name) for name in names]
    bloras = [example_blora(pipe, name) for name in tqdm(names, desc="B-LoRAs")]
    rows = {}
    for sampler, steps in tqdm(SAMPLERS, desc="samplers"):
        use_scheduler(pipe, sampler)
        rows[f"{sampler} {steps}"] = measure(pipe, scorer, pictures, bloras, steps)
    cells = [
        [label, f"{row['rebuilt']:.1f}", f"{row['kept']:.2f}", f"{row['moved']:.2f}"]
        for label, row in rows.items()
    ]
    columns = ["rebuilt, dB", "content kept", "style moved"]
    text = f"""# How many steps a picture of the teaching model needs

Made by `python benchmarks/sampling.py` from the {len(names)} example pictures, which no table of \
separation uses. Both halves rebuild each picture, seeds 0 and 1; then the content half of each \
with the style half of the next, seed 0, scored by the judge from 0 to 1. Guidance \
{TINY_DEFAULTS.guidance_scale:g}. The time of a picture goes with its steps.

{table(columns, cells)}
"""
    write("sampling", text, {"rows": rows, "model": fingerprint()})


if __name__ == "__main__":
    main()
