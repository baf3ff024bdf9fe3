"""A pipeline to work with: the teaching model, the real SDXL, or any SDXL-shaped id or folder."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from logging import CRITICAL, ERROR, getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from blora_nb.assets import INSTALL_AGAIN, SDXL, TINY_SDXL
from blora_nb.defaults import QUANTIZATIONS, SCHEDULERS
from blora_nb.errors import BLoRAError, named_in_errors, shown
from blora_nb.files.few_step import check_few_step_lora
from blora_nb.files.locating import HUB_ID, find_weights, read_beside
from blora_nb.files.metadata import file_hash
from blora_nb.files.safe_files import open_weights
from blora_nb.guards.bases import check_base
from blora_nb.guards.changed_pipelines import FEW_STEP_ADAPTER, check_unchanged, fused_lora
from blora_nb.guards.prompts import check_prompt, quiet_libraries, warn_about_prompt
from blora_nb.registry import note_options, options_of
from blora_nb.running.device import (
    check_device,
    default_base,
    default_device,
    default_dtype,
    needs_4_bits,
)

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

# SDXL's own VAE overflows in float16
SDXL_VAE_FP16 = "madebyollin/sdxl-vae-fp16-fix"
# model.fp16.safetensors, model.fp16-00001-of-00002.safetensors; and the same without a variant
VARIANT = re.compile(r"^(?:diffusion_pytorch_)?model\.([a-z]\w*)(?:-\d+-of-\d+)?\.safetensors$")
PLAIN = re.compile(r"^(?:diffusion_pytorch_)?model(?:-\d+-of-\d+)?\.safetensors$")


def load_pipeline(
    base: str | Path | None = None,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    quantization: str | None = None,
    vae: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    cache_dir: str | None = None,
) -> "StableDiffusionXLPipeline":
    """A `StableDiffusionXLPipeline`, ready to train on and to generate with.

    Args:
        base: "tiny" (the teaching model of this repository), "sdxl" (SDXL base 1.0 from the
            Hugging Face hub), or the id or folder of any SDXL-shaped model; by default what the
            environment variable BLORA_BASE says, else "tiny".
        device: "cuda", "mps" or "cpu"; by default the best one that works.
        dtype: of the frozen base; by default float32 for the teaching model and where there is no
            NVIDIA GPU, else bfloat16 or float16.
        quantization: "int8" or "nf4" keeps the frozen U-Net in 8 or 4 bits (needs bitsandbytes),
            "none" does not; by default "nf4" for SDXL on a GPU with less than 11 GiB.
        vae: id or folder of another VAE; by default SDXL in float16 gets one whose activations do
            not overflow.
        revision, variant, cache_dir: of the base on the hub, as in `from_pretrained`; the variant
            of "sdxl" is "fp16".

    Raises:
        FileNotFoundError: there is no such folder.
        OSError: the Hugging Face hub did not give it.
        ValueError: there is no such device, or the model is not SDXL-shaped.
    """
    _silence_libraries()
    import diffusers
    from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionXLPipeline

    base, device = base or default_base(), device or default_device()
    check_device(device)
    known: dict[str, str | Path] = {"tiny": TINY_SDXL, "sdxl": SDXL}
    source = known.get(str(base), base)
    tiny = Path(source).resolve() == TINY_SDXL
    if tiny and not (TINY_SDXL / "model_index.json").exists():
        raise FileNotFoundError(
            f"The teaching model is not in {TINY_SDXL}. Install the package again: {INSTALL_AGAIN}"
        )
    small = needs_4_bits(device)
    dtype = dtype or (torch.float32 if tiny else default_dtype(device))
    quantization = quantization or ("nf4" if small and not tiny else "none")
    vae_source = vae
    if vae is None and source == SDXL and dtype == torch.float16:
        vae_source = SDXL_VAE_FP16

    options: dict[str, Any] = {"use_safetensors": True, **dtype_argument(dtype)}
    if source == SDXL:
        variant = variant or "fp16"
    hub = {"revision": revision, "variant": variant, "cache_dir": cache_dir}
    hub_options = {name: value for name, value in hub.items() if value}
    with source_errors(source, "base model"):
        config = DiffusionPipeline.load_config(source, revision=revision, cache_dir=cache_dir)
    kind = str(config["_class_name"])
    if not issubclass(
        getattr(diffusers, kind, StableDiffusionXLPipeline), StableDiffusionXLPipeline
    ):
        raise ValueError(f"{base} is a {kind}; a B-LoRA needs an SDXL model.")
    parts = {}
    if quantization != "none":
        with source_errors(source, "base model"):
            # from its folder, so that the record of a picture finds the file and its hash
            folder = source
            if not Path(source).is_dir():
                folder = DiffusionPipeline.download(source, use_safetensors=True, **hub_options)
            parts["unet"] = _quantized_unet(
                folder, quantization, dtype, device, options | hub_options
            )
    if vae_source:
        with source_errors(vae_source, "VAE"):
            parts["vae"] = AutoencoderKL.from_pretrained(vae_source, cache_dir=cache_dir, **options)
    with source_errors(source, "base model"):
        pipe = DiffusionPipeline.from_pretrained(source, **options, **hub_options, **parts)

    if small:
        tile_vae(pipe)
    pipe.set_progress_bar_config(disable=True)
    for model in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        model.requires_grad_(False)
    note_options(
        pipe,
        pretrained_model_name_or_path=str(base),
        pretrained_vae_model_name_or_path=vae,
        revision=revision,
        variant=variant,
        quantization=quantization,
    )
    # diffusers warns of float16 on a CPU, which is slow but works
    with quiet_libraries():
        return pipe.to(device)


def _silence_libraries() -> None:
    """Turn off progress bars, and advice to install what nothing here needs."""
    from transformers.utils import logging as transformers_logging

    # on a CPU it logs that a package is missing
    getLogger("bitsandbytes").setLevel(ERROR)
    # it would advise to install torchvision, and does so while diffusers is imported
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.disable_progress_bar()


@contextmanager
def source_errors(source: str | Path, what: str) -> Iterator[None]:
    """Inside, errors about a folder or hub id say in one line what is wrong with it."""
    path = Path(source)
    if path.is_file():
        raise ValueError(
            f"The {what} {source} is a file; a folder in diffusers' format is wanted. diffusers "
            "makes one: StableDiffusionXLPipeline.from_single_file(FILE).save_pretrained(FOLDER)"
        )
    if not path.is_dir() and not HUB_ID.fullmatch(str(source)):
        raise FileNotFoundError(
            f"The {what}: there is no folder {source}, and as an id on the Hugging Face hub it "
            "should look like user/name."
        )
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        remedy = variant_remedy(path, reason)
        if isinstance(error, ValueError):
            if "variant" not in reason:
                raise
            reason = "there are no files of the variant that was named"
        elif not path.is_dir() and not remedy:
            reason = f"no such folder here, and the Hugging Face hub did not give it: {reason}"
        raise OSError(f"The {what} {source} cannot be read ({reason}).{remedy}") from None


def variant_remedy(folder: Path, reason: str) -> str:
    """The remedy for a base of which only a variant's files are there, such as "fp16"; else "".

    Args:
        reason: an error of diffusers; of a model of the hub it names the folder in the cache.
    """
    if not folder.is_dir():
        named = re.search(r"directory (.+?)\.?$", reason)
        if not named:
            return ""
        folder = Path(named[1]).parent
    found = set()
    for part in folder.iterdir():
        names = [file.name for file in part.iterdir()] if part.is_dir() else []
        if not any(map(PLAIN.search, names)):
            found |= {match[1] for match in map(VARIANT.search, names) if match}
    if not found:
        return ""
    variants = sorted(found)
    return (
        f" Only files of the variant {' and '.join(variants)} are there: add --variant "
        f'{variants[0]} (in Python: variant="{variants[0]}").'
    )


def dtype_argument(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The dtype as `from_pretrained` wants it, which has had two names."""
    import diffusers
    from packaging.version import Version

    return {"dtype" if Version(diffusers.__version__) >= Version("0.40") else "torch_dtype": dtype}


def _quantized_unet(
    source: str | Path, quantization: str, dtype: torch.dtype, device: str, options: dict[str, Any]
) -> "UNet2DConditionModel":
    """The U-Net with its linear layers in 8 or 4 bits, on its device; computed in `dtype`."""
    from diffusers import BitsAndBytesConfig, UNet2DConditionModel
    from diffusers.utils import is_bitsandbytes_available

    if quantization not in QUANTIZATIONS:
        raise ValueError(
            f"quantization must be none, {' or '.join(QUANTIZATIONS)}, not {quantization}."
        )
    if not is_bitsandbytes_available():
        raise ValueError(
            f"The quantization {quantization} needs the package bitsandbytes: pip install "
            "bitsandbytes (or say quantization none)"
        )
    config = BitsAndBytesConfig(
        load_in_8bit=quantization == "int8",
        load_in_4bit=quantization == "nf4",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
    )
    # without a place it is the first GPU, from which 8 bits do not move
    place = torch.device(device)
    placed = {} if place.index is None else {"device_map": {"": place}}
    try:
        return UNet2DConditionModel.from_pretrained(
            source, subfolder="unet", quantization_config=config, **placed, **options
        )
    except RuntimeError as error:
        if "No GPU" not in str(error):
            raise
        raise ValueError(
            f"The quantization {quantization} needs an NVIDIA GPU, and there is none here. Leave "
            "it out, or say quantization none."
        ) from None


def tile_vae(pipe: "StableDiffusionXLPipeline") -> None:
    """Encode and decode pictures larger than 512 pixels piece by piece, to save memory.

    By default diffusers' VAEs do so only above 1024.
    """
    pipe.vae.enable_tiling()
    pipe.vae.tile_sample_min_size = min(pipe.vae.tile_sample_min_size, 512)
    pipe.vae.tile_latent_min_size = pipe.vae.tile_sample_min_size // pipe.vae_scale_factor


def use_scheduler(pipe: "StableDiffusionXLPipeline", name: str) -> None:
    """Another sampler: one of `SCHEDULERS`, with the noise schedule of the base model.

    Beside a few-step LoRA that was merged before, "euler" begins at the last timestep.
    """
    import diffusers

    if name not in SCHEDULERS:
        raise ValueError(f"scheduler must be one of {', '.join(SCHEDULERS)}, not {name}.")
    # another sampler would hide what the base's own says of it
    check_base(pipe)
    changed = {}
    if name == "euler" and "few_step_lora" in options_of(pipe):
        # as Lightning LoRAs were taught; SDXL's own spacing is "leading": 751, 501, 251, 1
        changed["timestep_spacing"] = "trailing"
    kind = getattr(diffusers, SCHEDULERS[name])
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **changed)
    note_options(pipe, scheduler=name)


def merge_few_step_lora(pipe: "StableDiffusionXLPipeline", source: str | Path) -> None:
    """Add a few-step LoRA (LCM, Lightning) to the base model's own weights, as diffusers reads it.

    B-LoRAs then go on and off beside it. Any LoRA that is on the pipeline before is taken off.

    Args:
        source: a safetensors file, a folder with one, or an id on the Hugging Face hub
            ("user/repository" or "user/repository/file.safetensors"). The base model stays changed
            until it is loaded again; the same file is not merged a second time.

    Raises:
        BLoRAError: it is no such file, or none for this base model, which then is as it was; or
            another one is merged already.
        ValueError: the base model has 4 bits.
        PipelineError: another LoRA is fused into it.
    """
    if getattr(pipe.unet, "is_loaded_in_4bit", False):
        raise ValueError(
            "A few-step LoRA cannot be merged into a base model of 4 bits, whose steps are coarser "
            "than what it adds. Use quantization int8 or none."
        )
    check_unchanged(pipe)
    path, config = find_weights(source)
    sha256, merged = file_hash(path, path.stat().st_mtime_ns), options_of(pipe)
    if merged.get("few_step_sha256") == sha256:
        return
    with named_in_errors(path):
        if "few_step_lora" in merged:
            raise BLoRAError(
                f"{merged['few_step_lora']} is merged into this base model already, and cannot be "
                "taken out. Load the base model again before you merge another one."
            )
        with open_weights(path) as opened:
            beside, _ = read_beside(path, config, opened.keys())
            layers = check_few_step_lora(opened, beside)
        if path.suffix != ".safetensors":  # diffusers would take it for a pickled file
            raise BLoRAError("Rename it: its name has to end in .safetensors.")
        _load_and_fuse(pipe, path, layers)
    note_options(pipe, few_step_lora=str(source), few_step_sha256=sha256)


def _load_and_fuse(pipe: "StableDiffusionXLPipeline", path: Path, layers: int) -> None:
    """Let diffusers add a LoRA to the base model's own weights, if that has all of its layers."""
    from diffusers.utils import logging as diffusers_logging

    weights = {"weight_name": path.name, "use_safetensors": True}
    fused = False
    try:
        with quiet_libraries():
            # it logs the errors that it raises, at length
            diffusers_logging.set_verbosity(CRITICAL)
            pipe.load_lora_weights(str(path.parent), adapter_name=FEW_STEP_ADAPTER, **weights)
        components = list(pipe.get_list_adapters())
        found = sum(
            FEW_STEP_ADAPTER in getattr(module, "scaling", {})
            for component in components
            for module in getattr(pipe, component).modules()
        )
        if found != layers:
            raise BLoRAError(
                f"diffusers finds {found:,} of its {layers:,} layers in this base model. It is for "
                "another one, or its names are none that diffusers knows."
            )
        pipe.fuse_lora(components=components, adapter_names=[FEW_STEP_ADAPTER])
        fused = True
    except BLoRAError:
        raise
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        why = shown(" ".join(str(error).split()), 200)
        raise BLoRAError(f"diffusers cannot load it into this base model ({why}).") from None
    finally:
        if not fused and fused_lora(pipe):  # of some layers
            pipe.unfuse_lora()
        pipe.unload_lora_weights()


@torch.no_grad()
def encode_prompt(pipe: "StableDiffusionXLPipeline", prompt: str) -> tuple[Tensor, Tensor]:
    """`prompt_embeds` [1, tokens, dim] and `pooled_prompt_embeds` [1, dim] of one prompt."""
    embeds, _, pooled, _ = checked_and_encoded(pipe, prompt, do_classifier_free_guidance=False)
    return embeds, pooled


def checked_and_encoded(
    pipe: "StableDiffusionXLPipeline",
    prompt: str,
    negative_prompt: str | None = None,
    **options: Any,
) -> tuple[Tensor, ...]:
    """What `pipe.encode_prompt` gives, with our errors and warnings about the prompts."""
    for text in (prompt, negative_prompt or ""):
        check_prompt(text)
        warn_about_prompt(pipe, text)
    options |= {"negative_prompt": negative_prompt, "device": pipe._execution_device}
    with quiet_libraries():
        return pipe.encode_prompt(prompt, **options)
