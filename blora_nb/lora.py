"""A B-LoRA on disk and in a pipeline: halves, mixing, putting on with alphas, taking off."""

import hashlib
import json
import math
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import safetensors.torch
import torch
from torch import Tensor

from blora_nb.blocks import HALVES, half_of
from blora_nb.errors import BLoRAError, BLoRAWarning, PipelineWarning, named_in_errors
from blora_nb.files.descriptions import describe, describe_as_html
from blora_nb.files.locating import FILE_NAME, PEFT_FILE, find_weights, read_beside
from blora_nb.files.lora_settings import PEFT_CONFIG, is_setting
from blora_nb.files.metadata import LICENCE, versions
from blora_nb.files.names import WRAPPER, WRITTEN, format_of
from blora_nb.files.reading import read_weights
from blora_nb.files.safe_files import PICKLES, complete_file, open_weights
from blora_nb.files.state_dict_checks import (
    base_of,
    check_complete,
    check_finite,
    check_sizes,
    remarks,
)
from blora_nb.files.writing import converted, named_weights, peft_config
from blora_nb.guards.changed_pipelines import (
    acting_adapters,
    acting_weights,
    adapters_of_encoders,
    check_unchanged,
    fused_lora,
    inner,
    merged_adapters,
    unwrapped,
)
from blora_nb.registry import AppliedHalf, applied_halves
from blora_nb.settings import TrainingSettings

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

# the name of the LoRA in training on a U-Net
IN_TRAINING = "in_training"
# endings that nobody gives a folder
NO_FOLDER = {".safetensors", ".safetensor", *PICKLES}
# header entries that would be wrong in a file written anew
STALE = {
    "format",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_module",
    "ss_network_args",
    "sshs_model_hash",
    "sshs_legacy_hash",
    "modelspec.hash_sha256",
}


@dataclass(repr=False, eq=False)
class BLoRA:
    """The LoRA weights of the content block, of the style block, or of both.

    Ranks may differ from layer to layer.

    Attributes:
        state_dict: PEFT's names (`unet.up_blocks.0.attentions.0….lora_A.weight` [rank, in] and
            `….lora_B.weight` [out, rank]) to float32 tensors; lora_alpha is the rank, so the scale
            is 1.
        metadata: text written into the file: prompt, training settings, versions.
        losses: the loss of each step, where it has just been trained; not written.
        notes: what was left out or assumed when the file was read.
        format: of the file it was read from, in words.
        source: the file, folder or hub id it was read from or last written to in float32; else
            empty.
    """

    state_dict: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    format: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        # names of a model that was compiled when it was trained
        self.state_dict = {WRAPPER.sub("", key): t for key, t in self.state_dict.items()}
        check_complete(self.state_dict)
        check_sizes(self.state_dict)
        check_finite(self.state_dict)

    @property
    def halves(self) -> tuple[str, ...]:
        """The halves it has, a tuple of "content" and "style"."""
        there = {half_of(key) for key in self.state_dict}
        return tuple(half for half in HALVES if half in there)

    @property
    def layers(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The names of its layers in the U-Net to their (lora_A [rank, in], lora_B [out, rank])."""
        pairs = {}
        for key, a in self.state_dict.items():
            if key.endswith(".lora_A.weight"):
                stem = key.removesuffix(".lora_A.weight")
                pairs[stem.removeprefix("unet.")] = (a, self.state_dict[f"{stem}.lora_B.weight"])
        return pairs

    @property
    def rank(self) -> int:
        """The largest rank among its layers."""
        return max(a.shape[0] for a, _ in self.layers.values())

    @property
    def content(self) -> "BLoRA":
        """Its content half, a `BLoRA` of its own."""
        return self.half("content")

    @property
    def style(self) -> "BLoRA":
        """Its style half, a `BLoRA` of its own."""
        return self.half("style")

    def half(self, half: str) -> "BLoRA":
        """Its half of this name, a `BLoRA` of its own."""
        if half not in self.halves:
            raise BLoRAError(
                f"{self.source or 'The B-LoRA'} has no {half} half, only "
                f"{' and '.join(self.halves)}."
            )
        state_dict = {key: t for key, t in self.state_dict.items() if half_of(key) == half}
        return BLoRA(state_dict, dict(self.metadata), source=self.source)

    def copy(self) -> "BLoRA":
        """The same weights, of no file: it can be saved without noting where."""
        return BLoRA(self.state_dict, dict(self.metadata))

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that name the weights, whatever the file they came in."""
        digest = hashlib.sha256()
        for key, tensor in sorted(self.state_dict.items()):
            digest.update(f"{key} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()[:12]

    @classmethod
    def load(cls, source: str | Path) -> "BLoRA":
        """Read a B-LoRA from wherever it is, in whatever format.

        Read are the names of diffusers (old, new, and the doubled `unet.unet.` of the authors'
        published weights), PEFT, kohya and LyCORIS with diffusers' or SDXL's own block names, and
        ComfyUI. Of a LoRA of the whole model the two halves are taken. What was left out or
        assumed stands in `notes` and is given as a `BLoRAWarning`.

        Args:
            source: a safetensors file, a folder with one, or an id on the Hugging Face hub
                ("user/repository", or "user/repository/file.safetensors").

        Raises:
            BLoRAError: missing, not safetensors, incomplete, or no B-LoRA; the message names the
                file and the weights.
        """
        file, config = find_weights(source)
        with named_in_errors(file):
            blora = cls._read(file, config, str(source))
            blora.notes += remarks(blora.state_dict, blora.layers)
        for note in blora.notes:
            warnings.warn(f"{file}: {note}", BLoRAWarning, stacklevel=2)
        return blora

    @classmethod
    def load_unfinished(cls, folder: str | Path) -> "BLoRA":
        """Read the B-LoRA of a checkpoint, which may not change anything yet; else like `load`."""
        file, config = find_weights(folder)
        with named_in_errors(file):
            return cls._read(file, config, str(folder))

    @classmethod
    def _read(cls, file: Path, config: Path | None, source: str) -> "BLoRA":
        with open_weights(file) as opened:
            metadata = opened.metadata() or {}
            keys = list(opened.keys())
            beside, notes = read_beside(file, config, keys)
            state_dict, more = read_weights(opened, beside)
        return cls(
            state_dict,
            _lasting(metadata),
            notes=notes + more,
            format=format_of(keys),
            source=source,
        )

    def save(
        self, path: str | Path, format: str = "diffusers", dtype: torch.dtype = torch.float32
    ) -> Path:
        """Write it, complete or not at all; in float32 `load` gives the same weights again.

        Args:
            path: a name ending in .safetensors, or a folder (made if needed), which gets
                `pytorch_lora_weights.safetensors`.
            format: "diffusers" (also what this package reads first), "kohya" (A1111, Forge, and
                diffusers), "sgm" (SDXL's own block names: ComfyUI, A1111), or "peft" (always a
                folder: `PeftModel.from_pretrained(unet, folder)`).
            dtype: of the numbers in the file. float32 keeps every bit; float16 and bfloat16 make
                it half as large.

        Returns:
            The path of the weights.

        Raises:
            FileExistsError: there is such a file already.
            ValueError: no such format.
            BLoRAError: numbers too large for float16.
        """
        file = _file_to_write(Path(path), format)
        tensors = converted(named_weights(self.layers, format), dtype)
        header = {"format": "pt", **_lasting(self.metadata), **_kohya_metadata(self, format)}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"The folder {file.parent} cannot be made ({error.strerror or error})."
            ) from None
        # PEFT's two files are there together or not at all
        with ExitStack() as both:
            if format == "peft":
                config = both.enter_context(complete_file(file.with_name(PEFT_CONFIG)))
                config.write_text(json.dumps(peft_config(self.layers), indent=1))
            part = both.enter_context(complete_file(file))
            safetensors.torch.save_file(tensors, part, header)
        if dtype == torch.float32:
            self.source = str(path)
        return file

    def __repr__(self) -> str:
        return describe(self)

    def _repr_html_(self) -> str:
        return describe_as_html(self)


def _file_to_write(path: Path, format: str) -> Path:
    """The file that `BLoRA.save` writes."""
    if format not in WRITTEN:
        raise ValueError(f"There is no format {format!r}; choose one of {', '.join(WRITTEN)}.")
    if format == "peft" and path.suffix == ".safetensors":
        raise ValueError(
            "PEFT reads folders, with the ranks in a file of their own; name a folder instead of "
            f"{path}."
        )
    if path.suffix.lower() in NO_FOLDER and path.suffix != ".safetensors":
        raise ValueError(
            f"{path} looks like a file, and files of weights are written with the ending "
            ".safetensors. Write it so, or name a folder without an ending."
        )
    if path.suffix == ".safetensors":
        return path
    return path / (PEFT_FILE if format == "peft" else FILE_NAME)


def _lasting(metadata: dict[str, str]) -> dict[str, str]:
    """The entries of a header that are still true of weights with the scales multiplied in."""
    return {
        key: text
        for key, text in metadata.items()
        if key not in STALE and not is_setting(key, text)
    }


def _kohya_metadata(blora: BLoRA, format: str) -> dict[str, str]:
    """What A1111 and its kin read in the header to list a LoRA under the right base model."""
    if not WRITTEN[format].kohya:
        return {}
    entries = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(blora.rank),
        "ss_network_alpha": str(blora.rank),
    }
    if base_of(blora.state_dict) == "SDXL":
        entries["ss_base_model_version"] = "sdxl_base_v1-0"
        entries["modelspec.architecture"] = "stable-diffusion-xl-v1-base/lora"
    return entries


# ----------------------------------------------------------------------------------------- mixing

# what stands for one half: a B-LoRA or where it is, one with a weight, or a list of these
BLoRASource: TypeAlias = BLoRA | str | Path
HalfSource: TypeAlias = BLoRASource | tuple[BLoRASource, float] | list[Any]


def from_original_alpha(alpha: float) -> float:
    """The alpha here that acts as a published one.

    The original multiplies both matrices, so its alpha acts squared and without sign.

    >>> from_original_alpha(0.5), from_original_alpha(-0.5)
    (0.25, 0.25)
    """
    return alpha**2


def load_all(given: Any) -> Any:
    """What `mix` takes for a half, with every path and hub id read once; None stays None."""
    if isinstance(given, list):
        return [load_all(item) for item in given]
    if isinstance(given, tuple):
        source, weight = given
        return load_all(source), weight
    if given is None or isinstance(given, BLoRA):
        return given
    return BLoRA.load(given)


def mix(half: str, given: HalfSource) -> BLoRA:
    """One half made of any number of them, exactly.

    The matrices stand side by side, so that the ranks add up.

    Args:
        half: "content" or "style".
        given: a `BLoRA` or what `BLoRA.load` takes, or a list of such, or a list of (such,
            weight), weights linear and signed.

    Returns:
        A `BLoRA` with this half only.
    """
    parts = []
    for item in given if isinstance(given, list) else [given]:
        source, weight = item if isinstance(item, tuple) else (item, 1.0)
        check_strength(f"a weight of the {half} half", weight)
        blora = source if isinstance(source, BLoRA) else BLoRA.load(source)
        parts.append((blora.half(half), float(weight)))
    if not parts:
        raise BLoRAError(f"The list of {half} halves is empty; leave it out for none.")
    if len(parts) == 1 and parts[0][1] == 1:
        return parts[0][0]
    metadata = _shared_metadata([blora for blora, _ in parts])
    # not true any more of weights that were scaled or mixed
    for entry in ("learned", "final_loss"):
        metadata.pop(entry, None)
    return BLoRA(_side_by_side(half, parts), metadata)


def _shared_metadata(bloras: list[BLoRA]) -> dict[str, str]:
    """What is true of all of some B-LoRAs, and their licences."""
    first = bloras[0].metadata
    shared = {
        entry: text
        for entry, text in first.items()
        if all(blora.metadata.get(entry) == text for blora in bloras)
    }
    licences = {blora.metadata.get(LICENCE, "unknown") for blora in bloras}
    if licences != {"unknown"}:
        shared[LICENCE] = " and ".join(sorted(licences))
    return shared


def _side_by_side(half: str, parts: list[tuple[BLoRA, float]]) -> dict[str, Tensor]:
    """The state dict of the weighted sum of several B-LoRAs' changes."""
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for blora, weight in parts:
        for layer, (a, b) in blora.layers.items():
            pairs.setdefault(layer, []).append((a, b * weight))
    state_dict = {}
    for layer, matrices in pairs.items():
        if len({(a.shape[1], b.shape[0]) for a, b in matrices}) > 1:
            raise BLoRAError(
                f"The {half} halves are for base models of different sizes and cannot be mixed."
            )
        state_dict[f"unet.{layer}.lora_A.weight"] = torch.cat([a for a, _ in matrices], 0)
        state_dict[f"unet.{layer}.lora_B.weight"] = torch.cat([b for _, b in matrices], 1)
    return state_dict


def check_strength(what: str, number: float) -> None:
    """Raise a ValueError unless an alpha or a weight is an ordinary number."""
    if isinstance(number, str) or number is None or not math.isfinite(number):
        raise ValueError(f"{what} must be an ordinary number, not {number!r}.")


def _mixed_halves(content: HalfSource | None, style: HalfSource | None) -> dict[str, BLoRA]:
    """The halves that are given, by name."""
    given = {"content": content, "style": style}
    return {half: mix(half, source) for half, source in given.items() if source is not None}


def combine(
    content: HalfSource | None = None,
    style: HalfSource | None = None,
    content_alpha: float = 1.0,
    style_alpha: float = 1.0,
) -> BLoRA:
    """One `BLoRA` of the given halves, with the alphas multiplied in, to be saved as one file.

    Args:
        content, style: as in `mix`; None for none.
    """
    halves = _mixed_halves(content, style)
    alphas = {"content": content_alpha, "style": style_alpha}
    if not halves:
        raise BLoRAError("Name a content half, a style half, or both.")
    for half in halves:
        check_strength(f"{half}_alpha", alphas[half])
    if not any(alphas[half] for half in halves):
        raise BLoRAError("All alphas are 0: the B-LoRA would change nothing.")
    scaled = [mix(half, [(blora, alphas[half])]) for half, blora in halves.items()]
    state_dict = {key: t for blora in scaled for key, t in blora.state_dict.items()}
    metadata = _shared_metadata(scaled)
    for half in halves:
        if alphas[half] != 1:
            entry = f"{half}_alpha"
            before = metadata.get(entry)
            metadata[entry] = f"{before} × {alphas[half]}" if before else str(alphas[half])
    return BLoRA(state_dict, metadata)


# ---------------------------------------------------------------------------------- in a pipeline


def apply(
    pipe: "StableDiffusionXLPipeline",
    content: HalfSource | None = None,
    style: HalfSource | None = None,
    content_alpha: float = 1.0,
    style_alpha: float = 1.0,
) -> None:
    """Put the content half of one B-LoRA and the style half of another on a pipeline.

    They take the place of what was on it.

    Args:
        content, style: a `BLoRA` (whole or half), a path or hub id, None for none; or, to mix, a
            list of such or of (such, weight): `style=[(neon, 0.5), (wood, 0.5)]`.
        content_alpha, style_alpha: linear, signed strengths; 0 is off (`from_original_alpha`
            translates published ones).

    Raises:
        BLoRAError: a half is missing or does not fit the base model; what was on the pipeline is
            still on it.
        PipelineError: somebody has changed the pipeline so that LoRA would have no right effect.
        ValueError: an alpha is no ordinary number, or is for a half that is None.
    """
    alphas = {"content": content_alpha, "style": style_alpha}
    for half, alpha in alphas.items():
        check_strength(f"{half}_alpha", alpha)
    check_unchanged(pipe)
    halves = _mixed_halves(content, style)
    for half, alpha in alphas.items():
        # 1 is the default, and 0 is true of a half that is not there
        if half not in halves and alpha not in (0, 1):
            raise ValueError(_nothing_to_strengthen(half, alpha))
    strengths = {f"{half}_alpha": alphas[half] for half in halves}
    fingerprints = {half: blora.fingerprint for half, blora in halves.items()}
    if applied_fingerprints(pipe) == fingerprints and not adapters_of_encoders(pipe):
        set_alphas(pipe, **strengths)
        return
    for blora in halves.values():
        check_fits(inner(pipe.unet), blora)
    warn_of_other_adapters(pipe)
    remove(pipe)
    with unwrapped(pipe), warnings.catch_warnings():
        # two adapters are what we want
        warnings.filterwarnings("ignore", "Already found a `peft_config`")
        for half, blora in halves.items():
            # said for every layer, because diffusers guesses wrong in some versions where ranks
            # differ
            ranks = {layer: float(a.shape[0]) for layer, (a, _) in blora.layers.items()}
            network_alphas = {f"unet.{layer}.alpha": rank for layer, rank in ranks.items()}
            weights = {key: t.clone() for key, t in blora.state_dict.items()}
            options = {"adapter_name": half, "_pipeline": pipe}
            pipe.load_lora_into_unet(weights, network_alphas, pipe.unet, **options)
            applied_halves(pipe.unet)[half] = AppliedHalf(
                fingerprints[half], pipe.unet.peft_config[half], acting_weights(pipe.unet, half)
            )
    set_alphas(pipe, **strengths)


def _nothing_to_strengthen(half: str, alpha: float) -> str:
    """What is wrong with an alpha for a half that is not there, and the remedy."""
    return (
        f"{half}_alpha is {alpha:g}, but there is no {half} half. Put one on with "
        f"apply(pipe, {half}=…) or generate(…, {half}=…), or leave {half}_alpha out."
    )


def check_fits(unet: "UNet2DConditionModel", blora: BLoRA) -> None:
    """Raise a BLoRAError unless every layer is in the U-Net, with the same size."""
    base = base_of(blora.state_dict)
    for layer, (a, b) in blora.layers.items():
        try:
            module = unet.get_submodule(layer)
            expected = module.out_features, module.in_features
        except AttributeError:
            raise BLoRAError(
                f"The base model has no layer {layer}; this B-LoRA was trained on a larger one "
                f"({base})."
            ) from None
        size = b.shape[0], a.shape[1]
        if size != expected:
            raise BLoRAError(
                f"{layer} has the size {expected} in the base model and {size} in the B-LoRA, "
                f"which does not fit: it was trained on {base}."
            )


def set_alphas(
    pipe: "StableDiffusionXLPipeline",
    content_alpha: float | None = None,
    style_alpha: float | None = None,
) -> None:
    """Change the strengths of the halves that are on the pipeline; nothing is loaded again.

    Args:
        content_alpha, style_alpha: as in `apply`; None leaves that half as it is.

    Raises:
        ValueError: an alpha is no ordinary number, or is for a half that is not on the pipeline.
    """
    given = {"content": content_alpha, "style": style_alpha}
    there = applied(pipe)
    for half, alpha in given.items():
        if alpha is not None:
            check_strength(f"{half}_alpha", alpha)
        # 0 is true of a half that is not there
        if alpha and half not in there:
            raise ValueError(_nothing_to_strengthen(half, alpha))
    halves = [half for half in HALVES if half in there]
    if not halves:
        return
    unet = inner(pipe.unet)
    alphas = {
        half: now if alpha is None else float(alpha)
        for (half, alpha), now in zip(given.items(), applied_alphas(pipe))
    }
    if merged_adapters(unet):
        check_unchanged(pipe)  # which says how to take them out of the weights again
    # by pipe.disable_lora()
    if any(getattr(module, "disable_adapters", False) is True for module in unet.modules()):
        unet.enable_lora()
    others = acting_adapters(unet).difference(HALVES, {IN_TRAINING})
    if others:
        warnings.warn(
            f"The LoRA {', '.join(sorted(others))}, loaded by other means, is switched off: alphas "
            "are for the halves alone. pipe.set_adapters switches it on beside them.",
            PipelineWarning,
            stacklevel=2,
        )
    # a style half in training beside a content half stays on
    in_training = [IN_TRAINING] if IN_TRAINING in there else []
    strengths = [alphas[half] for half in halves] + [1.0 for _ in in_training]
    with unwrapped(pipe):
        unet.set_adapters(halves + in_training, strengths)


def applied_alphas(pipe: "StableDiffusionXLPipeline") -> tuple[float, float]:
    """The alphas of the content half and of the style half on a pipeline; 0 where there is none."""
    # `apply` makes an alpha the scale of all layers of its half
    scalings = [getattr(module, "scaling", {}) for module in inner(pipe.unet).modules()]
    content, style = (
        next((float(scaling[half]) for scaling in scalings if half in scaling), 0.0)
        for half in HALVES
    )
    return content, style


@contextmanager
def only_half(pipe: "StableDiffusionXLPipeline", half: str) -> Iterator[None]:
    """Inside, of all LoRA on a pipeline one half acts and the other does nothing.

    Also of a B-LoRA in training, of which both halves are one adapter.

    Args:
        half: the one that acts, "content" or "style".
    """
    with unwrapped(pipe):
        silent = [
            module
            for name, module in pipe.unet.named_modules()
            if hasattr(module, "lora_A") and half_of(name) not in (None, half)
        ]
    before = [dict(module.scaling) for module in silent]
    try:
        for module in silent:
            module.scaling.update(dict.fromkeys(module.scaling, 0.0))
        yield
    finally:
        for module, scaling in zip(silent, before):
            module.scaling.update(scaling)


def applied(pipe: "StableDiffusionXLPipeline") -> list[str]:
    """The names of the adapters on a pipeline's U-Net."""
    return list(getattr(inner(pipe.unet), "peft_config", {}))


def applied_fingerprints(pipe: "StableDiffusionXLPipeline") -> dict[str, str | None]:
    """The fingerprints of the halves that `apply` has put on a pipeline.

    None for an adapter that came from elsewhere, or whose weights were exchanged since.
    """
    unet = inner(pipe.unet)
    known = applied_halves(unet)
    found: dict[str, str | None] = {}
    with unwrapped(pipe):
        for name, config in getattr(unet, "peft_config", {}).items():
            half = known.get(name)
            found[name] = None
            if half and half.config is config and half.acting == acting_weights(unet, name):
                found[name] = half.fingerprint
    return found


def warn_of_other_adapters(pipe: "StableDiffusionXLPipeline") -> None:
    """Warn of the adapters that somebody else has put on a pipeline, before they are taken off."""
    foreign = {name for name, known in applied_fingerprints(pipe).items() if known is None}
    foreign |= set(adapters_of_encoders(pipe))
    if foreign:
        warnings.warn(
            f"The LoRA {', '.join(sorted(foreign))}, loaded by other means, is taken off the "
            "pipeline: pictures and trainings start from the plain model. To keep one, make it a "
            "part of the base: pipe.fuse_lora(), then pipe.unload_lora_weights().",
            PipelineWarning,
            stacklevel=3,
        )


def remove(pipe: "StableDiffusionXLPipeline") -> None:
    """Take every LoRA off the pipeline, also fused ones; afterwards it is the plain model."""
    with unwrapped(pipe):
        if fused_lora(pipe):
            pipe.unfuse_lora()
        # diffusers' note, made before the first layer gets LoRA: an error may come between
        began = getattr(pipe.unet, "_hf_peft_config_loaded", False)
        left = any(hasattr(module, "base_layer") for module in pipe.unet.modules())
        if began or left or applied(pipe) or adapters_of_encoders(pipe):
            pipe.unload_lora_weights()


# ---------------------------------------------------------------------------- a LoRA in training


def trained_parameters(unet: "UNet2DConditionModel") -> dict[str, Tensor]:
    """The tensors of the LoRA in training, by their names in a `BLoRA`."""
    trained = {name: p for name, p in inner(unet).named_parameters() if p.requires_grad}
    return {f"unet.{name.replace(f'.{IN_TRAINING}.', '.')}": p for name, p in trained.items()}


def collect(
    unet: "UNet2DConditionModel",
    settings: TrainingSettings,
    metadata: dict[str, str] | None = None,
) -> BLoRA:
    """The `BLoRA` made of the LoRA in training.

    Args:
        metadata: of it, beside its settings and the versions.
    """
    from peft.utils import get_peft_model_state_dict

    weights = get_peft_model_state_dict(inner(unet), adapter_name=IN_TRAINING)
    state_dict = {f"unet.{key}": t.detach().float().cpu().clone() for key, t in weights.items()}
    own = {"training": json.dumps(asdict(settings)), "versions": versions()}
    return BLoRA(state_dict, own | (metadata or {}))
