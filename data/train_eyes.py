"""Teach two networks to say, from a picture alone, what the tutors say of its shape and its style.

    python data/train_eyes.py      # after train_unet.py; half an hour on one core

Held-out shapes and styles are not seen. Resumes where it was stopped; writes
outputs/teaching_model/eyes.safetensors.
"""

import time
from argparse import ArgumentParser

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from blora_nb.instant import Eyes
from matrix_muon import MatrixMuon
from processes import half_precision
from teach_words import load_trained
from train_unet import save
from world.latents import smaller
from world.painting import paint
from world.paths import WORK
from world.samples import Shapes, Shares, training_styles
from world.styles import random_styles
from world.tutors import STYLE_TOKENS, Tutors


def batch(
    shapes: Shapes, count: int, generator: torch.Generator, held_out: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures [count, 3, 96, 96], their label maps [count, 4, 96, 96] and styles."""
    placed, _ = shapes.draw(count, generator)
    if held_out:
        styles = random_styles(count, generator, held_out=True)
    else:
        styles = training_styles(count, Shares(plain=0.03, flat=0.2), generator)
    return smaller(paint(placed, styles)), smaller(placed).clamp(0, 1), styles


@torch.no_grad()
def said(tutors: Tutors, maps: Tensor, styles: Tensor) -> tuple[Tensor, Tensor]:
    """The tutors' tokens for content and for style."""
    return tutors.content(maps), tutors.style(styles)


@torch.no_grad()
def report(eyes: Eyes, tutors: Tutors, unseen: Shapes) -> str:
    """The mean squared error on held-out shapes and styles; saying nothing has about 1."""
    pictures, maps, styles = batch(unseen, 128, torch.Generator().manual_seed(5), held_out=True)
    errors = []
    for found, wanted in zip(eyes(pictures), said(tutors, maps, styles), strict=True):
        spread = (wanted - wanted.mean(0)).square().mean()
        errors.append((found - wanted).square().mean() / spread)
    return f"unexplained on held-out pictures: content {errors[0]:.3f} style {errors[1]:.3f}"


def main() -> None:
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--batch-size", type=int, default=40)
    parser.add_argument("--name", default="unet", help="as in train_unet.py")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    _, tutors = load_trained(args.name)
    tutors.requires_grad_(False)
    eyes, step, state_file = Eyes(STYLE_TOKENS), 0, WORK / "eyes.pt"
    optimizer = MatrixMuon(eyes, muon_lr=0.02, adam_lr=2e-3, weight_decay=0.1)
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        eyes.load_state_dict(state["eyes"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    shapes, unseen, start = Shapes.load(), Shapes.load(held_out=True), time.time()
    while step < args.steps:
        generator = torch.Generator().manual_seed(step)
        optimizer.scale_learning_rate(min(1, (step + 1) / 50, 2 * (1 - step / args.steps)))
        pictures, maps, styles = batch(shapes, args.batch_size, generator)
        with half_precision():
            found = eyes(pictures)
        wanted = said(tutors, maps, styles)
        content_loss, style_loss = (F.mse_loss(a.float(), b) for a, b in zip(found, wanted))
        (content_loss + style_loss).backward()
        nn.utils.clip_grad_norm_(eyes.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 50 == 0:
            losses = f"content {content_loss.item():.4f} style {style_loss.item():.4f}"
            print(f"step {step}/{args.steps} {losses} {time.time() - start:.0f} s", flush=True)
        if step % 250 == 0 or step == args.steps:
            state = {"eyes": eyes.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            save(state_file, state)
            print(report(eyes, tutors, unseen), flush=True)
    halves = {name: tensor.half().contiguous() for name, tensor in eyes.state_dict().items()}
    save_file(halves, WORK / "eyes.safetensors")


if __name__ == "__main__":
    main()
