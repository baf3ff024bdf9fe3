"""What a picture was made with: kept on the picture, written into its file, read again to make the same one.

The names are those of `python -m blora_nb generate`, so that `--like` can take a picture's record for what was typed.
"""

from blora_nb.blocks import HALVES
from blora_nb.defaults import SCHEDULERS
from blora_nb.errors import shown
from blora_nb.files.images import read_settings
from blora_nb.files.metadata import model_hash, versions
from blora_nb.guards.changed_pipelines import changes
from blora_nb.lora import applied_fingerprints
from blora_nb.registry import options_of


def record(pipe, prompt, negative_prompt, content, style, content_alpha, style_alpha):
    """What the pictures of one call have in common, once the halves are on the pipeline.

    Args:
        content, style: from `adapters.loaded`. Their files are named where they have some; their fingerprints always.
    """
    name, sha256 = model_hash(pipe)
    found = {"prompt": prompt, "negative_prompt": negative_prompt, **options_of(pipe)}
    for half, given, alpha in zip(HALVES, (content, style), (content_alpha, style_alpha)):
        if given is not None:
            found |= {f"{half}_alpha": alpha} | half_record(
                half, given, applied_fingerprints(pipe)[half]
            )
    if found.get("scheduler") and type(pipe.scheduler).__name__ != SCHEDULERS[found["scheduler"]]:
        found["scheduler"] = None  # somebody has put another one in its place
    found |= changes(pipe)
    found |= {
        "device": pipe._execution_device.type,
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "vae_tiling": bool(getattr(pipe.vae, "use_tiling", False)),
    }
    return found | {"base_model": name, "base_model_sha256": sha256, "versions": versions()}


def half_record(half, given, fingerprint):
    """The sources and weights of one half, and the fingerprint of what they make together."""
    parts = [
        item if isinstance(item, tuple) else (item, 1.0)
        for item in (given if isinstance(given, list) else [given])
    ]
    sources = [part.source for part, _ in parts]
    found = {f"{half}_fingerprint": fingerprint}
    if all(sources):
        found |= {f"{half}_B_LoRA": sources} | (
            {f"{half}_weights": [float(weight) for _, weight in parts]}
            if any(weight != 1 for _, weight in parts)
            else {}
        )
    return found


DECISIVE = ("content_fingerprint", "style_fingerprint", "base_model", "base_model_sha256")
DECISIVE += ("few_step_sha256", "image_sha256", "control_image_sha256", "controlnet", "dtype")
DECISIVE += ("device", "quantization", "versions", "fused_lora", "freeu", "attention_processors")


def differences(picture, now):
    """Lines that say where a new record differs from a picture's in what decides its pixels; none where it can be made again bit by bit."""
    then = read_settings(picture)
    return [
        f"{what} was {shown(then.get(what))} and is {shown(now.get(what))}; the picture may not be the same."
        for what in DECISIVE
        if then.get(what) != now.get(what)
    ]
