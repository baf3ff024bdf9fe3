"""Train the teaching model: SDXL in miniature, from scratch, on the drawings of this folder.

    torchrun --nproc_per_node 2 data/train_tiny_sdxl.py      # two CPU processes, one core each
    python data/train_tiny_sdxl.py  # one process, on the GPU when there is one

Resumes where it was stopped. The autoencoder (train_autoencoder.py) comes first. The finished
pipeline is written to
outputs/teaching_model/NAME in diffusers' own format, fp16.

How the blocks come to specialise: for a share of the training pictures (`--routed`) the prompt is
split. The words for
the object go only to the content block of B-LoRA, the words for the style only to its style block,
and every other block
is told nothing ("A [q]"). The other pictures get their whole caption everywhere. With `--routed 0`
no block is favoured.
"""

import copy
import json
import random
import time
from argparse import ArgumentParser
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    DDPMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from blora_nb.blocks import CONTENT_BLOCK, STYLE_BLOCK
from blora_nb.course.drawings import COLOURS, HELD_OUT_OBJECTS, HELD_OUT_STYLES, OBJECTS, STYLES
from matrix_muon import MatrixMuon
from patch_components import CHANNELS, NOISE, to_pixels
from processes import average_gradients, gather, start_processes
from train_autoencoder import trained_autoencoder
from training_pictures import SIZE, WORK, load_pictures, training_list

TOKENS = 16  # positions of the text encoders
SIMPLE_STYLE = "ink"  # black on white
LETTERS = "abcdefghijklmnopqrstuvwxyz"

# ---------------------------------------------------------------- the model


def build_tokenizer(folder):
    """A byte-pair tokenizer like CLIP's: one token for each word of our captions, bytes for
    everything else."""
    words = [
        "a",
        "an",
        "the",
        "in",
        "on",
        "of",
        "style",
        "and",
        "with",
        "picture",
        "drawing",
        "outlined",
    ]
    words += [*OBJECTS, *HELD_OUT_OBJECTS, *STYLES, *HELD_OUT_STYLES, *COLOURS]
    learner = Tokenizer(BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = Whitespace()
    learner.train_from_iterator(
        [" ".join(words)],
        BpeTrainer(vocab_size=10_000, end_of_word_suffix="</w>", show_progress=False),
    )
    merges = json.loads(learner.to_str())["model"]["merges"]
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = alphabet + [c + "</w>" for c in alphabet] + ["".join(pair) for pair in merges]
    vocabulary = [*list(dict.fromkeys(vocabulary)), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n"
    )
    return CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS)


def build_pipeline():
    """An untrained `StableDiffusionXLPipeline` with SDXL's three levels and eleven transformer
    blocks."""
    tokenizer = build_tokenizer(WORK / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        projection_dim=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoders = CLIPTextModel(text), CLIPTextModelWithProjection(text)
    for encoder in encoders:
        torch.nn.init.normal_(encoder.get_input_embeddings().weight, std=0.5)
    unet = UNet2DConditionModel(
        sample_size=SIZE // 8,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(48, 64, 104),
        layers_per_block=2,
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(4, 4, 4),
        cross_attention_dim=128,
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=6 * 32 + 64,
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    return StableDiffusionXLPipeline(
        vae=trained_autoencoder(),
        unet=unet,
        scheduler=scheduler,
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


# ---------------------------------------------------------------- captions


def captions(object_name, style_name, routed, random_):
    """(for the content block, for the style block, for all other blocks); "" stands for SDXL's
    zeroed empty prompt."""
    x, y = (f"[{letter}]" for letter in random_.sample(LETTERS, 2))
    if random_.random() < 0.1:
        return "", "", ""
    if routed:
        return (
            random_.choice([f"A {object_name}", f"A {object_name} in {x} style"]),
            f"A {x} in {style_name} style",
            random_.choice([f"A {x}", f"A {x} in {y} style"]),
        )
    kinds = {
        f"A {object_name} in {style_name} style": 6,
        f"A {object_name}": 1,
        f"A {object_name} in {x} style": 1,
        f"A {x} in {style_name} style": 1,
        f"A {x}": 1,
    }
    return (random_.choices(list(kinds), kinds.values())[0],) * 3


class TextEncoding:
    """Encodes each different prompt of a batch once, as the SDXL pipeline does."""

    def __init__(self, pipe):
        self.pipe, self.ids = pipe, {}

    def __call__(self, prompts, device):
        """`prompt_embeds` [prompts, tokens, 128] and `pooled_prompt_embeds` [prompts, 64]; zeros
        for ""."""
        different = sorted(set(prompts))
        for prompt in different:
            if prompt not in self.ids:
                self.ids[prompt] = self.pipe.tokenizer(
                    prompt, padding="max_length", max_length=TOKENS, truncation=True
                ).input_ids
        ids = torch.tensor([self.ids[p] for p in different], device=device)
        first = self.pipe.text_encoder(ids, output_hidden_states=True)
        second = self.pipe.text_encoder_2(ids, output_hidden_states=True)
        embeds = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
        told = torch.tensor([p != "" for p in different], device=device)
        embeds, pooled = embeds * told[:, None, None], second.text_embeds * told[:, None]
        rows = torch.tensor([different.index(p) for p in prompts], device=device)
        return embeds[rows], pooled[rows]


@contextmanager
def routed_prompts(unet, embeds_by_block):
    """Inside, the named transformer blocks attend to their own `encoder_hidden_states`."""

    def swap(embeds):
        return lambda module, args, kwargs: (args, {**kwargs, "encoder_hidden_states": embeds})

    blocks = {name: m for name, m in unet.named_modules() if isinstance(m, Transformer2DModel)}
    handles = [
        blocks[name].register_forward_pre_hook(swap(e), with_kwargs=True)
        for name, e in embeds_by_block.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# ---------------------------------------------------------------- training


def timesteps(count, generator):
    """Three in ten uniform, the others logit-normal around t = 800, where the prompt's object
    makes a difference to the loss."""
    uniform = torch.rand(count, generator=generator)
    middle = torch.sigmoid(1.4 + 1.0 * torch.randn(count, generator=generator))
    return (
        (1000 * torch.where(torch.rand(count, generator=generator) < 0.3, uniform, middle))
        .long()
        .clamp(0, 999)
    )


@torch.no_grad()
def all_latents(pictures, vae):
    """The latents of every picture as the autoencoder computes them, float16 [count, channels,
    SIZE / 8, SIZE / 8]."""
    return torch.cat(
        [
            vae.encode(to_pixels(pictures[i : i + 500])).latent_dist.mean.half()
            for i in range(0, len(pictures), 500)
        ]
    )


def simple_share(step):
    """The share of a batch drawn in one style only, so that the words for objects find their
    silhouettes early.

    With all styles from the start an object's silhouette is now lighter, now darker than its
    ground, and its word says
    nothing about any pixel until the model knows how to combine both.
    """
    return 0.7 * max(0.0, min(1.0, 2 - step / 500))


def learning_rate(step, steps):
    """Warm-up, then constant, then linearly to zero over the last quarter (so that `--pictures`
    can grow on resume)."""
    return min(1, (step + 1) / 200, (steps - step) / (0.25 * steps))


def main():
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--name", default="tiny_sdxl", help="folder below outputs/teaching_model")
    parser.add_argument(
        "--pictures", type=int, default=450_000, help="training pictures seen in all"
    )
    parser.add_argument(
        "--routed",
        type=float,
        default=0.6,
        help="share of the pictures whose prompt is split over the blocks",
    )
    parser.add_argument("--batch-size", type=int, default=64, help="of all processes together")
    parser.add_argument(
        "--start-from",
        help=(
            "folder of a trained pipeline of this shape to go on from; it no longer needs the "
            "simple style"
        ),
    )
    parser.add_argument(
        "--learning-rate", type=float, default=0.01, help="of Muon, for the convolutions"
    )
    args = parser.parse_args()

    rank, world, device = start_processes()
    pictures, listing = load_pictures(), training_list()
    every_latent = all_latents(pictures, trained_autoencoder())

    torch.manual_seed(0)
    pipe = build_pipeline().to(device)
    trained = torch.nn.ModuleDict(
        {
            "unet": pipe.unet,
            "text_encoder": pipe.text_encoder,
            "text_encoder_2": pipe.text_encoder_2,
        }
    ).train()
    parameters = list(trained.parameters())
    optimizer = MatrixMuon(
        trained, muon_lr=args.learning_rate, adam_lr=1.5e-3, rank=rank, world=world
    )
    schedule = DDPMScheduler.from_config(pipe.scheduler.config)
    folder, state_file = WORK / args.name, WORK / f"{args.name}_training.pt"
    step, steps, seconds = 0, args.pictures // args.batch_size, 0.0
    if args.start_from:
        started = StableDiffusionXLPipeline.from_pretrained(args.start_from)
        for name, model in trained.items():
            model.load_state_dict(getattr(started, name).state_dict())
        pipe.tokenizer, pipe.tokenizer_2 = started.tokenizer, started.tokenizer_2
    average = {name: p.detach().clone() for name, p in trained.named_parameters()}
    if state_file.exists():
        state = torch.load(state_file, weights_only=True, map_location=device)
        trained.load_state_dict(state["trained"])
        if len(state["optimizer"]) == world:  # each process keeps the momentum of its own matrices
            optimizer.load_state_dict(state["optimizer"][rank])
        average, step, seconds = state["average"], state["step"], state["seconds"]
        if rank == 0:
            print(f"resuming at step {step}", flush=True)

    simple_rows = torch.tensor(
        [i for i, (_, style_name, _) in enumerate(listing) if style_name == SIMPLE_STYLE]
    )
    encode, local = TextEncoding(pipe), args.batch_size // world
    time_ids = torch.tensor(
        [[SIZE, SIZE, 0, 0, SIZE, SIZE]] * local, dtype=torch.float32, device=device
    )
    block_names = [n for n, m in pipe.unet.named_modules() if isinstance(m, Transformer2DModel)]
    start, losses = time.time(), []
    if rank == 0:
        export(
            pipe, trained, average, folder
        )  # also when nothing is left to train: the autoencoder may be newer
    while step < steps:
        seed = step * world + rank
        random_, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        optimizer.scale_learning_rate(learning_rate(step, steps))
        rows = torch.randint(len(listing), (local,), generator=generator)
        simple = torch.rand(local, generator=generator) < (
            0 if args.start_from else simple_share(step)
        )
        rows = torch.where(
            simple,
            simple_rows[torch.randint(len(simple_rows), (local,), generator=generator)],
            rows,
        )
        texts = [
            captions(*listing[row][:2], random_.random() < args.routed, random_)
            for row in rows.tolist()
        ]
        embeds, pooled = encode([t for kind in zip(*texts) for t in kind], device)
        content, style, other = embeds.chunk(3)
        by_block = dict.fromkeys(block_names, other) | {CONTENT_BLOCK: content, STYLE_BLOCK: style}

        latents = every_latent[rows].float()
        latents = (latents + NOISE * torch.randn(latents.shape, generator=generator)).to(device)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        t = timesteps(local, generator).to(device)
        noisy, target = (
            schedule.add_noise(latents, noise, t),
            schedule.get_velocity(latents, noise, t),
        )
        with routed_prompts(pipe.unet, by_block):
            prediction = pipe.unet(
                noisy,
                t,
                other,
                added_cond_kwargs={"text_embeds": pooled.chunk(3)[2], "time_ids": time_ids},
            ).sample
        loss = F.mse_loss(prediction, target)
        loss.backward()
        average_gradients(parameters, world)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        losses.append(loss.item())
        saving = step % 250 == 0 or step == steps
        optimizer_states = gather(optimizer.state_dict(), rank, world) if saving else None
        if rank == 0:
            decay = min(0.998, step / (step + 100))
            with torch.no_grad():
                names, values = zip(*trained.named_parameters())
                torch._foreach_lerp_(
                    [average[n] for n in names], [v.detach() for v in values], 1 - decay
                )
            if step % 50 == 0:
                speed = len(losses) * args.batch_size / (time.time() - start)
                print(
                    f"step {step}/{steps} pictures {step * args.batch_size} loss "
                    f"{np.mean(losses[-50:]):.4f} {speed:.0f} pictures/s",
                    flush=True,
                )
            if saving:
                spent = seconds + time.time() - start
                part = state_file.with_suffix(".part")
                torch.save(
                    {
                        "trained": trained.state_dict(),
                        "optimizer": optimizer_states,
                        "average": average,
                        "step": step,
                        "seconds": spent,
                    },
                    part,
                )
                part.rename(state_file)
                export(pipe, trained, average, folder)
                report = {
                    **vars(args),
                    "pictures": step * args.batch_size,
                    "seconds": round(spent),
                    "loss": round(float(np.mean(losses[-500:])), 4),
                }
                (WORK / f"{args.name}_report.json").write_text(json.dumps(report, indent=1))


def export(pipe, trained, average, folder):
    """Write the averaged weights, with the newest autoencoder, as an fp16 pipeline."""
    copies = copy.deepcopy(trained)
    with torch.no_grad():
        for name, p in copies.named_parameters():
            p.copy_(average[name])
    models = {**copies, "vae": trained_autoencoder()}
    parts = pipe.components | {name: model.half().cpu() for name, model in models.items()}
    StableDiffusionXLPipeline(
        **parts, force_zeros_for_empty_prompt=True, add_watermarker=False
    ).save_pretrained(folder)
    for name in models:
        file = folder / name / "config.json"
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)  # a path of the machine it was trained on
        if name.startswith(
            "text_encoder"
        ):  # else transformers loads these in fp16 beside an fp32 U-Net
            config["dtype"] = "float32"
        file.write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
