"""Train a ControlNet for the teaching model: it draws where and how large the outline says.

    python data/train_tiny_controlnet.py --minutes 30  # one CPU core; resumes where it was stopped

The outline is taken from the same object in the same pose, drawn in another style, so that nothing
of a style can be learnt from
it; poses are freer than any the teaching model has seen. The teaching model itself stays as it is.
The finished ControlNet is
written to blora_nb/data/tiny_controlnet in diffusers' own format, fp16.
"""

import json
import random
import time
from argparse import ArgumentParser

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, DDPMScheduler
from tqdm import tqdm

from blora_nb.assets import DATA
from blora_nb.course.drawings import OBJECTS, STYLES, draw, free_pose, is_held_out
from blora_nb.pipeline import load_pipeline
from blora_nb.structure import outline
from patch_components import NOISE
from train_tiny_sdxl import TextEncoding, all_latents, timesteps
from training_pictures import SIZE, WORK

COUNT, BATCH = 8_000, 32
HINT_CHANNELS = (
    16,
    24,
    32,
    48,
)  # of the layers that bring the outline down to the size of the latents
TARGET = DATA / "tiny_controlnet"
STATE, PICTURES = WORK / "tiny_controlnet_training.pt", WORK / "tiny_controlnet_pictures.npz"


def load_pairs():
    """(pictures, outlines) uint8 [COUNT, SIZE, SIZE, 3] and [COUNT, SIZE, SIZE], captions; drawn
    on the first call."""
    random_ = random.Random(0)
    seen = [(o, s) for o in OBJECTS for s in STYLES if not is_held_out(o, s)]
    names = [(*random_.choice(seen), random_.choice(list(STYLES))) for _ in range(COUNT)]
    if not PICTURES.exists():
        pictures, outlines = (
            np.empty((COUNT, SIZE, SIZE, 3), np.uint8),
            np.empty((COUNT, SIZE, SIZE), np.uint8),
        )
        for seed, (object_name, style, other) in enumerate(
            tqdm(names, desc="drawing", mininterval=5)
        ):
            pictures[seed] = np.asarray(draw(object_name, style, seed, SIZE, free_pose(seed)))
            outlines[seed] = np.asarray(
                outline(draw(object_name, other, seed, SIZE, free_pose(seed)), SIZE)
            )[..., 0]
        PICTURES.parent.mkdir(parents=True, exist_ok=True)
        part = PICTURES.with_suffix(".part.npz")
        np.savez(part, pictures=pictures, outlines=outlines)
        part.rename(PICTURES)
    stored = np.load(PICTURES)
    return stored["pictures"], stored["outlines"], [name[:2] for name in names]


def caption(object_name, style_name, random_):
    kinds = {
        f"A {object_name} in {style_name} style": 4,
        f"A [x] in {style_name} style": 3,
        f"A {object_name}": 1,
        "A [x]": 1,
        "": 1,
    }
    return random_.choices(list(kinds), kinds.values())[0]


def export(controlnet):
    """Write it as fp16, without a path of the machine it was trained on."""
    torch.nn.Module.half(controlnet).save_pretrained(TARGET)
    config = json.loads((TARGET / "config.json").read_text())
    config.pop("_name_or_path", None)
    (TARGET / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main():
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30, help="of training in all")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    args = parser.parse_args()
    pictures, outlines, names = load_pairs()
    torch.manual_seed(0)
    pipe = load_pipeline("tiny", "cpu")
    latents = all_latents(pictures, pipe.vae)
    controlnet = ControlNetModel.from_unet(
        pipe.unet, conditioning_embedding_out_channels=HINT_CHANNELS
    ).train()
    optimizer = torch.optim.AdamW(controlnet.parameters(), lr=args.learning_rate, weight_decay=1e-3)
    schedule, encode = DDPMScheduler.from_config(pipe.scheduler.config), TextEncoding(pipe)
    time_ids = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]] * BATCH, dtype=torch.float32)
    step, seconds, losses = 0, 0.0, []
    if STATE.exists():
        state = torch.load(STATE, weights_only=True)
        controlnet.load_state_dict(state["controlnet"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds = state["step"], state["seconds"]
    start, limit = time.time() - seconds, 60 * args.minutes
    while (spent := time.time() - start) < limit:
        for group in (
            optimizer.param_groups
        ):  # warm-up, then constant, then down to zero over the last third
            group["lr"] = args.learning_rate * min(1, (step + 1) / 100, 3 * (1 - spent / limit))
        random_, generator = random.Random(step), torch.Generator().manual_seed(step)
        rows = torch.randint(COUNT, (BATCH,), generator=generator)
        x = latents[rows].float() + NOISE * torch.randn(latents[rows].shape, generator=generator)
        noise, t = torch.randn(x.shape, generator=generator), timesteps(BATCH, generator)
        noisy, hint = (
            schedule.add_noise(x, noise, t),
            torch.from_numpy(outlines[rows.numpy()])[:, None].float().expand(-1, 3, -1, -1) / 255,
        )
        with torch.no_grad():
            embeds, pooled = encode([caption(*names[row], random_) for row in rows.tolist()], "cpu")
        conditions = {"text_embeds": pooled, "time_ids": time_ids}
        down, mid = controlnet(
            noisy, t, embeds, hint, added_cond_kwargs=conditions, return_dict=False
        )
        prediction = pipe.unet(
            noisy,
            t,
            embeds,
            added_cond_kwargs=conditions,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample
        loss = F.mse_loss(prediction, schedule.get_velocity(x, noise, t))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(controlnet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        losses.append(loss.item())
        if step % 50 == 0:
            print(
                f"step {step} pictures {step * BATCH} loss {np.mean(losses[-100:]):.4f} "
                f"{spent / 60:.1f} of {args.minutes} minutes",
                flush=True,
            )
        if step % 250 == 0:
            part = STATE.with_suffix(".part")
            torch.save(
                {
                    "controlnet": controlnet.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step,
                    "seconds": time.time() - start,
                },
                part,
            )
            part.rename(STATE)
    export(controlnet)


if __name__ == "__main__":
    main()
