"""Train a ControlNet for the teaching model: it draws where and how large the outline says.

    python data/train_controlnet.py --minutes 105    # one CPU core; resumes where it was stopped

The outline is taken from the same shape in the same place, painted in another style, so that it
tells nothing about the style. The teaching model itself stays as it is, and hears the style in the
tutor's words, or nothing. The finished ControlNet is written to blora_nb/data/tiny_controlnet in
diffusers' own format, fp16.
"""

import json
import time
from argparse import ArgumentParser

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Tensor

from blora_nb.assets import DATA
from blora_nb.blocks import STYLE_BLOCK
from blora_nb.structure import outline
from processes import half_precision
from teach_words import load_trained
from train_unet import noise_schedule, save, size_words, timesteps, words_per_block
from world.latents import SIDE, components, smaller, to_latents
from world.painting import paint
from world.paths import WORK
from world.samples import Shapes, Shares, training_styles
from world.tutors import Tutors

BATCH = 32
HINT_CHANNELS = (16, 24, 32)  # of the layers that scale the outline down to the latents
TARGET = DATA / "tiny_controlnet"
STATE = WORK / "controlnet.pt"


def outlines(pictures: Tensor) -> Tensor:
    """What `structure.outline` draws of pictures [batch, 3, SIDE, SIDE]: the same size, 0..1."""
    drawn = []
    for picture in pictures:
        pixels = ((picture + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        edges = outline(Image.fromarray(pixels), SIDE).getchannel(0)
        drawn.append(torch.from_numpy(np.array(edges)))
    return torch.stack(drawn)[:, None].expand(-1, 3, -1, -1).float() / 255


def what_is_heard(
    tutors: Tutors, styles: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Words [batch, 64, 192] for the style block, and for all others.

    In seven of ten the style, in two nothing, in one the zeros of SDXL's empty prompt.
    """
    share = torch.rand(BATCH, generator=generator)[:, None, None]
    neutral = tutors.words(None, None, BATCH)
    words = torch.where(share < 0.7, tutors.words(None, tutors.style(styles), BATCH), neutral)
    zeros = torch.zeros_like(words)
    return torch.where(share > 0.9, zeros, words), torch.where(share > 0.9, zeros, neutral)


def export(controlnet: ControlNetModel) -> None:
    """Write it as fp16, without a path of the machine it was trained on."""
    torch.nn.Module.half(controlnet).save_pretrained(TARGET)
    config = json.loads((TARGET / "config.json").read_text())
    config.pop("_name_or_path", None)
    (TARGET / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=105, help="of training in all")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--name", default="unet", help="as in train_unet.py")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    unet, tutors = load_trained(args.name)
    parts, shapes, schedule = components(), Shapes.load(), noise_schedule()
    unet.requires_grad_(False).set_attn_processor(AttnProcessor())
    tutors.requires_grad_(False)
    hint_channels = {"conditioning_embedding_out_channels": HINT_CHANNELS}
    controlnet = ControlNetModel.from_unet(unet, **hint_channels).train()
    optimizer = torch.optim.AdamW(controlnet.parameters(), lr=args.learning_rate, weight_decay=1e-3)
    step, seconds, losses = 0, 0.0, []
    if STATE.exists():
        state = torch.load(STATE, weights_only=True)
        controlnet.load_state_dict(state["controlnet"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds = state["step"], state["seconds"]
    start, limit = time.time() - seconds, 60 * args.minutes
    conditions = size_words(BATCH)
    while (spent := time.time() - start) < limit:
        # warm-up, then constant, then down to zero over the last third
        factor = min(1, (step + 1) / 100, 3 * (1 - spent / limit))
        optimizer.param_groups[0]["lr"] = args.learning_rate * factor
        generator = torch.Generator().manual_seed(step)
        placed, _ = shapes.draw(BATCH, generator)
        styles, others = (training_styles(BATCH, Shares(plain=0.03), generator) for _ in range(2))
        hint = outlines(smaller(paint(placed, others)))
        x = to_latents(smaller(paint(placed, styles)), parts)
        noise = torch.randn(x.shape, generator=generator)
        t = timesteps(BATCH, 1.0, generator)
        noisy = schedule.add_noise(x, noise, t)
        for_style, for_others = what_is_heard(tutors, styles, generator)
        heard = {"encoder_hidden_states": for_others, "added_cond_kwargs": conditions}
        with words_per_block(unet, {STYLE_BLOCK: for_style}), half_precision():
            control = controlnet(noisy, t, controlnet_cond=hint, **heard)
            prediction = unet(
                noisy,
                t,
                down_block_additional_residuals=control.down_block_res_samples,
                mid_block_additional_residual=control.mid_block_res_sample,
                **heard,
            ).sample
        loss = F.mse_loss(prediction.float(), schedule.get_velocity(x, noise, t))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(controlnet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        losses.append(loss.item())
        if step % 50 == 0:
            recent = sum(losses[-100:]) / len(losses[-100:])
            minutes = f"{spent / 60:.1f} of {args.minutes} minutes"
            print(f"step {step} pictures {step * BATCH} loss {recent:.4f} {minutes}", flush=True)
        if step % 250 == 0:
            state = {
                "controlnet": controlnet.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
                "seconds": time.time() - start,
            }
            save(STATE, state)
    export(controlnet)


if __name__ == "__main__":
    main()
