"""One typed configuration of a training, for notebooks and the command line alike; and the flags that are refused.

The names are those of the authors' script, so that their README can be typed here. Every field carries the sentence that
`--help` prints; a notebook reads the same with `help(TrainingSettings)` or `TrainingSettings.explain("rank")`.
"""

import math
import operator
from dataclasses import dataclass, field, fields
from types import UnionType
from typing import get_args

LR_SCHEDULERS = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
)
GRADIENT_CHECKPOINTING = ("none", "partial", "full")


def option(default, help, group, **extra):
    return field(default=default, metadata={"help": help, "group": group, **extra})


LEARNED, OPTIMIZER, RECIPES, MEMORY, CHECKPOINTS, FILE = (
    "what is learned",
    "optimizer",
    "recipes, all off by default",
    "memory and speed",
    "checkpoints",
    "written into the file",
)


@dataclass(frozen=True, repr=False)
class TrainingSettings:
    """How one B-LoRA is trained, with the original's names and, for SDXL, its values."""

    instance_prompt: str = option(
        "A [v]", 'the prompt that is to mean the picture; "A [v] dog" for --together', LEARNED
    )
    resolution: int = option(
        1024, "side of the square the picture is cropped to, in pixels", LEARNED
    )
    rank: int = option(
        64,
        "rank of the LoRA matrices; a smaller rank gives smaller files and keeps less detail",
        LEARNED,
    )
    learning_rate: float = option(5e-5, "step size of the optimizer", OPTIMIZER)
    max_train_steps: int = option(1000, "training steps", OPTIMIZER)
    train_batch_size: int = option(1, "noisy versions (or pictures) in each step", OPTIMIZER)
    seed: int = option(0, "of the LoRA's first values, the noise and the timesteps", LEARNED)
    adam_weight_decay: float = option(1e-4, "how fast AdamW lets weights shrink", OPTIMIZER)
    max_grad_norm: float = option(1.0, "longer gradients are shortened to this norm", OPTIMIZER)

    lr_scheduler: str = option(
        "constant", "how the learning rate changes over the steps", OPTIMIZER, choices=LR_SCHEDULERS
    )
    lr_warmup_steps: int = option(
        0,
        "steps in which the learning rate rises from 0; the schedule constant has none",
        OPTIMIZER,
    )
    lr_num_cycles: int = option(1, "restarts of the schedule cosine_with_restarts", OPTIMIZER)
    lr_power: float = option(1.0, "exponent of the schedule polynomial", OPTIMIZER)
    gradient_accumulation_steps: int = option(
        1, "batches whose gradients are averaged before a step; time instead of memory", OPTIMIZER
    )
    adam_beta1: float = option(0.9, "AdamW's memory of the gradient", OPTIMIZER)
    adam_beta2: float = option(0.999, "AdamW's memory of the squared gradient", OPTIMIZER)
    adam_epsilon: float = option(1e-8, "AdamW's guard against division by 0", OPTIMIZER)
    use_8bit_adam: bool = option(
        False,
        "keep AdamW's state in 8 bits (bitsandbytes): 0.16 GiB less at rank 64, but it waits for the GPU after each weight",
        OPTIMIZER,
    )

    snr_gamma: float | None = option(
        None,
        "min-SNR: weigh each timestep by min(SNR, gamma)/SNR, 5 is usual; evens out easy and hard timesteps (arXiv 2303.09556)",
        RECIPES,
    )
    x0_loss_from: int | None = option(
        None,
        "from this step on compare pictures instead of noise (error divided by SNR): more weight on layout and palette (ConsisLoRA, arXiv 2503.10614)",
        RECIPES,
    )
    with_prior_preservation: bool = option(
        False,
        "train on pictures of the class besides, so that the class word keeps its meaning (DreamBooth)",
        RECIPES,
    )
    class_prompt: str | None = option(
        None, 'what the class pictures show, for example "A dog"', RECIPES
    )
    class_data_dir: str | None = option(
        None,
        "folder of class pictures; the command line generates missing ones from --class_prompt",
        RECIPES,
    )
    num_class_images: int = option(100, "class pictures wanted (command line)", RECIPES)
    sample_batch_size: int = option(1, "class pictures generated at once (command line)", RECIPES)
    prior_loss_weight: float = option(1.0, "weight of the class pictures in the loss", RECIPES)

    gradient_checkpointing: str | None = option(
        None,
        "recompute activations instead of keeping them: none, partial (the two trained blocks) or full (all of the up path); by default the first that fits into memory; without a value: full",
        MEMORY,
        choices=GRADIENT_CHECKPOINTING,
        bare="full",
    )
    compile: bool = option(
        False,
        "compile the transformer blocks (torch.compile): the first step waits for the compiler, the others are 1 to 4 percent faster with SDXL on a CPU, slower with the teaching model; not run on a GPU",
        MEMORY,
    )

    checkpointing_steps: int | None = option(
        None,
        "steps between checkpoints; by default there is one after each quarter of the training",
        CHECKPOINTS,
    )
    checkpoints_total_limit: int | None = option(None, "keep only so many, the newest", CHECKPOINTS)

    license: str | None = option(
        None,
        "of the B-LoRA, for example cc-by-4.0: what others may do with it, if the picture is yours to decide",
        FILE,
    )

    def __post_init__(self):
        for f in fields(self):
            value = as_number(f, getattr(self, f.name))
            object.__setattr__(self, f.name, value)
            if "choices" in f.metadata and value is not None and value not in f.metadata["choices"]:
                raise ValueError(
                    f"{f.name} must be one of {', '.join(f.metadata['choices'])}, not {value}."
                )
            if value is not None and f.name in POSITIVE and not value > 0:
                raise ValueError(f"{f.name} must be greater than 0, not {value}.")
            if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
                raise ValueError(
                    f"{f.name} must be an ordinary number, and not negative, which {value} is not."
                )
        if self.rank > 1280:
            raise ValueError(
                f"rank must be at most 1280, the channels of SDXL's blocks, beyond which nothing is gained; not {self.rank}."
            )
        if self.resolution % 8 or self.resolution < 32:
            raise ValueError(
                f"resolution must be a multiple of 8 (a latent position is 8 pixels wide) and at least 32, not {self.resolution}: take {max(32, round(self.resolution / 8) * 8)}."
            )
        if not (
            0 <= self.adam_beta1 < 1 and 0 <= self.adam_beta2 < 1 and self.lr_warmup_steps >= 0
        ):
            raise ValueError(
                f"adam_beta1 and adam_beta2 must be from 0 to below 1, lr_warmup_steps at least 0, not {self.adam_beta1}, {self.adam_beta2} and {self.lr_warmup_steps}."
            )
        if not -(2**63) <= self.seed < 2**64:
            raise ValueError(f"seed must be between -2^63 and 2^64, which {self.seed} is not.")
        if (
            self.lr_scheduler != "constant"
            and self.lr_warmup_steps
            and self.lr_warmup_steps >= self.max_train_steps
        ):
            raise ValueError(
                f"lr_warmup_steps ({self.lr_warmup_steps}) must be fewer than max_train_steps ({self.max_train_steps}): the learning rate would never reach its value. (A checkpoint of such a training is a B-LoRA like any other.)"
            )
        if self.x0_loss_from and self.x0_loss_from > self.max_train_steps:
            raise ValueError(
                f"x0_loss_from names step {self.x0_loss_from}, after the last one, {self.max_train_steps}."
            )
        for name in ("class_prompt", "class_data_dir"):
            if getattr(self, name) and not self.with_prior_preservation:
                raise ValueError(f"{name} is only used with with_prior_preservation.")
        if self.with_prior_preservation and not (self.class_prompt and self.class_data_dir):
            raise ValueError("with_prior_preservation needs class_prompt and class_data_dir.")

    def __repr__(self):
        """The nine settings everybody needs, and of the rest those that differ from their default."""
        shown = [
            f for k, f in enumerate(fields(self)) if k < 9 or getattr(self, f.name) != f.default
        ]
        return (
            f"TrainingSettings({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in shown)})"
        )

    def checkpoint_at(self, step):
        """Whether there is a checkpoint after this step: every `checkpointing_steps`, or after each quarter of the training."""
        if self.checkpointing_steps:
            return step % self.checkpointing_steps == 0
        return step in {math.ceil(self.max_train_steps * quarter / 4) for quarter in (1, 2, 3, 4)}

    @classmethod
    def for_pipeline(cls, pipe, **changes):
        """The settings that suit a pipeline, with the given ones changed (None means: leave it)."""
        d = defaults_for(pipe)
        suited = {
            "resolution": native_resolution(pipe),
            "rank": d.rank,
            "learning_rate": d.learning_rate,
            "max_train_steps": d.max_train_steps,
            "train_batch_size": d.train_batch_size,
        }
        return cls(**suited | {name: value for name, value in changes.items() if value is not None})

    @classmethod
    def explain(cls, name):
        """The sentence that `--help` prints about a setting."""
        return cls.__dataclass_fields__[name].metadata["help"]


POSITIVE = {
    "resolution",
    "rank",
    "learning_rate",
    "max_train_steps",
    "train_batch_size",
    "gradient_accumulation_steps",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "snr_gamma",
    "x0_loss_from",
    "num_class_images",
    "max_grad_norm",
    "lr_num_cycles",
    "lr_power",
    "sample_batch_size",
    "adam_epsilon",
}
SUITED = {
    "resolution",
    "rank",
    "learning_rate",
    "max_train_steps",
    "train_batch_size",
}  # their default depends on the base model


def _kind(f):
    """The type of a field's values, without the None of an optional one."""
    return (
        next(t for t in get_args(f.type) if t is not type(None))
        if isinstance(f.type, UnionType)
        else f.type
    )


def as_number(f, value):
    """A field's value as a number of Python's where it is one, perhaps of NumPy's or PyTorch's; everything else as it is.

    Raises:
        ValueError: it should be a number, or a whole one.
    """
    if value is None or _kind(f) not in (int, float):
        return value
    try:
        return operator.index(value) if _kind(f) is int else float(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"{f.name} must be a {'whole number' if _kind(f) is int else 'number'}, not {value!r}."
        ) from None


QUANTIZATIONS = ("int8", "nf4")


SCHEDULERS = {
    "euler": "EulerDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "lcm": "LCMScheduler",
}


@dataclass(frozen=True)
class Defaults:
    """What works for one size of model; every function takes its defaults from here."""

    rank: int
    learning_rate: float
    max_train_steps: int
    train_batch_size: int  # noisy versions of the one picture in each step
    num_inference_steps: int
    guidance_scale: float


# SDXL: the original's training recipe. Teaching model: chosen by trying on the pairs of benchmarks/separation.py.
SDXL_DEFAULTS = Defaults(
    rank=64,
    learning_rate=5e-5,
    max_train_steps=1000,
    train_batch_size=1,
    num_inference_steps=30,
    guidance_scale=7.5,
)


TINY_DEFAULTS = Defaults(
    rank=16,
    learning_rate=5e-3,
    max_train_steps=150,
    train_batch_size=8,
    num_inference_steps=20,
    guidance_scale=3.0,
)


def defaults_for(pipe):
    """The `Defaults` for a pipeline, by the width of its U-Net."""
    return TINY_DEFAULTS if pipe.unet.config.cross_attention_dim < 1024 else SDXL_DEFAULTS


def native_resolution(pipe):
    """The side of the square pictures the model was trained on, in pixels (96 for the teaching model, 1024 for SDXL)."""
    return pipe.unet.config.sample_size * pipe.vae_scale_factor
