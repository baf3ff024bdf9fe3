"""Train the judge: how alike are two drawings in shape, and how alike in style?

    python data/train_judge.py     # after world/fetch_shapes.py; under an hour on one core

Two embeddings of unit length. The shapes of two pictures are alike if they show the same drawing,
in whatever style; their styles if they were painted by the same numbers, whatever they show. A
spoilt copy (blur, noise, missing parts, smears, scribbles, mixtures) should be the less alike the
more it is spoilt. The hardest candidates are asked about in every step: another shape in the same
style, and the same shape in another style. Held-out shapes and styles are not seen. Writes
outputs/teaching_model/judge/.
"""

import json
import time
from argparse import ArgumentParser

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from blora_nb.course.drawings import MORE_OBJECTS, OBJECTS
from blora_nb.evaluation.judge import JUDGE_SIDE, Judge
from processes import half_precision
from train_unet import save
from world.captions import CANONICAL_POSE, Noun, nouns
from world.painting import paint, place, random_poses
from world.paths import WORK
from world.samples import Shapes, Shares, training_styles
from world.styles import HELD_OUT_NAMED_STYLES, NAMED_STYLES, PLAIN, random_styles

FOLDER = WORK / "judge"
TEMPERATURE = 0.08

# ---------------------------------------------------------------- spoilt pictures


def stretched(field: Tensor, side: int) -> Tensor:
    """A coarse field [n, channels, cells, cells], smooth at `side` × `side` pixels."""
    return F.interpolate(field, (side, side), mode="bicubic", align_corners=False)


def blurred(pictures: Tensor, amount: Tensor, generator: torch.Generator) -> Tensor:
    side = pictures.shape[-1]
    soft = stretched(F.adaptive_avg_pool2d(pictures, 14), side)
    softer = stretched(F.adaptive_avg_pool2d(pictures, 5), side)
    first, second = (2 * amount).clamp(0, 1), (2 * amount - 1).clamp(0, 1)
    return pictures + (soft - pictures) * first + (softer - soft) * second


def noisy(pictures: Tensor, amount: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(pictures.shape, generator=generator)
    return (pictures * (1 - 0.5 * amount) + 1.2 * amount * noise).clamp(-1, 1)


def cut_off(pictures: Tensor, amount: Tensor, generator: torch.Generator) -> Tensor:
    """A straight cut; what is on one side of it becomes ground."""
    count, _, side, _ = pictures.shape
    ground = pictures[..., :4, :4].mean((2, 3), keepdim=True)
    turn = 2 * torch.pi * torch.rand(count, 1, 1, 1, generator=generator)
    steps = torch.linspace(-1, 1, side)
    along = steps * turn.cos() + steps[:, None] * turn.sin()
    gone = (along < 2 * amount - 1.05).float()
    return pictures + (ground - pictures) * gone


def smeared(pictures: Tensor, amount: Tensor, generator: torch.Generator) -> Tensor:
    count, _, side, _ = pictures.shape
    flow = stretched(torch.randn(count, 2, 5, 5, generator=generator), side).permute(0, 2, 3, 1)
    eye = torch.eye(2, 3).expand(count, -1, -1)
    grid = F.affine_grid(eye, list(pictures.shape), align_corners=False)
    grid = grid + 0.45 * amount * flow
    return F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)


def scribbled(pictures: Tensor, amount: Tensor, generator: torch.Generator) -> Tensor:
    count, _, side, _ = pictures.shape
    field = stretched(torch.randn(count, 1, 9, 9, generator=generator), side)
    stroke = (field.abs() < 0.9 * amount**1.5).float()
    colour = 2 * torch.rand(count, 3, 1, 1, generator=generator) - 1
    return pictures + (colour - pictures) * stroke


def mixed(pictures: Tensor, amount: Tensor, generator: torch.Generator) -> Tensor:
    """Three quarters of the way to another picture at the most."""
    order = torch.randperm(len(pictures), generator=generator)
    return pictures + (pictures[order] - pictures) * 0.75 * amount


# `amount` [n, 1, 1, 1] is from 0 (the picture itself) to 1 (nothing to recognise)
SPOIL = (blurred, noisy, cut_off, smeared, scribbled, mixed)

# ---------------------------------------------------------------- training


def small(pictures: Tensor) -> Tensor:
    """Pictures of the size that the judge looks at."""
    return F.avg_pool2d(pictures, pictures.shape[-1] // JUDGE_SIDE)


def triples(
    shapes: Shapes, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, the same shapes in other styles, the same styles on other shapes.

    The second have nearly the poses of the first.

    Returns:
        The three [3, count, 3, 64, 64], the number of each shape [count], the styles
        [count, NUMBERS].
    """

    def jitter(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).clamp(-2, 2)

    rows = torch.multinomial(shapes.weights, count, replacement=False, generator=generator)
    poses = random_poses(count, generator)
    nearly = poses.clone()
    nearly[:, 0] *= 1 + 0.06 * jitter(count)
    nearly[:, 1:3] += 0.05 * jitter(count, 2)
    nearly[:, 3] += 0.05 * jitter(count)
    styles = training_styles(count, Shares(plain=0.05), generator)
    others = training_styles(count, Shares(plain=0.15), generator)
    first = paint(place(shapes.coverage[rows], poses), styles)
    same_shape = paint(place(shapes.coverage[rows], nearly), others)
    elsewhere, _ = shapes.draw(count, generator)
    same_style = paint(elsewhere, styles)
    pictures = torch.stack([small(painted) for painted in (first, same_shape, same_style)])
    return pictures, rows, styles


class Pool:
    """The last triples that were painted; painting takes longer than learning from them."""

    def __init__(self, shapes: Shapes, size: int, uses: int = 4) -> None:
        self.shapes, self.size, self.uses, self.next = shapes, size, uses, 0
        generator = torch.Generator().manual_seed(1_000_000)
        # no shape twice in a part
        part = min(64, len(shapes.names))
        parts = [triples(shapes, part, generator) for _ in range(-(-size // part))]
        pictures, rows, styles = zip(*parts, strict=True)
        self.pictures = torch.cat(pictures, 1)[:, :size]
        self.rows, self.styles = torch.cat(rows)[:size], torch.cat(styles)[:size]

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """`count` triples as `triples` returns them, of which a few are new."""
        pictures, rows, styles = triples(self.shapes, count // self.uses, generator)
        places = (self.next + torch.arange(len(rows))) % self.size
        self.pictures[:, places], self.rows[places], self.styles[places] = pictures, rows, styles
        self.next = (self.next + len(rows)) % self.size
        chosen = torch.randperm(self.size, generator=generator)[:count]
        return self.pictures[:, chosen], self.rows[chosen], self.styles[chosen]


def agreement(a: Tensor, b: Tensor, decoys: Tensor, same: Tensor) -> Tensor:
    """Cross-entropy of finding each row's partner among all rows, both ways.

    The rows of `a` choose between those of `b` and the decoys.

    Args:
        same: [rows, rows], where two rows show the same shape, or are in the same style; one is
            then no wrong answer for the other.
    """
    target = torch.arange(len(a))
    partners = torch.where(same & ~torch.eye(len(a), dtype=torch.bool), -torch.inf, a @ b.T)
    forth = F.cross_entropy(torch.cat([partners, a @ decoys.T], 1) / TEMPERATURE, target)
    back = F.cross_entropy(partners.T / TEMPERATURE, target)
    return (forth + back) / 2


def found(a: Tensor, b: Tensor) -> Tensor:
    """Whether each row's partner is the nearest of all rows: [rows], 0 or 1."""
    return ((a @ b.T).argmax(1) == torch.arange(len(a))).float()


def main() -> None:
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--pool-size", type=int, default=1024, help="triples kept to learn from")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    judge = Judge().train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.02)
    shapes, state_file, step = Shapes.load(), WORK / "judge.pt", 0
    pool = Pool(shapes, args.pool_size)
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        judge.load_state_dict(state["judge"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    start = time.time()
    while step < args.steps:
        generator = torch.Generator().manual_seed(step)
        factor = min(1, (step + 1) / 100, (args.steps - step) / (0.6 * args.steps))
        optimizer.param_groups[0]["lr"] = 2e-3 * factor
        (first, shape_partner, style_partner), rows, styles = pool.batch(args.batch_size, generator)
        spoil = SPOIL[step % len(SPOIL)]
        amount = torch.rand(args.batch_size, generator=generator)
        worse = spoil(first, amount[:, None, None, None], generator)
        pictures = torch.cat([first, worse, shape_partner, style_partner])
        grain = 0.06 * torch.rand(len(pictures), 1, 1, 1, generator=generator)
        pictures = pictures + grain * torch.randn(pictures.shape, generator=generator)
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        with half_precision():
            shape, style = judge(pictures)
        s0, s_worse, s_shape, s_style = shape.float().chunk(4)
        t0, t_worse, t_shape, t_style = style.float().chunk(4)
        same_shapes = rows[:, None] == rows
        same_styles = (styles[:, None] == styles).all(2)
        loss = agreement(s0, s_shape, s_style, same_shapes)
        loss = loss + agreement(t0, t_style, t_shape, same_styles)
        # a spoilt copy is compared with the same shape in another style, as later in use
        wanted_shape = (1 - amount) * (s0 * s_shape).sum(1).detach()
        wanted_style = (1 - amount**2) * (t0 * t_style).sum(1).detach()
        loss = loss + 2 * F.mse_loss((s_worse * s_shape).sum(1), wanted_shape)
        loss = loss + F.mse_loss((t_worse * t_style).sum(1), wanted_style)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 50 == 0:
            shapes_found, styles_found = found(s0, s_shape).mean(), found(t0, t_style).mean()
            rates = f"shape {shapes_found:.2f} style {styles_found:.2f} of {args.batch_size}"
            seconds = time.time() - start
            print(
                f"step {step}/{args.steps} loss {loss.item():.3f} {rates}, {seconds:.0f} s",
                flush=True,
            )
        if step % 250 == 0 or step == args.steps:
            state = {"judge": judge.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            save(state_file, state)
    write(judge.eval(), shapes)


def chosen(things: list[Noun], count: int = 100) -> list[Noun]:
    """The objects that the course draws itself, and others of one word."""
    course = {*OBJECTS, *MORE_OBJECTS}
    ours = [noun for noun in things if noun.name in course]
    others = [noun for noun in things if noun.name not in course and " " not in noun.name]
    spread = others[:: max(1, len(others) // (count - len(ours)))]
    return sorted([*ours, *spread[: count - len(ours)]], key=lambda noun: noun.name)


@torch.no_grad()
def write(judge: Judge, shapes: Shapes) -> None:
    """Write the weights, the names it knows, and how well it finds held-out shapes and styles."""

    def embedded(placed: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
        return judge(small(paint(placed, style.expand(len(placed), -1))))

    things = chosen(nouns(shapes))
    styles = {**NAMED_STYLES, **HELD_OUT_NAMED_STYLES}
    every = [row for noun in things for row in noun.rows]
    placed = place(shapes.coverage[every], torch.tensor([CANONICAL_POSE] * len(every)))
    looks = torch.cat([embedded(part, PLAIN)[0] for part in placed.split(100)])
    by_noun = [rows.mean(0) for rows in looks.split([len(noun.rows) for noun in things])]
    many = placed[:: max(1, len(placed) // 24)][:24]
    by_style = [embedded(many, style)[1].mean(0) for style in styles.values()]
    tensors = judge.state_dict() | {
        "named_objects": F.normalize(torch.stack(by_noun), dim=1),
        "named_styles": F.normalize(torch.stack(by_style), dim=1),
    }
    halves = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in tensors.items()
    }
    FOLDER.mkdir(exist_ok=True)
    save_file(halves, FOLDER / "judge.safetensors")
    rates = accuracy(judge)
    config = {"objects": [noun.name for noun in things], "styles": list(styles), **rates}
    (FOLDER / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    print(rates)


@torch.no_grad()
def accuracy(judge: Judge, rounds: int = 8) -> dict[str, float]:
    """How often a held-out shape in the held-out style of another picture is told among 100.

    Each of 100 drawings is painted in its own style and, in the same pose, in that of the next one:
    is the second picture nearest in shape to the first, and in style to the next one?
    """
    unseen = Shapes.load(held_out=True)
    shapes_found, styles_found = [], []
    for seed in range(rounds):
        generator = torch.Generator().manual_seed(500 + seed)
        rows = torch.randperm(len(unseen.names), generator=generator)[:100]
        placed = place(unseen.coverage[rows], random_poses(len(rows), generator))
        styles = random_styles(len(rows), generator, held_out=True)
        shape, style = judge(small(paint(placed, styles)))
        mixed_shape, mixed_style = judge(small(paint(placed, styles.roll(-1, 0))))
        shapes_found.append(found(mixed_shape, shape))
        styles_found.append(found(mixed_style, style.roll(-1, 0)))
    shapes_right, styles_right = torch.cat(shapes_found), torch.cat(styles_found)
    rates = {"shape": shapes_right, "style": styles_right, "both": shapes_right * styles_right}
    return {f"{name}_among_100": round(right.mean().item(), 4) for name, right in rates.items()}


if __name__ == "__main__":
    main()
