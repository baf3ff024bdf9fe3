"""Train the teaching model's autoencoder: an `AutoencoderKL`, 4 pixels to a latent.

    torchrun --nproc_per_node 2 data/train_vae.py      # one core a process

Its latents are given (world/latents.py): the encoder learns to compute them from a picture, the
decoder to draw a crisp picture from them, also when they are a little wrong. Resumes where it was
stopped; writes outputs/teaching_model/vae/.
"""

import json
import time
from argparse import ArgumentParser

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from matrix_muon import MatrixMuon
from processes import average_gradients, half_precision, process_0_first, start_processes
from train_unet import psnr, psnr_of_each, save
from world.latents import CHANNELS, PATCH, SIDE, components, smaller, to_latents
from world.painting import paint
from world.paths import WORK
from world.samples import Shapes, Shares, training_styles
from world.styles import random_styles

NOISE = 0.03  # standard deviation of the posterior, in latent units
# largest standard deviation of the errors that the decoder learns to correct, in latent units
WRONG = 0.15


def build_vae() -> AutoencoderKL:
    """An untrained autoencoder with the latents of world/latents.py."""
    vae = AutoencoderKL(
        sample_size=SIDE,
        latent_channels=CHANNELS,
        block_out_channels=(24, 40, 64),
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        layers_per_block=1,
        norm_num_groups=2,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        force_upcast=True,
    )
    # the standard deviation of the posterior is a constant
    torch.nn.init.zeros_(vae.quant_conv.weight[CHANNELS:])
    torch.nn.init.constant_(vae.quant_conv.bias[CHANNELS:], 2 * torch.tensor(NOISE).log().item())
    return vae


def edges(x: Tensor) -> Tensor:
    """Differences between neighbouring pixels [batch, …]."""
    across, down = x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]
    return torch.cat([across.flatten(1), down.flatten(1)], 1)


class Pictures:
    """A few hundred painted pictures to crop from; an eighth of them is replaced every 8 steps."""

    def __init__(self, generator: torch.Generator, count: int = 240) -> None:
        self.shapes, self.generator, self.fresh = Shapes.load(), generator, count // 8
        self.pictures = torch.cat([self.painted() for _ in range(8)])

    def painted(self) -> Tensor:
        """New pictures [fresh, 3, SIDE, SIDE]."""
        placed, _ = self.shapes.draw(self.fresh, self.generator)
        return smaller(
            paint(placed, training_styles(self.fresh, Shares(plain=0.02), self.generator))
        )

    def crops(self, count: int, crop: int, step: int) -> Tensor:
        """Random crops [count, 3, crop, crop] whose corners lie on the grid of latents."""
        if step % 8 == 0:
            self.pictures = torch.cat([self.pictures[self.fresh :], self.painted()])
        rows = torch.randint(len(self.pictures), (count,), generator=self.generator).tolist()
        places = (SIDE - crop) // PATCH + 1
        corners = PATCH * torch.randint(places, (count, 2), generator=self.generator)
        chosen = [
            self.pictures[r, :, y : y + crop, x : x + crop]
            for r, (y, x) in zip(rows, corners.tolist(), strict=True)
        ]
        return torch.stack(chosen)


def main() -> None:
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch-size", type=int, default=24, help="of all processes together")
    parser.add_argument("--crop", type=int, default=48, help="pixels")
    args = parser.parse_args()
    rank, world, _ = start_processes()
    torch.set_num_threads(1)
    parts = process_0_first(components, rank, world)
    folder, state_file = WORK / "vae", WORK / "vae.pt"
    torch.manual_seed(0)
    vae = build_vae()
    optimizer = MatrixMuon(vae, muon_lr=0.02, adam_lr=3e-3, weight_decay=0.1)
    step = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    pictures = Pictures(torch.Generator().manual_seed(1000 + step * world + rank))
    start, begun = time.time(), step
    while step < args.steps:
        generator = torch.Generator().manual_seed(step * world + rank)
        left = (args.steps - step) / (0.6 * args.steps)
        optimizer.scale_learning_rate(min(1, (step + 1) / 50, left))
        picture = pictures.crops(args.batch_size // world, args.crop, step)
        goal = to_latents(picture, parts)
        size = WRONG * torch.rand(len(goal), 1, 1, 1, generator=generator)
        error = size * torch.randn(goal.shape, generator=generator)
        with half_precision():
            mean = vae.encode(picture).latent_dist.mean.float()
            decoded = vae.decode(goal + error).sample.float()
        encoder_loss = F.mse_loss(mean, goal)
        decoder_loss = F.l1_loss(decoded, picture) + 0.5 * F.mse_loss(decoded, picture)
        decoder_loss = decoder_loss + F.l1_loss(edges(decoded), edges(picture))
        (encoder_loss + decoder_loss).backward()
        average_gradients(list(vae.parameters()), world)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if rank == 0 and step % 50 == 0:
            speed = (step - begun) * args.batch_size / (time.time() - start)
            quality = psnr(decoded.detach(), picture)
            losses = f"encoder {encoder_loss.item():.4f} decoder {decoder_loss.item():.4f}"
            print(f"step {step} {losses} {quality} dB {speed:.0f} crops/s", flush=True)
        if rank == 0 and (step % 250 == 0 or step == args.steps):
            state = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            save(state_file, state)
            vae.save_pretrained(folder)
    if rank == 0:
        report(vae.eval(), parts)


@torch.no_grad()
def report(vae: AutoencoderKL, parts: dict[str, Tensor]) -> None:
    """Measure the autoencoder on held-out shapes in held-out styles, into vae_report.json."""
    generator = torch.Generator().manual_seed(7)
    placed, _ = Shapes.load(held_out=True).draw(200, generator)
    pictures = smaller(paint(placed, random_styles(200, generator, held_out=True)))
    means = torch.cat([vae.encode(p).latent_dist.mean for p in pictures.split(50)])
    drawn = torch.cat([vae.decode(m).sample.clamp(-1, 1) for m in means.split(50)])
    each = psnr_of_each(drawn, pictures)
    encoder_error = (means - to_latents(pictures, parts)).square().mean().sqrt()
    numbers = {
        "psnr_mean_db": round(each.mean().item(), 2),
        "psnr_worst_tenth_db": round(each.quantile(0.1).item(), 2),
        "encoder_error": round(encoder_error.item(), 4),
    }
    (WORK / "vae_report.json").write_text(json.dumps(numbers, indent=1) + "\n")
    print(numbers)


if __name__ == "__main__":
    main()
