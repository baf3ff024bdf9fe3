"""A B-LoRA on disk and in a pipeline: read, write, take one half, mix halves, apply them with alphas, take them off again."""

import hashlib
import json
import math
import os
import warnings
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch

from blora_nb.blocks import BLOCK_OF_HALF, half_of
from blora_nb.errors import BLoRAError, BLoRAWarning, PipelineWarning, named_in_errors
from blora_nb.files.descriptions import describe
from blora_nb.files.formats import (
    FORMATS,
    WRAPPER,
    converted,
    format_of,
    named_weights,
    peft_config,
    read_weights,
)
from blora_nb.files.safe_files import (
    FILE_NAME,
    PEFT_FILE,
    complete_file,
    find_weights,
    open_weights,
    read_beside,
)
from blora_nb.files.scales import PEFT_CONFIG, is_setting
from blora_nb.files.state_dict_checks import (
    base_of,
    check_complete,
    check_finite,
    check_sizes,
    remarks,
)
from blora_nb.guards.changed_pipelines import (
    acting_weights,
    adapters_of_encoders,
    check_unchanged,
    fused_lora,
    inner,
    merged_adapters,
    unwrapped,
)

NO_FOLDER = {
    ".safetensors",
    ".safetensor",
    ".pt",
    ".pth",
    ".bin",
    ".ckpt",
}  # endings that nobody gives a folder
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


@dataclass(repr=False)
class BLoRA:
    """The LoRA weights of the content block, of the style block, or of both. Ranks may differ from layer to layer.

    Attributes:
        state_dict: PEFT's names (`unet.up_blocks.0.attentions.0….lora_A.weight` [rank, in] and
            `….lora_B.weight` [out, rank]) to float32 tensors; lora_alpha is the rank, so the scale is 1.
        metadata: text written into the file: prompt, training settings, versions.
        losses: the loss of each step, where it has just been trained; not written.
        notes: what was left out or assumed when the file was read.
        format: of the file it was read from, in words.
        source: the file, folder or hub id it was read from or last written to, as it was named; else empty.
    """

    state_dict: dict
    metadata: dict = field(default_factory=dict)
    losses: list = field(default_factory=list)
    notes: list = field(default_factory=list)
    format: str = ""
    source: str = ""

    def __post_init__(self):
        if any(WRAPPER.search(key) for key in self.state_dict):  # trained on a compiled model
            self.state_dict = {WRAPPER.sub("", key): t for key, t in self.state_dict.items()}
        check_complete(self.state_dict)
        check_sizes(self.state_dict)
        check_finite(self.state_dict)

    @property
    def halves(self):
        """The halves it has: a tuple of "content" and "style"."""
        return tuple(
            half for half in BLOCK_OF_HALF if any(half_of(key) == half for key in self.state_dict)
        )

    @property
    def layers(self):
        """The names of its layers in the U-Net to their (lora_A [rank, in], lora_B [out, rank])."""
        names = [
            key.removeprefix("unet.").removesuffix(".lora_A.weight")
            for key in self.state_dict
            if key.endswith(".lora_A.weight")
        ]
        return {
            name: (
                self.state_dict[f"unet.{name}.lora_A.weight"],
                self.state_dict[f"unet.{name}.lora_B.weight"],
            )
            for name in names
        }

    @property
    def rank(self):
        """The largest rank among its layers."""
        return max(a.shape[0] for a, _ in self.layers.values())

    @property
    def content(self):
        """Its content half, a `BLoRA` of its own."""
        return self._half("content")

    @property
    def style(self):
        """Its style half, a `BLoRA` of its own."""
        return self._half("style")

    def _half(self, half):
        if half not in self.halves:
            raise BLoRAError(
                f"{self.source or 'The B-LoRA'} has no {half} half, only {' and '.join(self.halves)}."
            )
        return BLoRA(
            {key: t for key, t in self.state_dict.items() if half_of(key) == half},
            self.metadata,
            source=self.source,
        )

    @property
    def fingerprint(self):
        """Twelve hexadecimal digits that name the weights, whatever the file they came in."""
        digest = hashlib.sha256()
        for key, tensor in sorted(self.state_dict.items()):
            digest.update(
                f"{key} {tuple(tensor.shape)} ".encode()
                + tensor.detach().cpu().float().contiguous().numpy().tobytes()
            )
        return digest.hexdigest()[:12]

    @classmethod
    def load(cls, source):
        """Read a B-LoRA from wherever it is, in whatever format.

        Args:
            source: a safetensors file, a folder with one, or an id on the Hugging Face hub ("user/repository", or
                "user/repository/file.safetensors").

        Read are the names of diffusers (old, new, and the doubled `unet.unet.` of the authors' published weights), PEFT,
        kohya and LyCORIS with diffusers' or SDXL's own block names, and ComfyUI. Of a LoRA of the whole model the two
        halves are taken. What was left out or assumed stands in `notes` and is given as a `BLoRAWarning`.

        Raises:
            BLoRAError: missing, not safetensors, incomplete, or no B-LoRA; the message names the file and the weights.
        """
        file, config = find_weights(source)
        with named_in_errors(file):
            blora = cls._read(file, config, str(source))
            blora.notes += remarks(blora.layers)
        for note in blora.notes:
            warnings.warn(f"{file}: {note}", BLoRAWarning, stacklevel=2)
        return blora

    @classmethod
    def load_unfinished(cls, folder):
        """Read the B-LoRA of a checkpoint, which may be from before it changes anything; else like `load`."""
        file, config = find_weights(folder)
        with named_in_errors(file):
            return cls._read(file, config, str(folder))

    @classmethod
    def _read(cls, file, config, source):
        with open_weights(file) as opened:
            metadata = opened.metadata() or {}
            keys = list(opened.keys())
            beside, notes = read_beside(file, config, keys)
            state_dict, more = read_weights(opened, beside)
        metadata, notes = _lasting(metadata), notes + more
        return cls(state_dict, metadata, notes=notes, format=format_of(keys), source=source)

    def save(self, path, format="diffusers", dtype=torch.float32):
        """Write it, complete or not at all, so that `load` gives the same weights again.

        Args:
            path: a name ending in .safetensors, or a folder (made if needed), which gets `pytorch_lora_weights.safetensors`.
            format: "diffusers" (also what this package reads first), "kohya" (A1111, Forge, and diffusers), "sgm" (SDXL's
                own block names: ComfyUI, A1111), or "peft" (always a folder: `PeftModel.from_pretrained(unet, folder)`).
            dtype: of the numbers in the file. float32 keeps every bit; float16 and bfloat16 make it half as large.

        Returns:
            The path of the weights.

        Raises:
            FileExistsError: there is such a file already. ValueError: no such format. BLoRAError: numbers too large for float16.
        """
        path = Path(path)
        if format not in FORMATS:
            raise ValueError(f"There is no format {format!r}; choose one of {', '.join(FORMATS)}.")
        if format == "peft" and path.suffix == ".safetensors":
            raise ValueError(
                f"PEFT reads folders, with the ranks in a file of their own; name a folder instead of {path}."
            )
        if path.suffix.lower() in NO_FOLDER and path.suffix != ".safetensors":
            raise ValueError(
                f"{path} looks like a file, and files of weights are written with the ending .safetensors. Write it so, or name a folder without an ending."
            )
        file = (
            path
            if path.suffix == ".safetensors"
            else path / (PEFT_FILE if format == "peft" else FILE_NAME)
        )
        if os.path.lexists(file):
            raise FileExistsError(
                f"{file} exists already. Choose another name, or remove it first."
            )
        tensors = converted(named_weights(self.layers, format), dtype)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"The folder {file.parent} cannot be made ({error.strerror or error})."
            ) from None
        with ExitStack() as both:  # PEFT's two files are there together or not at all
            if format == "peft":
                both.enter_context(complete_file(file.with_name(PEFT_CONFIG))).write_text(
                    json.dumps(peft_config(self.layers), indent=1)
                )
            part = both.enter_context(complete_file(file))
            header = {"format": "pt", **_lasting(self.metadata), **_kohya_metadata(self, format)}
            safetensors.torch.save_file(tensors, part, header)
        self.source = str(path)
        return file

    def __repr__(self):
        return describe(self)

    def _repr_html_(self):
        from blora_nb.files.descriptions import describe_as_html

        return describe_as_html(self)


def _lasting(metadata: dict) -> dict:
    """The entries of a header that are still true of weights with the scales multiplied in."""
    return {
        key: text
        for key, text in metadata.items()
        if key not in STALE and not is_setting(key, text)
    }


def _kohya_metadata(blora, format):
    """What A1111 and its kin read in the header to list a LoRA under the right base model."""
    if format not in ("kohya", "sgm"):
        return {}
    base = (
        {
            "ss_base_model_version": "sdxl_base_v1-0",
            "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        }
        if base_of(blora.state_dict) == "SDXL"
        else {}
    )
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(blora.rank),
        "ss_network_alpha": str(blora.rank),
        **base,
    }


def from_original_alpha(alpha):
    """The alpha here that acts as a published one: the original multiplies both matrices, so its alpha acts squared and without sign."""
    return alpha**2


def loaded(given):
    """What `mix` takes for a half, with every path and hub id read once: `BLoRA`s, or (`BLoRA`, weight), in a list or not; None stays None."""
    if isinstance(given, list):
        return [loaded(item) for item in given]
    if isinstance(given, tuple):
        return loaded(given[0]), given[1]
    return given if given is None or isinstance(given, BLoRA) else BLoRA.load(given)


def mix(half, given):
    """One half made of any number of them, exactly: the matrices side by side, so that the ranks add up.

    Args:
        half: "content" or "style".
        given: a `BLoRA` or what `BLoRA.load` takes, or a list of such, or a list of (such, weight), weights linear and signed.

    Returns:
        A `BLoRA` with this half only.
    """
    parts = []
    for item in given if isinstance(given, list) else [given]:
        source, weight = item if isinstance(item, tuple) else (item, 1.0)
        check_strength(f"a weight of the {half} half", weight)
        parts.append(
            (
                (source if isinstance(source, BLoRA) else BLoRA.load(source))._half(half),
                float(weight),
            )
        )
    if not parts:
        raise BLoRAError(f"The list of {half} halves is empty; leave it out for none.")
    if len(parts) == 1 and parts[0][1] == 1:
        return parts[0][0]
    halves = [
        ({layer: (a, b * weight) for layer, (a, b) in blora.layers.items()})
        for blora, weight in parts
    ]
    state_dict = {}
    for layer in {layer: None for layers in halves for layer in layers}:
        pairs = [layers[layer] for layers in halves if layer in layers]
        if len({(a.shape[1], b.shape[0]) for a, b in pairs}) > 1:
            raise BLoRAError(
                f"The {half} halves are for base models of different sizes and cannot be mixed."
            )
        state_dict[f"unet.{layer}.lora_A.weight"] = torch.cat([a for a, _ in pairs], 0)
        state_dict[f"unet.{layer}.lora_B.weight"] = torch.cat([b for _, b in pairs], 1)
    return BLoRA(state_dict, parts[0][0].metadata if len(parts) == 1 else {})


def check_strength(what, number):
    """Raise a ValueError unless an alpha or a weight is an ordinary number."""
    if not math.isfinite(number):
        raise ValueError(f"{what} must be an ordinary number, not {number}.")


def combine(content=None, style=None, content_alpha=1.0, style_alpha=1.0):
    """One `BLoRA` of the given halves (each as in `mix`) with the alphas multiplied in, to be saved as one file."""
    given = {"content": (content, content_alpha), "style": (style, style_alpha)}
    halves = {half: mix(half, source) for half, (source, _) in given.items() if source is not None}
    if not halves:
        raise BLoRAError("Name a content half, a style half, or both.")
    for half in halves:
        check_strength(f"{half}_alpha", given[half][1])
    if not any(given[half][1] for half in halves):
        raise BLoRAError("All alphas are 0: the B-LoRA would change nothing.")
    scaled = [mix(half, [(blora, given[half][1])]) for half, blora in halves.items()]
    return BLoRA(
        {key: t for blora in scaled for key, t in blora.state_dict.items()},
        scaled[0].metadata if all(b.metadata == scaled[0].metadata for b in scaled) else {},
    )


def apply(pipe, content=None, style=None, content_alpha=1.0, style_alpha=1.0):
    """Put the content half of one B-LoRA and the style half of another on a pipeline, in place of what was on it.

    Args:
        content, style: a `BLoRA` (whole or half), a path or hub id, None for none; or, to mix, a list of such or of
            (such, weight): `style=[(neon, 0.5), (wood, 0.5)]`.
        content_alpha, style_alpha: linear, signed strengths; 0 is off (`from_original_alpha` translates published ones).

    Raises:
        BLoRAError: a half is missing or does not fit the base model; what was on the pipeline is still on it.
        PipelineError: somebody has changed the pipeline so that LoRA would have no right effect.
        ValueError: an alpha is no ordinary number.
    """
    for what, alpha in (("content_alpha", content_alpha), ("style_alpha", style_alpha)):
        check_strength(what, alpha)
    check_unchanged(pipe)
    halves = {
        half: mix(half, given)
        for half, given in (("content", content), ("style", style))
        if given is not None
    }
    fingerprints = {half: blora.fingerprint for half, blora in halves.items()}
    if on_the_pipeline(pipe) == fingerprints and not adapters_of_encoders(pipe):
        set_alphas(pipe, content_alpha, style_alpha)
        return
    for blora in halves.values():
        _check_fits(inner(pipe.unet), blora)
    tell_of_others(pipe)
    remove(pipe)
    with unwrapped(pipe), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Already found a `peft_config`"
        )  # two adapters are what we want
        for half, blora in halves.items():
            # said for every layer, because diffusers guesses wrong in some versions where ranks differ
            alphas = {
                f"unet.{layer}.alpha": float(a.shape[0]) for layer, (a, _) in blora.layers.items()
            }
            weights = {key: t.clone() for key, t in blora.state_dict.items()}
            options = {"adapter_name": half, "_pipeline": pipe}
            pipe.load_lora_into_unet(weights, alphas, pipe.unet, **options)
            config = pipe.unet.peft_config[half]
            config.fingerprint, config.acting = fingerprints[half], acting_weights(pipe.unet, half)
    set_alphas(pipe, content_alpha, style_alpha)


def _check_fits(unet, blora):
    """Raise a BLoRAError unless every layer is in the U-Net, with the same size."""
    for layer, (a, b) in blora.layers.items():
        try:
            module = unet.get_submodule(layer)
            expected = module.out_features, module.in_features
        except AttributeError:
            raise BLoRAError(
                f"The base model has no layer {layer}; this B-LoRA was trained on a larger one ({base_of(blora.state_dict)})."
            ) from None
        if (b.shape[0], a.shape[1]) != expected:
            raise BLoRAError(
                f"{layer} has the size {expected} in the base model and {(b.shape[0], a.shape[1])} in the B-LoRA, which does not fit: it was trained on {base_of(blora.state_dict)}."
            )


def set_alphas(pipe, content_alpha=1.0, style_alpha=1.0):
    """Change the strengths of the halves that are on the pipeline; nothing is loaded again."""
    alphas = {"content": float(content_alpha), "style": float(style_alpha)}
    on, unet = [half for half in alphas if half in applied(pipe)], inner(pipe.unet)
    if on:
        if merged_adapters(unet):
            check_unchanged(pipe)  # which says how to take them out of the weights again
        # by pipe.disable_lora()
        if any(getattr(module, "disable_adapters", False) is True for module in unet.modules()):
            unet.enable_lora()
        with unwrapped(pipe):
            unet.set_adapters(on, [alphas[half] for half in on])


def on_the_pipeline(pipe):
    """The fingerprints of the halves that `apply` has put on a pipeline.

    None for an adapter that came from elsewhere, or whose weights were exchanged since.
    """
    unet, found = inner(pipe.unet), {}
    with unwrapped(pipe):
        for name, config in getattr(unet, "peft_config", {}).items():
            fingerprint = getattr(config, "fingerprint", None)
            unchanged = fingerprint and config.acting == acting_weights(unet, name)
            found[name] = fingerprint if unchanged else None
    return found


def applied(pipe):
    """The names of the adapters on a pipeline's U-Net."""
    return list(getattr(inner(pipe.unet), "peft_config", {}))


def tell_of_others(pipe):
    """Warn of the adapters that somebody else has put on a pipeline, before they are taken off."""
    others = [name for name, fingerprint in on_the_pipeline(pipe).items() if fingerprint is None]
    if others := sorted({*others, *adapters_of_encoders(pipe)}):
        warnings.warn(
            f"The LoRA {', '.join(others)}, loaded by other means, is taken off the pipeline: "
            "pictures and trainings start from the plain model. To keep one, make it a part of the "
            "base: pipe.fuse_lora(), then pipe.unload_lora_weights().",
            PipelineWarning,
            stacklevel=3,
        )


def remove(pipe):
    """Take every LoRA off the pipeline, also fused ones; afterwards it is the plain model."""
    with unwrapped(pipe):
        if fused_lora(pipe):
            pipe.unfuse_lora()
        # diffusers' note, made before the first layer gets LoRA: an error may come between
        began = getattr(pipe.unet, "_hf_peft_config_loaded", False)
        left = any(hasattr(module, "base_layer") for module in pipe.unet.modules())
        if began or left or applied(pipe) or adapters_of_encoders(pipe):
            pipe.unload_lora_weights()
