"""Train the judge of the open world: it says how alike two drawings are in shape, and how alike in style.

    python data/train_open_judge.py     # after world/fetch_shapes.py; about half an hour on one core; writes outputs/teaching_model/judge/

Two embeddings of unit length. The shapes of two pictures are alike if they show the same drawing, in whatever style; their
styles if they were painted by the same numbers, whatever they show. A spoilt copy (blur, noise, missing parts, smears,
scribbles, mixtures) is to be the less alike the more it is spoilt. Held-out shapes and styles are not seen.
"""

import json
import sys
import time
from argparse import ArgumentParser
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from world.captions import canonical_shapes, nouns
from world.judge import SIDE, Judge
from world.painting import paint, place, random_poses
from world.paths import WORK
from world.samples import Shapes, training_styles
from world.styles import HELD_OUT_NAMED_STYLES, NAMED_STYLES, PLAIN, random_styles

FOLDER = WORK / "judge"
KINDS = ("blur", "noise", "missing", "smear", "scribble", "mixture")
TEMPERATURE = 0.08


def spoilt(pictures: Tensor, amount: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Pictures [n, 3, side, side], each spoilt by `amount` [n] from 0 (not at all) to 1 (nothing is left of it)."""
    strength = amount[:, None, None, None]
    count, _, side, _ = pictures.shape
    noise = torch.randn(pictures.shape, generator=generator)
    if kind == "noise":
        return (pictures * (1 - 0.5 * strength) + 1.2 * strength * noise).clamp(-1, 1)
    if kind == "blur":
        small = F.adaptive_avg_pool2d(pictures, 5)
        blurred = F.interpolate(small, (side, side), mode="bicubic", align_corners=False)
        soft = F.interpolate(
            F.adaptive_avg_pool2d(pictures, 14), (side, side), mode="bicubic", align_corners=False
        )
        half = (2 * strength).clamp(0, 1)
        return (
            pictures + (soft - pictures) * half + (blurred - soft) * (2 * strength - 1).clamp(0, 1)
        )
    if kind == "missing":
        ground = pictures[..., :4, :4].mean((2, 3), keepdim=True)
        turn = 2 * torch.pi * torch.rand(count, generator=generator)
        y, x = torch.meshgrid(*[torch.linspace(-1, 1, side)] * 2, indexing="ij")
        along = x * turn.cos()[:, None, None] + y * turn.sin()[:, None, None]
        gone = (along < 2 * amount[:, None, None] - 1.05).float()[:, None]
        return pictures + (ground - pictures) * gone
    if kind == "smear":
        cells = torch.randn(count, 2, 5, 5, generator=generator)
        flow = F.interpolate(cells, (side, side), mode="bicubic", align_corners=False).permute(
            0, 2, 3, 1
        )
        eye = torch.eye(2, 3).expand(count, -1, -1)
        grid = F.affine_grid(eye, list(pictures.shape), align_corners=False)
        return F.grid_sample(
            pictures, grid + 0.45 * strength * flow, padding_mode="reflection", align_corners=False
        )
    if kind == "scribble":
        field = F.interpolate(
            torch.randn(count, 1, 9, 9, generator=generator),
            (side, side),
            mode="bicubic",
            align_corners=False,
        )
        stroke = (field.abs() < 0.9 * strength**1.5).float()
        colour = 2 * torch.rand(count, 3, 1, 1, generator=generator) - 1
        return pictures + (colour - pictures) * stroke
    order = torch.randperm(
        count, generator=generator
    )  # mixture: half-way to another picture at the most
    return pictures + (pictures[order] - pictures) * 0.75 * strength


def small(pictures: Tensor) -> Tensor:
    return F.avg_pool2d(pictures, pictures.shape[-1] // SIDE)


def batch(shapes: Shapes, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(pictures, same shape in another style and nearly the same pose, same style on another shape)."""
    rows = torch.multinomial(shapes.weights, count, replacement=False, generator=generator)
    poses = random_poses(count, generator)
    nearly = poses.clone()
    nearly[:, 0] *= 1 + 0.06 * torch.randn(count, generator=generator).clamp(-2, 2)
    nearly[:, 1:3] += 0.05 * torch.randn(count, 2, generator=generator).clamp(-2, 2)
    nearly[:, 3] += 0.05 * torch.randn(count, generator=generator).clamp(-2, 2)
    styles, others = (
        training_styles(count, 0.05, generator),
        training_styles(count, 0.15, generator),
    )
    placed = place(shapes.coverage[rows], poses)
    again = place(shapes.coverage[rows], nearly)
    elsewhere, _ = shapes.draw(count, generator)
    return (
        small(paint(placed, styles)),
        small(paint(again, others)),
        small(paint(elsewhere, styles)),
    )


def agreement(a: Tensor, b: Tensor) -> Tensor:
    """Cross-entropy of finding each row's partner among all rows, both ways."""
    logits = a @ b.T / TEMPERATURE
    target = torch.arange(len(a))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def main() -> None:
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=96)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    judge = Judge().train()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.02)
    shapes, state_file, step = Shapes.load(), WORK / "judge.pt", 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        judge.load_state_dict(state["judge"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    start = time.time()
    while step < args.steps:
        generator = torch.Generator().manual_seed(step)
        optimizer.param_groups[0]["lr"] = 2e-3 * min(
            1, (step + 1) / 100, (args.steps - step) / (0.6 * args.steps)
        )
        first, shape_partner, style_partner = batch(shapes, args.batch_size, generator)
        kind = KINDS[step % len(KINDS)]
        amount = torch.rand(args.batch_size, generator=generator)
        worse = spoilt(first, amount, kind, generator)
        pictures = torch.cat([first, shape_partner, style_partner, worse])
        pictures = pictures + 0.06 * torch.rand(
            len(pictures), 1, 1, 1, generator=generator
        ) * torch.randn(pictures.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            shape, style = judge(pictures)
        s0, s1, _, s3 = shape.float().chunk(4)
        t0, _, t2, t3 = style.float().chunk(4)
        wanted = 1 - amount
        # a spoilt copy is compared with the clean picture of the same shape in another style, as pictures are judged later
        loss = agreement(s0, s1) + agreement(t0, t2)
        loss = loss + 2 * F.mse_loss((s3 * s1).sum(1), wanted * (s0 * s1).sum(1).detach())
        loss = loss + F.mse_loss((t3 * t2).sum(1), (1 - amount**2) * (t0 * t2).sum(1).detach())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 50 == 0:
            found = (s0 @ s1.T).argmax(1) == torch.arange(len(s0))
            styled = (t0 @ t2.T).argmax(1) == torch.arange(len(t0))
            rates = f"shape {found.float().mean():.2f} style {styled.float().mean():.2f}"
            print(
                f"step {step}/{args.steps} loss {loss.item():.3f} {rates} of {args.batch_size}, {time.time() - start:.0f} s",
                flush=True,
            )
        if step % 250 == 0 or step == args.steps:
            part = state_file.with_suffix(".part")
            torch.save(
                {"judge": judge.state_dict(), "optimizer": optimizer.state_dict(), "step": step},
                part,
            )
            part.rename(state_file)
    write(judge.eval(), shapes)


@torch.no_grad()
def write(judge: Judge, shapes: Shapes) -> None:
    """The weights, what it knows by name, and how well it finds held-out shapes and styles among 100."""
    things = nouns(shapes)
    placed = canonical_shapes(shapes, things)
    pictures = torch.cat(
        [small(paint(part, PLAIN.expand(len(part), -1))) for part in placed.split(100)]
    )
    by_name = torch.cat([judge(part)[0] for part in pictures.split(100)])
    styles = {**NAMED_STYLES, **HELD_OUT_NAMED_STYLES}
    many = placed[:: len(placed) // 24][:24]
    by_style = [
        F.normalize(judge(small(paint(many, style.expand(len(many), -1))))[1].mean(0), dim=0)
        for style in styles.values()
    ]
    tensors = {
        key: tensor.half() if tensor.is_floating_point() else tensor
        for key, tensor in judge.state_dict().items()
    }
    tensors |= {"named_objects": by_name.half(), "named_styles": torch.stack(by_style).half()}
    FOLDER.mkdir(exist_ok=True)
    save_file(
        {key: tensor.contiguous() for key, tensor in tensors.items()}, FOLDER / "judge.safetensors"
    )
    report = {"objects": [noun.name for noun in things], "styles": list(styles), **accuracy(judge)}
    (FOLDER / "config.json").write_text(json.dumps(report, indent=1) + "\n")
    print(accuracy(judge))


@torch.no_grad()
def accuracy(judge: Judge, rounds: int = 8) -> dict[str, float]:
    """Share of held-out shapes (then styles) found among 100 by a picture in another style (then of another shape)."""
    unseen, found_shapes, found_styles = Shapes.load(held_out=True), [], []
    for seed in range(rounds):
        generator = torch.Generator().manual_seed(500 + seed)
        rows = torch.randperm(len(unseen.names), generator=generator)[:100]
        poses = random_poses(100, generator)
        placed = place(unseen.coverage[rows], poses)
        styles, others = (
            random_styles(100, generator, held_out=True),
            random_styles(100, generator, held_out=True),
        )
        a, b = judge(small(paint(placed, styles))), judge(small(paint(placed, others)))
        c = judge(small(paint(placed[torch.randperm(100, generator=generator)], styles)))
        target = torch.arange(100)
        found_shapes.append((b[0] @ a[0].T).argmax(1) == target)
        found_styles.append((c[1] @ a[1].T).argmax(1) == target)
    shape, style = (
        torch.cat(found).float().mean().item() for found in (found_shapes, found_styles)
    )
    return {"shape_among_100": round(shape, 4), "style_among_100": round(style, 4)}


if __name__ == "__main__":
    main()
