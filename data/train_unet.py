"""Train the teaching model's U-Net on shapes and styles, with two tutors in place of words.

    torchrun --nproc_per_node 2 data/train_unet.py --pictures 400000      # one core a process

Resumes where it was stopped: its state is written every ten minutes to
outputs/teaching_model/NAME.pt, and the averaged weights to NAME.safetensors.

How the blocks come to specialise: the content tutor's message goes to the content block of B-LoRA
only, the style tutor's to its style block only, and all other blocks hear neutral words. Now and
then a block hears the message of another picture on the half of the words that is not its own, and
learns to ignore it. With `--natural` every block hears everything: that is the model to compare
with.

What is small and seen is asked for twice. A linear layer has to find each part of a shape in the
content tutor's message, the look of ground and main part and the numbers of textures in the style
tutor's. And the U-Net's error counts five times on an accent, three times on a main part that has a
pattern and where a texture, a glow or a shadow changes the picture.
"""

import copy
import json
import os
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from blora_nb.blocks import CONTENT_BLOCK, STYLE_BLOCK
from matrix_muon import MatrixMuon
from processes import (
    average_gradients,
    gather,
    half_precision,
    process_0_first,
    start_processes,
)
from world.latents import CHANNELS, PATCH, SIDE, components, smaller, to_latents, to_pictures
from world.painting import paint
from world.paths import WORK
from world.samples import Batch, Pool, Shapes, Shares
from world.styles import (
    HELD_OUT_PATTERNS,
    PATTERNS,
    PLAIN,
    TEXTURES,
    effects,
    get,
    random_styles,
    without_patterns,
)
from world.tutors import HALF, Readout, Tutors

POOLED = 64  # numbers of the pooled prompt, which says nothing here


def build_unet() -> UNet2DConditionModel:
    """An untrained U-Net with SDXL's three levels and eleven transformer blocks.

    The two blocks that hear the tutors begin with louder cross-attention than diffusers' own start:
    that lets a style change 1 % of what the U-Net says, and only lightness came through.
    """
    unet = UNet2DConditionModel(
        sample_size=SIDE // PATCH,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64, 144),
        layers_per_block=2,
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(4, 4, 4),
        cross_attention_dim=2 * HALF,
        norm_num_groups=4,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=6 * 32 + POOLED,
    )
    for name in (CONTENT_BLOCK, STYLE_BLOCK):
        block = unet.get_submodule(name)
        nn.init.orthogonal_(block.proj_out.weight, 1.7)
        for layer in block.transformer_blocks:
            nn.init.orthogonal_(layer.attn2.to_v.weight, 1.7)
            nn.init.orthogonal_(layer.attn2.to_out[0].weight, 1.7)
    return unet


def noise_schedule() -> DDPMScheduler:
    """SDXL's schedule, v-prediction, ending in pure noise."""
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
    )


def size_words(count: int) -> dict[str, Tensor]:
    """SDXL's added conditions: an empty pooled prompt, and the size of the picture."""
    return {
        "text_embeds": torch.zeros(count, POOLED),
        "time_ids": torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]] * count, dtype=torch.float32),
    }


@contextmanager
def words_per_block(unet: nn.Module, words_of: dict[str, Tensor]) -> Iterator[None]:
    """Inside, the named transformer blocks attend to their own `encoder_hidden_states`."""

    def swap(words: Tensor, block: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return args, {**kwargs, "encoder_hidden_states": words}

    handles = []
    for name, words in words_of.items():
        block, hook = unet.get_submodule(name), partial(swap, words)
        handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# ---------------------------------------------------------------- what the blocks hear


def hidden(message: Tensor, share: float, quiet: Tensor, generator: torch.Generator) -> Tensor:
    """Messages [batch, tokens, 96], a share of them replaced by the neutral words `quiet`."""
    gone = torch.rand(len(message), generator=generator) < share
    return torch.where(gone[:, None, None], quiet, message)


def routed_words(
    tutors: Tutors, content: Tensor, style: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Words [batch, 64, 192] for the content block, the style block, and all others.

    Args:
        content, style: the tutors' messages [batch, 36, 96].
    """
    count = len(content)
    quiet_content, quiet_style = tutors.quiet()

    def own(message: Tensor, quiet: Tensor) -> Tensor:
        return hidden(message, 0.08, quiet, generator)

    def strangers(message: Tensor, quiet: Tensor) -> Tensor:
        order = torch.randperm(count, generator=generator)
        return hidden(message[order].detach(), 0.6, quiet, generator)

    its_content, any_style = own(content, quiet_content), strangers(style, quiet_style)
    for_content = tutors.words(its_content, any_style, count)
    any_content, its_style = strangers(content, quiet_content), own(style, quiet_style)
    for_style = tutors.words(any_content, its_style, count)
    any_content, any_style = strangers(content, quiet_content), strangers(style, quiet_style)
    for_others = tutors.words(any_content, any_style, count)
    nothing = torch.rand(count, generator=generator) < 0.08  # the zeroed empty prompt of SDXL
    keep = (~nothing).float()[:, None, None]
    return for_content * keep, for_style * keep, for_others * keep


def natural_words(
    tutors: Tutors, content: Tensor, style: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """The same words for all blocks: both messages."""
    quiet_content, quiet_style = tutors.quiet()
    content = hidden(content, 0.08, quiet_content, generator)
    style = hidden(style, 0.08, quiet_style, generator)
    keep = (torch.rand(len(content), generator=generator) >= 0.08).float()[:, None, None]
    words = tutors.words(content, style, len(content)) * keep
    return words, words, words


# ---------------------------------------------------------------- the curriculum


def shares(progress: float) -> Shares:
    """Which styles are painted at this share of the training.

    First every ground is light and every object dark, in any hue: with all colours from the start a
    silhouette is now lighter, now darker than its ground, and the content tutor's message says
    nothing about any pixel until the model knows how to combine both. (With black on white at
    first, the model never learned hues.) Then come all colours, then loud patterns, and last
    whatever there is. (With patterns as faint as they may be from the start, none was learned.)
    """
    ordered = min(1.0, max(0.0, 1.2 - progress / 0.15))
    flat = min(1.0, max(0.12, 1 - 0.88 * (progress - 0.25) / 0.4))
    loud = 0.5 if progress > 0.25 else 0.0
    loud -= 0.35 * min(1.0, max(0.0, (progress - 0.76) / 0.2))
    return Shares(plain=0.03, ordered=ordered, flat=max(flat, ordered), loud=loud)


def timesteps(count: int, progress: float, generator: torch.Generator) -> Tensor:
    """High noise first, later more of the low noise.

    At 999 the model must draw the picture from the words alone.
    """
    late = min(1.0, max(0.0, (progress - 0.62) / 0.15))
    pure, high = 0.6 - 0.4 * late, 0.25 - 0.05 * late
    which = torch.rand(count, generator=generator)
    top = 900 + 100 * torch.rand(count, generator=generator)
    middle = 1000 * torch.sigmoid(1.4 + torch.randn(count, generator=generator))
    uniform = 1000 * torch.rand(count, generator=generator)
    chosen = torch.where(which < pure, top, torch.where(which < pure + high, middle, uniform))
    return chosen.long().clamp(0, 999)


def learning_rate(progress: float, steps_without_pause: int) -> float:
    """The factor of the learning rate: warm-up, constant, linearly to zero over the last 25 %.

    Where momentum was lost there is a warm-up again.
    """
    return min(1.0, (steps_without_pause + 1) / 60, (1 - progress) / 0.25)


# ---------------------------------------------------------------- training


def predict(
    unet: nn.Module, noisy: Tensor, t: Tensor, words: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """The U-Net's output, computed in bfloat16 where autocast allows it."""
    for_content, for_style, for_others = words
    per_block = {CONTENT_BLOCK: for_content, STYLE_BLOCK: for_style}
    with words_per_block(unet, per_block), half_precision():
        return unet(noisy, t, for_others, added_cond_kwargs=size_words(len(noisy))).sample.float()


def prediction_loss(found: Tensor, target: Tensor, batch: Batch) -> Tensor:
    """Mean squared error, in which what is small and seen counts more.

    An accent counts five times, a main part that has a pattern three times, and what textures, glow
    and shadow change up to three times.
    """
    main, _, accent, _ = F.adaptive_avg_pool2d(batch.shapes, target.shape[-1]).split(1, dim=1)
    has_pattern = 1 - get(batch.styles, "fill_pattern")[:, :1, None, None]  # the first is "flat"
    special = torch.maximum(has_pattern * main, batch.added)
    return ((found - target).square() * (1 + 4 * accent + 2 * special)).mean()


@torch.no_grad()
def one_step_quality(
    unet: nn.Module, tutors: Tutors, shapes: Shapes, held_out: bool, parts: dict[str, Tensor]
) -> dict[str, float | list[float]]:
    """PSNR in dB of pictures drawn in one step from pure noise, by the tutors' words.

    Beside it that of one flat colour, and of what the latents can hold; and for flat styles the
    share of the variance of the parts' mean colours that the pictures have.
    """
    count = 96
    generator = torch.Generator().manual_seed(9)
    placed, _ = shapes.draw(count, generator)
    plain, unseen = PLAIN.expand(count, -1), random_styles(count, generator, held_out)
    result: dict[str, float | list[float]] = {}
    for name, styles in (("plain", plain), ("flat", without_patterns(unseen)), ("any", unseen)):
        pictures, maps = smaller(paint(placed, styles)), smaller(placed)
        noise = torch.randn(count, CHANNELS, SIDE // PATCH, SIDE // PATCH, generator=generator)
        for_content = tutors.words(tutors.content(maps), None, count)
        for_style = tutors.words(None, tutors.style(styles), count)
        words = (for_content, for_style, tutors.words(None, None, count))
        # v = -x0 where there is only noise
        latents = -predict(unet, noise, torch.full((count,), 999), words)
        drawn = to_pictures(latents, parts).clamp(-1, 1)
        flat = pictures.mean((2, 3), keepdim=True)
        held = to_pictures(to_latents(pictures, parts), parts)
        result[name] = psnr(drawn, pictures)
        result[name + "_one_colour"] = psnr(flat.expand_as(pictures), pictures)
        result[name + "_latents"] = psnr(held, pictures)
        if name == "flat":
            ground = (maps.sum(1) < 0.02).float()
            result["ground"] = explained(drawn, ground, get(styles, "ground_1"))
            result |= {p: explained(drawn, maps[:, i], get(styles, c)) for i, p, c in PARTS}
    return result


class FlatPictures:
    """24 shapes in random flat colours, to be drawn in one step from pure noise."""

    def __init__(
        self, unet: nn.Module, tutors: Tutors, shapes: Shapes, parts: dict[str, Tensor]
    ) -> None:
        self.unet, self.tutors, self.parts = unet, tutors, parts
        count = 24
        generator = torch.Generator().manual_seed(1)
        self.styles = without_patterns(random_styles(count, generator))
        self.placed, _ = shapes.draw(count, generator)
        self.noise = torch.randn(count, CHANNELS, *2 * [SIDE // PATCH], generator=generator)

    @torch.no_grad()
    def true_and_drawn(self, styles: Tensor) -> tuple[Tensor, Tensor]:
        """Latents of the shapes in other styles: painted, and drawn by the tutors' words."""
        count, tutors = len(styles), self.tutors
        for_content = tutors.words(tutors.content(smaller(self.placed)), None, count)
        for_style = tutors.words(None, tutors.style(styles), count)
        words = (for_content, for_style, tutors.words(None, None, count))
        drawn = -predict(self.unet, self.noise, torch.full((count,), 999), words)
        return to_latents(smaller(paint(self.placed, styles)), self.parts), drawn

    def followed(self, styles: Tensor, others: Tensor) -> float:
        """How far the pictures follow a change of style: 0 not at all, 1 wholly.

        The slope of the drawn change on the painted one.
        """
        true, drawn = self.true_and_drawn(styles)
        other_true, other_drawn = self.true_and_drawn(others)
        change = other_true - true
        return round(
            ((other_drawn - drawn) * change).sum().item() / change.square().sum().item(), 3
        )


def patterns_followed(flat: FlatPictures, area: str) -> dict[str, float]:
    """How far pictures follow when the pattern of the "ground", or of the main part's "fill",
    changes: a gradient is turned by a right angle, all others get another frequency.
    """
    colour = {"ground": "ground", "fill": "main"}[area]
    result = {}
    for index, name in enumerate(PATTERNS):
        if name == "flat" or name in HELD_OUT_PATTERNS:
            continue
        one = flat.styles.clone()
        get(one, f"{colour}_2").copy_(-get(one, f"{colour}_1"))
        get(one, f"{area}_pattern").copy_(F.one_hot(torch.tensor(index), len(PATTERNS)))
        other = one.clone()
        if name == "gradient":
            get(other, f"{area}_angle").neg_()
        else:
            get(other, f"{area}_frequency").add_(0.5).remainder_(1)
        result[name] = flat.followed(one, other)
    return result


def effects_followed(flat: FlatPictures) -> dict[str, float]:
    """How far outlined pictures follow when they get a texture, a glow, a shadow or a wobble."""
    outlined = flat.styles.clone()
    get(outlined, "line_width").fill_(0.6)
    result = {}
    for name in (*TEXTURES[1:], "glow", "shadow", "wobble"):
        other = outlined.clone()
        if name in TEXTURES:
            kind = F.one_hot(torch.tensor(TEXTURES.index(name)), len(TEXTURES))
            get(other, "texture").copy_(kind)
            get(other, "texture_strength").fill_(0.8)
            get(other, "texture_size").fill_(0.5)
        else:
            get(other, name).fill_(1)
        result[name] = flat.followed(outlined, other)
    return result


PARTS = ((0, "main", "main_1"), (1, "second", "second"), (2, "accent", "accent"))


def explained(drawn: Tensor, part: Tensor, colours: Tensor) -> list[float]:
    """How much of the variance of a part's colours [n, 3] is found in pictures [n, 3, side, side].

    Along three axes: light, red against blue, green against magenta. 1 is all of it; where the part
    is larger than 1 % of the frame.
    """
    inside = (part > 0.95).float()
    area = inside.sum((1, 2))
    there = area > 0.01 * part[0].numel()
    means = (drawn * inside[:, None]).sum((2, 3))[there] / area[there, None]
    axes = torch.tensor([[1.0, 1, 1], [1, 0, -1], [-1, 2, -1]]).T
    truth, found = colours[there] @ axes, means @ axes
    share = 1 - (truth - found).square().mean(0) / truth.var(0, correction=0)
    return [round(number, 2) for number in share.tolist()]


def psnr_of_each(drawn: Tensor, pictures: Tensor) -> Tensor:
    """PSNR [n] in dB of pictures [n, 3, height, width] in -1..1."""
    return -10 * torch.log10((drawn - pictures).square().mean((1, 2, 3)) / 4)


def psnr(drawn: Tensor, pictures: Tensor) -> float:
    """The mean over the pictures, in dB."""
    return round(psnr_of_each(drawn, pictures).mean().item(), 2)


def save(path: Path, state: dict) -> None:
    """Write a state, whole or not at all."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def save_average(path: Path, average: dict[str, Tensor], pictures: int) -> None:
    """Write averaged weights in float16, and in the header how many pictures they have seen."""
    part = path.with_suffix(".part")
    halves = {name: tensor.half().contiguous() for name, tensor in average.items()}
    save_file(halves, part, {"pictures": str(pictures)})
    os.replace(part, path)


def load_average(path: Path) -> tuple[dict[str, Tensor], int]:
    """Averaged weights in float32, and how many pictures they have seen."""
    with safe_open(path, "pt") as opened:
        names = list(opened.keys())
        weights = {name: opened.get_tensor(name).float() for name in names}
        return weights, int(opened.metadata()["pictures"])


def main() -> None:
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--name", default="unet", help="file name of the state, in outputs/teaching_model")
    add("--pictures", type=int, default=400_000, help="training pictures seen in all")
    add("--batch-size", type=int, default=64, help="of all processes together")
    add("--natural", action="store_true", help="every block hears everything")
    add("--learning-rate", type=float, default=0.015, help="of Muon, for the matrices")
    add("--weight-decay", type=float, default=0.1, help="of the matrices")
    add("--start-from", type=Path, help="averaged weights to start from where there is no state")
    add("--minutes-between-states", type=float, default=10)
    add("--report-every", type=int, default=250, help="steps; 0 for no reports")
    args = parser.parse_args()

    rank, world, _ = start_processes()
    torch.set_num_threads(1)
    parts = process_0_first(components, rank, world)
    torch.manual_seed(0)
    readouts = {
        "content": Readout(4),  # parts
        "style": Readout(6, noise=0.5),  # two swatches
        "effects": Readout(effects(PLAIN[None]).shape[1], noise=0.5, detail=1),
    }
    unet, tutors = build_unet(), Tutors()
    parts_of_it = {"unet": unet, "tutors": tutors, "readout": nn.ModuleDict(readouts)}
    trained = nn.ModuleDict(parts_of_it).train()
    unet.set_attn_processor(AttnProcessor())  # on a CPU faster than the fused attention
    parameters = list(trained.parameters())
    optimizer = MatrixMuon(
        trained,
        args.learning_rate,
        adam_lr=1.5e-3,
        weight_decay=args.weight_decay,
        rank=rank,
        world=world,
    )
    schedule = noise_schedule()
    step, steps, seconds = 0, args.pictures // args.batch_size, 0.0
    average = {name: p.detach().clone() for name, p in trained.named_parameters()}
    state_file = WORK / f"{args.name}.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        trained.load_state_dict(state["trained"])
        # each process keeps the momentum of its own matrices
        if len(state["optimizer"]) == world:
            optimizer.load_state_dict(state["optimizer"][rank])
        average, step, seconds = state["average"], state["step"], state["seconds"]
    elif args.start_from:
        kept, seen = load_average(args.start_from)
        average |= kept  # which has no readout
        trained.load_state_dict(average)
        step = seen // args.batch_size
    paused_at = 0 if state_file.exists() else step

    shapes, unseen = Shapes.load(), Shapes.load(held_out=True)
    flat_pictures = FlatPictures(unet, tutors, unseen, parts)
    pool = Pool(shapes, lambda pictures: to_latents(pictures, parts), smaller)
    words_for = natural_words if args.natural else routed_words
    local = args.batch_size // world
    generator = torch.Generator().manual_seed(step * world + rank)
    pool.add(16 * local, shares(step / steps), generator)
    names, values = zip(*trained.named_parameters(), strict=True)
    start = saved = time.time()
    begun, losses = step, []
    while step < steps:
        progress = step / steps
        generator = torch.Generator().manual_seed(step * world + rank)
        optimizer.scale_learning_rate(learning_rate(progress, step - paused_at))
        batch = pool.batch(local, shares(progress), generator)
        noise = torch.randn(batch.latents.shape, generator=generator)
        t = timesteps(local, progress, generator)
        noisy = schedule.add_noise(batch.latents, noise, t)
        target = schedule.get_velocity(batch.latents, noise, t)
        with half_precision():
            content = tutors.content(batch.shapes).float()
            style = tutors.style(batch.styles, batch.looks).float()
        words = words_for(tutors, content, style, generator)
        loss = prediction_loss(predict(unet, noisy, t, words), target, batch)
        unsaid_parts = readouts["content"].unsaid(content, batch.shapes, generator)
        unsaid_looks = readouts["style"].unsaid(style, batch.looks, generator)
        everywhere = effects(batch.styles)[:, :, None, None].expand(-1, -1, 6, 6)
        unsaid_effects = readouts["effects"].unsaid(style, everywhere, generator)
        unsaid = unsaid_parts.mean() + unsaid_looks.mean() + unsaid_effects.mean()
        (loss + 0.1 * unsaid).backward()
        average_gradients(parameters, world)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        losses.append(loss.item())
        decay = min(0.998, step / (step + 10))  # over the last tenth of the training
        averaged, current = [average[n] for n in names], [v.detach() for v in values]
        torch._foreach_lerp_(averaged, current, 1 - decay)
        if rank == 0 and step % 50 == 0:
            speed = (step - begun) * args.batch_size / (time.time() - start)
            recent = sum(losses[-50:]) / len(losses[-50:])
            so_far = f"step {step}/{steps} pictures {step * args.batch_size}"
            print(f"{so_far} loss {recent:.4f} {speed:.0f} pictures/s", flush=True)
        reports = args.report_every and (step % args.report_every == 0 or step == steps)
        if rank == 0 and reports:
            weights = {n: p.detach().clone() for n, p in trained.named_parameters()}
            trained.load_state_dict(average)
            report = {
                "seen": one_step_quality(unet, tutors, shapes, False, parts),
                "never seen": one_step_quality(unet, tutors, unseen, True, parts),
                "ground": patterns_followed(flat_pictures, "ground"),
                "fill": patterns_followed(flat_pictures, "fill"),
                "effects": effects_followed(flat_pictures),
                "unsaid parts": [round(share, 3) for share in unsaid_parts.tolist()],
                "unsaid looks": [round(share, 3) for share in unsaid_looks.tolist()],
                "unsaid effects": [round(share, 3) for share in unsaid_effects.tolist()],
            }
            trained.load_state_dict(weights)
            print(json.dumps(report), flush=True)
        waited = time.time() - saved > 60 * args.minutes_between_states
        due = torch.tensor(float(rank == 0 and (waited or step == steps)))
        if world > 1:
            torch.distributed.broadcast(due, 0)
        if due:
            saved = time.time()
            states = gather(copy.deepcopy(optimizer.state_dict()), rank, world)
            if rank == 0:
                state = {
                    "trained": trained.state_dict(),
                    "optimizer": states,
                    "average": average,
                    "step": step,
                    "seconds": seconds + time.time() - start,
                }
                save(state_file, state)
                kept = {n: p for n, p in average.items() if not n.startswith("readout.")}
                save_average(WORK / f"{args.name}.safetensors", kept, step * args.batch_size)


if __name__ == "__main__":
    main()
