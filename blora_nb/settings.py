"""The settings of a training, for notebooks and the command line alike.

The names are those of the authors' script, so that their README can be typed here. Every field
carries the sentence that `--help` prints; a notebook reads the same with `help(TrainingSettings)`.
"""

import math
import operator
from dataclasses import Field, dataclass, field, fields
from os import PathLike
from textwrap import fill
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args

from blora_nb.defaults import SDXL_DEFAULTS, defaults_for, native_resolution

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

LR_SCHEDULERS = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
)
INIT_LORA_WEIGHTS = ("gaussian", "instant")
GRADIENT_CHECKPOINTING = ("none", "partial", "full")

# the headings of `--help`
LEARNED = "what is learned"
OPTIMIZER = "optimizer"
RECIPES = "recipes, all off by default"
MEMORY = "memory and speed"
CHECKPOINTS = "checkpoints"
FILE = "written into the file"
# all other numbers must be greater than 0
MAY_BE_ZERO = {
    "seed",
    "adam_weight_decay",
    "lr_warmup_steps",
    "adam_beta1",
    "adam_beta2",
    "prior_loss_weight",
}
# settings whose default is what suits the pipeline
SUITED = (
    "resolution",
    "rank",
    "learning_rate",
    "max_train_steps",
    "train_batch_size",
    "init_lora_weights",
)


def option(default: Any, help: str, group: str, **extra: Any) -> Any:
    """A field of the settings, with its sentence and heading in `--help`."""
    return field(default=default, metadata={"help": help, "group": group, **extra})


@dataclass(frozen=True, repr=False)
class TrainingSettings:
    """How one B-LoRA is trained, with the original's names and, for SDXL, its values."""

    instance_prompt: str = option(
        "A [v]", 'the prompt that will stand for the picture; "A [v] dog" for --together', LEARNED
    )
    resolution: int = option(
        1024, "side of the square the picture is cropped to, in pixels", LEARNED
    )
    rank: int = option(
        SDXL_DEFAULTS.rank,
        "rank of the LoRA matrices; a smaller rank gives smaller files and keeps less detail",
        LEARNED,
    )
    learning_rate: float = option(
        SDXL_DEFAULTS.learning_rate, "step size of the optimizer", OPTIMIZER
    )
    max_train_steps: int = option(SDXL_DEFAULTS.max_train_steps, "training steps", OPTIMIZER)
    train_batch_size: int = option(
        SDXL_DEFAULTS.train_batch_size, "noisy versions (or pictures) in each step", OPTIMIZER
    )
    seed: int = option(0, "of the LoRA's initial values, the noise and the timesteps", LEARNED)
    init_lora_weights: str = option(
        SDXL_DEFAULTS.init_lora_weights,
        "what the training starts from: gaussian, the unchanged model, as the original does; or "
        "instant, what two small networks see in the picture (teaching model only)",
        LEARNED,
        choices=INIT_LORA_WEIGHTS,
    )
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
        "keep AdamW's state in 8 bits (bitsandbytes): 0.16 GiB less at rank 64, but it waits for "
        "the GPU after each weight",
        OPTIMIZER,
    )

    snr_gamma: float | None = option(
        None,
        "min-SNR: weigh each timestep by min(SNR, gamma)/SNR, 5 is usual; evens out easy and hard "
        "timesteps (arXiv 2303.09556)",
        RECIPES,
    )
    x0_loss_from: int | None = option(
        None,
        "from this step on compare pictures instead of noise (error divided by SNR): more weight "
        "on layout and palette (ConsisLoRA, arXiv 2503.10614)",
        RECIPES,
    )
    with_prior_preservation: bool = option(
        False,
        "also train on pictures of the class, so that the class word keeps its meaning "
        "(DreamBooth)",
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
        "recompute activations instead of keeping them: none, partial (the two trained blocks) or "
        "full (all of the up path); by default the first that fits into memory; without a value: "
        "full",
        MEMORY,
        choices=GRADIENT_CHECKPOINTING,
        bare="full",
    )
    compile: bool = option(
        False,
        "compile the transformer blocks (torch.compile): the first step waits for the compiler, "
        "the others are 1 to 4 percent faster with SDXL on a CPU, slower with the teaching model; "
        "not run on a GPU",
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
        "of the B-LoRA, for example cc-by-4.0: what others may do with it, if the rights to the "
        "picture are yours",
        FILE,
    )

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(
                self, f.name, checked_number(f.name, getattr(self, f.name), value_type(f))
            )
            _check_value(f, getattr(self, f.name))
        self._check_together()

    def _check_together(self) -> None:
        """Raise a ValueError for values that make no sense for a training, or beside each other."""
        if not self.instance_prompt.strip():
            raise ValueError(
                'instance_prompt is empty. The prompt that stands for the picture is usually "A '
                '[v]".'
            )
        if self.rank > 1280:
            raise ValueError(
                "rank must be at most 1280, the channels of SDXL's blocks, beyond which nothing is "
                f"gained; not {self.rank}."
            )
        if self.resolution % 8 or self.resolution < 32:
            nearest = max(32, round(self.resolution / 8) * 8)
            raise ValueError(
                "resolution must be a multiple of 8 (a latent position is 8 pixels wide) and at "
                f"least 32, not {self.resolution}: take {nearest}."
            )
        betas = (self.adam_beta1, self.adam_beta2)
        if not all(0 <= beta < 1 for beta in betas) or self.lr_warmup_steps < 0:
            raise ValueError(
                "adam_beta1 and adam_beta2 must be from 0 to below 1, lr_warmup_steps at least 0, "
                f"not {self.adam_beta1}, {self.adam_beta2} and {self.lr_warmup_steps}."
            )
        if not is_seed(self.seed):
            raise ValueError(f"seed must be between -2^63 and 2^64, which {self.seed} is not.")
        warmup = self.lr_warmup_steps if self.lr_scheduler != "constant" else 0
        if warmup and warmup >= self.max_train_steps:
            raise ValueError(
                f"lr_warmup_steps ({warmup}) must be fewer than max_train_steps "
                f"({self.max_train_steps}): the learning rate would never reach its value. (To "
                "stop early, use a checkpoint: it is a B-LoRA like any other.)"
            )
        if self.x0_loss_from and self.x0_loss_from > self.max_train_steps:
            raise ValueError(
                f"x0_loss_from names step {self.x0_loss_from}, after the last one, "
                f"{self.max_train_steps}."
            )
        for name in ("class_prompt", "class_data_dir"):
            if getattr(self, name) and not self.with_prior_preservation:
                raise ValueError(f"{name} is only used with with_prior_preservation.")
        if self.with_prior_preservation and not (self.class_prompt and self.class_data_dir):
            raise ValueError("with_prior_preservation needs class_prompt and class_data_dir.")

    def __repr__(self) -> str:
        """The ten settings everybody needs, and of the rest those that differ from the default."""
        listed = [
            f"{f.name}={getattr(self, f.name)!r}"
            for number, f in enumerate(fields(self))
            if number < 10 or getattr(self, f.name) != f.default
        ]
        return f"TrainingSettings({', '.join(listed)})"

    def checkpoint_at(self, step: int) -> bool:
        """Whether there is a checkpoint after this step.

        Every `checkpointing_steps`, or after each quarter of the training.
        """
        if self.checkpointing_steps:
            return step % self.checkpointing_steps == 0
        return step in {math.ceil(self.max_train_steps * quarter / 4) for quarter in (1, 2, 3, 4)}

    @classmethod
    def for_pipeline(
        cls, pipe: "StableDiffusionXLPipeline", several: bool = False, **changes: Any
    ) -> "TrainingSettings":
        """The settings that suit a pipeline, with the given ones changed (None leaves one).

        Args:
            several: whether one B-LoRA learns from several pictures; it cannot start instantly.
        """
        start = changes.get("init_lora_weights") or ("gaussian" if several else None)
        defaults = defaults_for(pipe, start)
        suited = {name: getattr(defaults, name) for name in SUITED if name != "resolution"}
        suited["resolution"] = native_resolution(pipe)
        changed = {name: value for name, value in changes.items() if value is not None}
        return cls(**suited | changed)


# for `help` and the question mark of notebooks
SENTENCES = [
    fill(f"    {f.name}: {f.metadata['help']}.", 96, subsequent_indent=" " * 8)
    for f in fields(TrainingSettings)
]
TrainingSettings.__doc__ = "\n".join([f"{TrainingSettings.__doc__}\n\nAttributes:", *SENTENCES])


def value_type(f: Field) -> type:
    """The type of a field's values, without the None of an optional one."""
    if isinstance(f.type, UnionType):
        return next(kind for kind in get_args(f.type) if kind is not type(None))
    return f.type  # type: ignore[return-value]


def is_seed(number: int) -> bool:
    """Whether PyTorch takes a whole number as a seed."""
    return -(2**63) <= number < 2**64


def checked_number(name: str, value: Any, kind: type) -> Any:
    """A setting as a number of Python's, perhaps one of NumPy's or PyTorch's; None stays None.

    So does what is of another kind than `int` and `float`.

    Raises:
        ValueError: it should be a number, or a whole one.
    """
    if value is None or kind not in (int, float):
        return value
    try:
        return operator.index(value) if kind is int else float(value)
    except (TypeError, ValueError):
        wanted = "whole number" if kind is int else "number"
        raise ValueError(f"{name} must be a {wanted}, not {value!r}.") from None


def _check_value(f: Field, value: Any) -> None:
    """Raise a ValueError for a value that a field cannot have."""
    if value is None:
        return
    if value_type(f) is bool and not isinstance(value, bool):
        raise ValueError(f"{f.name} must be True or False, not {value!r}.")
    if value_type(f) is str and not isinstance(value, str | PathLike):
        raise ValueError(f"{f.name} must be a text, not {value!r}.")
    choices = f.metadata.get("choices")
    if choices and value not in choices:
        raise ValueError(f"{f.name} must be one of {', '.join(choices)}, not {value}.")
    if value_type(f) in (int, float) and f.name not in MAY_BE_ZERO and not value > 0:
        raise ValueError(f"{f.name} must be greater than 0, not {value}.")
    if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
        raise ValueError(
            f"{f.name} must be an ordinary number, and not negative, which {value} is not."
        )
