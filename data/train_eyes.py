"""Teach two networks to say, from a picture alone, what the tutors say of its shape and its style.

    python data/train_eyes.py                  # after train_unet.py; two hours on one core
    python data/train_eyes.py --only content   # or one beside the other, on a core each
    python data/train_eyes.py --only style

Held-out shapes and styles are not seen. Resumes where it was stopped; writes
outputs/teaching_model/eyes.safetensors once both are trained.
"""

import time
from argparse import ArgumentParser

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from blora_nb.instant import build_eyes
from matrix_muon import MatrixMuon
from processes import half_precision
from teach_words import load_trained
from train_unet import save
from world.latents import smaller
from world.painting import paint
from world.paths import WORK
from world.samples import Shapes, Shares, training_styles
from world.styles import random_styles
from world.tutors import Tutors


class Seen:
    """Pictures [count, 3, 96, 96] of new shapes in new styles, and what a tutor says of them."""

    def __init__(self, tutors: Tutors, half: str, shapes: Shapes, held_out: bool = False) -> None:
        self.tutors, self.half = tutors, half
        self.shapes, self.held_out = shapes, held_out

    @torch.no_grad()
    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Pictures, and tokens [count, 36, 96]."""
        placed, _ = self.shapes.draw(count, generator)
        if self.held_out:
            styles = random_styles(count, generator, held_out=True)
        else:
            styles = training_styles(count, Shares(plain=0.03, flat=0.2, loud=0.2), generator)
        pictures = smaller(paint(placed, styles))
        if self.half == "style":
            return pictures, self.tutors.style(styles)
        return pictures, self.tutors.content(smaller(placed).clamp(0, 1))


@torch.no_grad()
def unexplained(eye: nn.Module, seen: Seen) -> float:
    """The mean squared error on held-out shapes and styles, beside that of saying the mean."""
    pictures, wanted = seen.batch(128, torch.Generator().manual_seed(5))
    spread = (wanted - wanted.mean(0)).square().mean()
    return float((eye(pictures) - wanted).square().mean() / spread)


def train_eye(eye: nn.Module, half: str, tutors: Tutors, steps: int, batch_size: int) -> None:
    """Train the eye of one half, or go on with it."""
    optimizer = MatrixMuon(eye, muon_lr=0.02, adam_lr=2e-3, weight_decay=0.1)
    step, state_file = 0, WORK / f"eye_{half}.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        eye.load_state_dict(state["eye"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    seen = Seen(tutors, half, Shapes.load())
    never_seen = Seen(tutors, half, Shapes.load(held_out=True), held_out=True)
    start = time.time()
    while step < steps:
        optimizer.scale_learning_rate(min(1, (step + 1) / 50, 2 * (1 - step / steps)))
        pictures, wanted = seen.batch(batch_size, torch.Generator().manual_seed(step))
        with half_precision():
            found = eye(pictures)
        loss = F.mse_loss(found.float(), wanted)
        loss.backward()
        nn.utils.clip_grad_norm_(eye.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 50 == 0:
            seconds = time.time() - start
            print(f"{half}: step {step}/{steps} loss {loss.item():.4f} {seconds:.0f} s", flush=True)
        if step % 250 == 0 or step == steps:
            state = {"eye": eye.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            save(state_file, state)
            share = unexplained(eye, never_seen)
            print(f"{half}: unexplained on held-out pictures {share:.3f}", flush=True)


def write_eyes(eyes: nn.ModuleDict) -> None:
    """Write eyes.safetensors in half precision, once each has a state."""
    for half, eye in eyes.items():
        state_file = WORK / f"eye_{half}.pt"
        if not state_file.exists():
            print(f"eyes.safetensors is not written: the eye for {half} is not trained yet.")
            return
        eye.load_state_dict(torch.load(state_file, weights_only=True)["eye"])
    halves = {name: tensor.half().contiguous() for name, tensor in eyes.state_dict().items()}
    save_file(halves, WORK / "eyes.safetensors")


def main() -> None:
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--batch-size", type=int, default=40)
    parser.add_argument("--name", default="unet", help="as in train_unet.py")
    parser.add_argument("--only", choices=["content", "style"], help="the eye of one half")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    _, tutors = load_trained(args.name)
    tutors.requires_grad_(False)
    eyes = build_eyes()
    for half, eye in eyes.items():
        if args.only in (None, half):
            train_eye(eye, half, tutors, args.steps, args.batch_size)
    write_eyes(eyes)


if __name__ == "__main__":
    main()
