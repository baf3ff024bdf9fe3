"""Teach the text encoders to say in words what the tutors say, and put the pipeline together.

    python data/teach_words.py      # after train_unet.py and train_vae.py; minutes on one core

The first encoder learns the content tutor's tokens of a noun's drawing, the second the style
tutor's tokens of a style; without a noun or a style ("A [v]") they learn the neutral words.
The U-Net takes no part in it. Writes outputs/teaching_model/tiny_sdxl/.
"""

import json
import random
import time
from argparse import ArgumentParser
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from blora_nb.assets import TINY_SDXL
from blora_nb.course.drawings import COLOURS
from train_unet import POOLED, build_unet, load_average
from world.captions import (
    FILL_WORDS,
    TEXTURE_WORDS,
    Noun,
    canonical_shapes,
    caption,
    nouns,
    vocabulary,
)
from world.latents import smaller, use_kept_components
from world.paths import KEPT, WORK
from world.samples import Shapes
from world.styles import NAMED_STYLES
from world.tutors import HALF, POSITIONS, TOKENS, Tutors

UNET = TINY_SDXL / "unet" / "diffusion_pytorch_model.safetensors"


def build_tokenizer(words: list[str]) -> CLIPTokenizer:
    """A byte-pair tokenizer like CLIP's: a token for each word of `words`, bytes for all others."""
    learner = Tokenizer(BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = Whitespace()
    trainer = BpeTrainer(vocab_size=20_000, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator(words, trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    alphabet = sorted(ByteLevel.alphabet())
    tokens = alphabet + [c + "</w>" for c in alphabet] + ["".join(pair) for pair in merges]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    folder = WORK / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=POSITIONS)


def build_encoders(tokenizer: CLIPTokenizer) -> nn.ModuleDict:
    """SDXL's two text encoders in miniature; as there, the layer before the last one speaks."""

    def config(layers: int, intermediate_size: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=HALF,
            intermediate_size=intermediate_size,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=POSITIONS,
            projection_dim=POOLED,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )

    # the first has to know by heart what hundreds of things look like
    first = CLIPTextModel(config(layers=4, intermediate_size=12 * HALF))
    second = CLIPTextModelWithProjection(config(layers=3, intermediate_size=6 * HALF))
    for encoder in (first, second):
        nn.init.normal_(encoder.get_input_embeddings().weight, std=0.5)
    nn.init.zeros_(second.text_projection.weight)  # the pooled prompt says nothing
    return nn.ModuleDict({"text_encoder": first, "text_encoder_2": second})


class Lesson:
    """Captions, and what the tutors would say for them: [batch, 64, 96] for each half.

    Args:
        things: what the captions may name.
        count: of captions; each step takes some of them. What the tutor says of a style is computed
            once, for it has to paint it.
    """

    def __init__(
        self,
        tutors: Tutors,
        shapes: Shapes,
        things: list[Noun],
        tokenizer: CLIPTokenizer,
        count: int = 20_000,
    ) -> None:
        random_ = random.Random(0)
        captions = [caption(things, random_) for _ in range(count)]
        texts = [text for text, *_ in captions]
        longest = {"padding": "max_length", "max_length": POSITIONS, "truncation": True}
        self.ids = torch.tensor(tokenizer(texts, **longest).input_ids)
        self.nouns = [noun for _, noun, _ in captions]
        meanings = [style for *_, style in captions if style is not None]
        styles, rows = torch.stack(meanings).unique(dim=0, return_inverse=True)
        its_row = iter(rows.tolist())
        self.styles = [None if style is None else next(its_row) for *_, style in captions]
        drawn = smaller(canonical_shapes(shapes, things)).clamp(0, 1)
        with torch.no_grad():
            self.content = torch.cat([tutors.content(part) for part in drawn.split(100)])
        self.tutors, self.meanings = tutors, styles
        self.style_tokens: dict[int, Tensor] = {}
        self.neutral = tutors.neutral.detach()

    def batch(self, count: int, random_: random.Random) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids [count, 64] of random captions, and the tokens for content and for style."""
        chosen = random_.sample(range(len(self.ids)), count)
        content = self.neutral[:, :HALF].repeat(count, 1, 1)
        style = self.neutral[:, HALF:].repeat(count, 1, 1)
        new: set[Any] = {self.styles[index] for index in chosen} - self.style_tokens.keys() - {None}
        if new:
            with torch.no_grad():
                self.style_tokens |= zip(new, self.tutors.style(self.meanings[list(new)]))
        for row, index in enumerate(chosen):
            noun, its_style = self.nouns[index], self.styles[index]
            if noun is not None:
                content[row, -TOKENS:] = self.content[noun]
            if its_style is not None:
                style[row, -TOKENS:] = self.style_tokens[its_style]
        return self.ids[chosen], content, style


def said(encoder: nn.Module, ids: Tensor) -> Tensor:
    """What an encoder gives to the U-Net: the last layer but one, [batch, 64, 96]."""
    return encoder(ids, output_hidden_states=True).hidden_states[-2]


def teach(encoders: nn.ModuleDict, lesson: Lesson, steps: int, batch: int) -> None:
    """Train both encoders at once."""
    parameters = list(encoders.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, betas=(0.9, 0.99), weight_decay=0.0)
    start = time.time()
    for step in range(steps):
        factor = min(1, (step + 1) / 100, (steps - step) / (0.5 * steps))
        optimizer.param_groups[0]["lr"] = 3e-3 * factor
        ids, content, style = lesson.batch(batch, random.Random(step))
        content_loss = F.mse_loss(said(encoders["text_encoder"], ids), content)
        style_loss = F.mse_loss(said(encoders["text_encoder_2"], ids), style)
        (content_loss + style_loss).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 99:
            losses = f"content {content_loss.item():.4f} style {style_loss.item():.4f}"
            seconds = time.time() - start
            print(f"step {step + 1}/{steps} {losses} {seconds:.0f} s", flush=True)


def known_words(things: list[Noun]) -> dict[str, list[str]]:
    """What the text encoders understand, by kind."""
    return {
        # of "2nd place medal" the tokenizer makes other words
        "objects": [noun.name for noun in things if not any(map(str.isdigit, noun.name))],
        "styles": list(NAMED_STYLES),
        "colours": list(COLOURS),
        "others": ["outlined", *FILL_WORDS, *TEXTURE_WORDS],
    }


def assemble(
    encoders: nn.ModuleDict, tokenizer: CLIPTokenizer, unet: nn.Module, things: list[Noun]
) -> None:
    """Write the pipeline in diffusers' own format, fp16, and the words that it knows."""
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    vae = WORK / "vae" if (WORK / "vae").exists() else TINY_SDXL / "vae"
    models = {"vae": AutoencoderKL.from_pretrained(vae), "unet": unet, **encoders}
    folder = WORK / "tiny_sdxl"
    StableDiffusionXLPipeline(
        **{name: model.half() for name, model in models.items()},
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        scheduler=scheduler,
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    ).save_pretrained(folder)
    for name in models:
        file = folder / name / "config.json"
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)  # a path of the machine it was trained on
        if name in encoders:
            config["dtype"] = "float32"  # else transformers loads it in fp16 beside an fp32 U-Net
        file.write_text(json.dumps(config, indent=2) + "\n")
    words = json.dumps(known_words(things), indent=1, ensure_ascii=False)
    (folder / "words.json").write_text(words + "\n", encoding="utf-8")


def load_trained(name: str) -> tuple[UNet2DConditionModel, Tutors]:
    """The averaged U-Net and its tutors: those trained here, else those in the repository.

    Raises:
        FileNotFoundError: another U-Net is asked for, and has not been trained here.
        ValueError: the components here are not those that the kept one was trained on.
    """
    unet, tutors = build_unet(), Tutors()
    trained = nn.ModuleDict({"unet": unet, "tutors": tutors})
    file = WORK / f"{name}.safetensors"
    if file.exists():
        trained.load_state_dict(load_average(file)[0])
    elif name != "unet":
        raise FileNotFoundError(f"{file} is not there: run train_unet.py --name {name} first.")
    else:
        use_kept_components()
        unet.load_state_dict(load_file(UNET))
        tutors.load_state_dict(load_file(KEPT / "tutors.safetensors"))
    return unet, tutors


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
    size = sum(p.numel() for p in encoders.parameters())
    print(f"{len(things)} nouns, {len(tokenizer)} tokens, {size:,} parameters", flush=True)
    teach(encoders, Lesson(tutors, shapes, things, tokenizer), args.steps, args.batch_size)
    assemble(encoders, tokenizer, unet, things)


if __name__ == "__main__":
    main()
