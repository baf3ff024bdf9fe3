"""Train the teaching model's autoencoder (diffusers' `AutoencoderKL`, 8 pixels to a latent as in
SDXL).

    torchrun --nproc_per_node 2 data/train_autoencoder.py    # two CPU processes, one core each
    python data/train_autoencoder.py  # one process, on the GPU when there is one

Its latents are given (see patch_components.py): the encoder learns to compute them from a picture,
the decoder to draw a
clean picture from them, also when they are a little wrong. Resumes where it was stopped; writes
outputs/teaching_model/vae/.
"""

import json
import time
from argparse import ArgumentParser

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from matrix_muon import MatrixMuon
from patch_components import CHANNELS, NOISE, components, latents_of, to_pixels
from processes import average_gradients, start_processes, wait_for_all
from training_pictures import SIZE, WORK, load_pictures

WRONG = 0.15  # largest spread of the errors the decoder learns to draw over, in latent units


def build_autoencoder():
    vae = AutoencoderKL(
        sample_size=SIZE,
        latent_channels=CHANNELS,
        block_out_channels=(16, 24, 48, 64),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=1,
        norm_num_groups=2,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        force_upcast=True,
    )
    # the spread of the posterior is a constant
    torch.nn.init.zeros_(vae.quant_conv.weight[CHANNELS:])
    torch.nn.init.constant_(vae.quant_conv.bias[CHANNELS:], 2 * torch.tensor(NOISE).log().item())
    return vae


def trained_autoencoder():
    """The autoencoder as far as it has been trained."""
    folder = WORK / "vae"
    return AutoencoderKL.from_pretrained(folder) if folder.exists() else build_autoencoder()


def edges(x):
    return torch.cat(
        [(x[..., 1:, :] - x[..., :-1, :]).flatten(1), (x[..., :, 1:] - x[..., :, :-1]).flatten(1)],
        1,
    )


def varied_batch(pictures, size, crop, generator):
    """Crops, half of them with flipped axes or permuted colours, float [size, 3, crop, crop] in
    -1..1."""
    batch = []
    for row in torch.randint(len(pictures), (size,), generator=generator).tolist():
        top, left = (8 * torch.randint((SIZE - crop) // 8 + 1, (2,), generator=generator)).tolist()
        picture = to_pixels(pictures[row : row + 1, top : top + crop, left : left + crop])[0]
        if torch.rand(1, generator=generator) < 0.5:
            picture = picture[torch.randperm(3, generator=generator)]
            picture = picture.flip(
                [axis for axis in (1, 2) if torch.rand(1, generator=generator) < 0.5]
            )
        batch.append(picture)
    return torch.stack(batch)


def main():
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=16, help="of all processes together")
    parser.add_argument("--crop", type=int, default=48, help="pixels")
    args = parser.parse_args()
    rank, world, device = start_processes()
    if rank == 0:
        components()
    wait_for_all(world)
    pictures, parts = load_pictures(), components()
    folder, state_file = WORK / "vae", WORK / "vae_training.pt"
    torch.manual_seed(0)
    vae = build_autoencoder().to(device)
    optimizer = MatrixMuon(vae, muon_lr=0.03, adam_lr=3e-3)
    step = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    start = time.time()
    while step < args.steps:
        generator = torch.Generator().manual_seed(step * world + rank)
        optimizer.scale_learning_rate(
            min(1, (step + 1) / 50, (args.steps - step) / (0.6 * args.steps))
        )
        picture = varied_batch(pictures, args.batch_size // world, args.crop, generator).to(device)
        goal = latents_of(picture, parts)
        encoder_loss = F.mse_loss(vae.encode(picture).latent_dist.mean, goal)
        error = (
            WRONG
            * torch.rand(len(goal), 1, 1, 1, generator=generator)
            * torch.randn(goal.shape, generator=generator)
        )
        decoded = vae.decode(goal + error.to(device)).sample
        decoder_loss = (
            F.l1_loss(decoded, picture)
            + 0.5 * F.mse_loss(decoded, picture)
            + F.l1_loss(edges(decoded), edges(picture))
        )
        (encoder_loss + decoder_loss).backward()
        average_gradients(list(vae.parameters()), world)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if rank == 0 and step % 50 == 0:
            psnr = -10 * torch.log10(F.mse_loss(decoded, picture) / 4).item()
            print(
                f"step {step} encoder {encoder_loss.item():.4f} decoder "
                f"{decoder_loss.item():.4f} psnr {psnr:.1f} dB {time.time() - start:.0f} s",
                flush=True,
            )
        if rank == 0 and (step % 250 == 0 or step == args.steps):
            part = state_file.with_suffix(".part")
            torch.save(
                {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, part
            )
            part.rename(state_file)
            vae.save_pretrained(folder)
    if rank == 0:
        report(vae.eval(), pictures, parts, device)


@torch.no_grad()
def report(vae, pictures, parts, device):
    """How well whole pictures come back, and how close the encoder is to the given latents."""
    whole = to_pixels(pictures[:500]).to(device)
    mean = vae.encode(whole).latent_dist.mean
    psnr = -10 * torch.log10(
        (vae.decode(mean).sample.clamp(-1, 1) - whole).square().mean((1, 2, 3)) / 4
    )
    numbers = {
        "psnr_mean_db": round(psnr.mean().item(), 2),
        "psnr_worst_tenth_db": round(psnr.quantile(0.1).item(), 2),
        "encoder_error": round((mean - latents_of(whole, parts)).square().mean().sqrt().item(), 4),
    }
    (WORK / "vae_report.json").write_text(json.dumps(numbers, indent=1))
    print(numbers)


if __name__ == "__main__":
    main()
