"""Teach the two text encoders to say in words what the tutors say, without the U-Net; then put the pipeline together.

    python data/teach_words.py      # after train_unet.py and train_vae.py; a few minutes on one core

The first encoder learns the content tutor's tokens of a noun's drawing, the second the style tutor's tokens of a style; for
words that say nothing of theirs ("A [v]") both learn the neutral words. Writes outputs/teaching_model/tiny_sdxl/.
"""

import json
import random
import time
from argparse import ArgumentParser

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from train_unet import POOLED, build_unet
from world.captions import Noun, canonical_shapes, caption, nouns, vocabulary
from world.paths import WORK
from world.samples import Shapes
from world.tutors import HALF, POSITIONS, SPEAKING, Tutors


def build_tokenizer(words: list[str]) -> CLIPTokenizer:
    """A byte-pair tokenizer like CLIP's: one token for each word that the model knows, bytes for everything else."""
    learner = Tokenizer(BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = Whitespace()
    learner.train_from_iterator(
        words, BpeTrainer(vocab_size=20_000, end_of_word_suffix="</w>", show_progress=False)
    )
    merges = json.loads(learner.to_str())["model"]["merges"]
    alphabet = sorted(ByteLevel.alphabet())
    tokens = alphabet + [c + "</w>" for c in alphabet] + ["".join(pair) for pair in merges]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    folder = WORK / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n"
    )
    return CLIPTokenizer.from_pretrained(folder, model_max_length=POSITIONS)


def build_encoders(tokenizer: CLIPTokenizer) -> nn.ModuleDict:
    """SDXL's two text encoders in miniature; as there, the layer before the last one speaks."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=HALF,
        intermediate_size=6 * HALF,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        projection_dim=POOLED,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoders = nn.ModuleDict(
        {
            "text_encoder": CLIPTextModel(config),
            "text_encoder_2": CLIPTextModelWithProjection(config),
        }
    )
    for encoder in encoders.values():
        nn.init.normal_(encoder.get_input_embeddings().weight, std=0.5)
    nn.init.zeros_(
        encoders["text_encoder_2"].text_projection.weight
    )  # the pooled prompt says nothing
    return encoders


class Lesson:
    """Captions, and what the tutors would say for each: [batch, 32, 96] for content and for style."""

    def __init__(
        self, tutors: Tutors, shapes: Shapes, things: list[Noun], tokenizer: CLIPTokenizer
    ) -> None:
        self.tutors, self.things, self.tokenizer = tutors, things, tokenizer
        with torch.no_grad():
            self.content = torch.cat(
                [tutors.content(part) for part in canonical_shapes(shapes, things).split(100)]
            )
        self.neutral = tutors.neutral.detach()

    @torch.no_grad()
    def batch(self, count: int, random_: random.Random) -> tuple[Tensor, Tensor, Tensor]:
        captions = [caption(self.things, random_) for _ in range(count)]
        ids = self.tokenizer(
            [c[0] for c in captions], padding="max_length", max_length=POSITIONS, truncation=True
        ).input_ids
        content, style = (
            self.neutral[:, half].expand(count, -1, -1).clone()
            for half in (slice(HALF), slice(HALF, None))
        )
        with_noun = [i for i, c in enumerate(captions) if c[1] is not None]
        content[with_noun, -SPEAKING:] = self.content[[captions[i][1] for i in with_noun]]
        with_style = [i for i, c in enumerate(captions) if c[2] is not None]
        style[with_style, -SPEAKING:] = self.tutors.style(
            torch.stack([captions[i][2] for i in with_style])
        )
        return torch.tensor(ids), content, style


def said(encoder: nn.Module, ids: Tensor) -> Tensor:
    return encoder(ids, output_hidden_states=True).hidden_states[-2]


def teach(encoders: nn.ModuleDict, lesson: Lesson, steps: int, batch: int) -> None:
    optimizer = torch.optim.AdamW(
        encoders.parameters(), lr=3e-3, betas=(0.9, 0.99), weight_decay=0.0
    )
    start = time.time()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(
            1, (step + 1) / 100, (steps - step) / (0.5 * steps)
        )
        ids, content, style = lesson.batch(batch, random.Random(step))
        content_loss = F.mse_loss(said(encoders["text_encoder"], ids), content)
        style_loss = F.mse_loss(said(encoders["text_encoder_2"], ids), style)
        (content_loss + style_loss).backward()
        nn.utils.clip_grad_norm_(encoders.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 99:
            print(
                f"step {step + 1}/{steps} content {content_loss.item():.4f} style {style_loss.item():.4f} {time.time() - start:.0f} s",
                flush=True,
            )


def assemble(encoders: nn.ModuleDict, tokenizer: CLIPTokenizer, unet: nn.Module) -> None:
    """Write the pipeline in diffusers' own format, fp16."""
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    vae = AutoencoderKL.from_pretrained(WORK / "vae")
    parts = {
        "vae": vae,
        "unet": unet,
        "text_encoder": encoders["text_encoder"],
        "text_encoder_2": encoders["text_encoder_2"],
    }
    halves = {name: model.half() for name, model in parts.items()}
    folder = WORK / "tiny_sdxl"
    StableDiffusionXLPipeline(
        **halves,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        scheduler=scheduler,
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    ).save_pretrained(folder)
    for name in parts:
        file = folder / name / "config.json"
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)  # a path of the machine it was trained on
        if name.startswith(
            "text_encoder"
        ):  # else transformers loads these in fp16 beside an fp32 U-Net
            config["dtype"] = "float32"
        file.write_text(json.dumps(config, indent=2) + "\n")


def load_trained(name: str) -> tuple[nn.Module, Tutors]:
    """The averaged U-Net and its tutors."""
    trained = nn.ModuleDict({"unet": build_unet(), "tutors": Tutors()})
    trained.load_state_dict(
        {key: tensor.float() for key, tensor in load_file(WORK / f"{name}.safetensors").items()}
    )
    return trained["unet"], trained["tutors"]


def main() -> None:
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--name", default="unet", help="as in train_unet.py")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    unet, tutors = load_trained(args.name)
    shapes = Shapes.load()
    things = nouns(shapes)
    tokenizer = build_tokenizer(vocabulary(things))
    encoders = build_encoders(tokenizer)
    print(
        f"{len(things)} nouns, {len(tokenizer)} tokens, {sum(p.numel() for p in encoders.parameters()):,} numbers",
        flush=True,
    )
    teach(encoders, Lesson(tutors, shapes, things, tokenizer), args.steps, args.batch_size)
    assemble(encoders, tokenizer, unet)


if __name__ == "__main__":
    main()
