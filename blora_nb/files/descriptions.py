"""What a B-LoRA is, in words for people: one line, a full description, HTML for a notebook."""

import html
import re
import shlex
from typing import TYPE_CHECKING

from blora_nb.blocks import COLOUR_OF_HALF, half_of
from blora_nb.errors import shown
from blora_nb.files.json_objects import json_object
from blora_nb.files.metadata import LICENCE, THUMBNAIL
from blora_nb.files.state_dict_checks import base_of

if TYPE_CHECKING:
    from blora_nb.lora import BLoRA

BASE_FLAGS = {"the teaching model": "", "SDXL": " --pretrained_model_name_or_path sdxl"}
FROM_METADATA = {
    "captions": "captions",
    "content alpha": "content_alpha",
    "style alpha": "style_alpha",
    "training": "training",
    "versions": "versions",
    "picture": "picture_sha256",
    "licence": LICENCE,
}


def describe(blora: "BLoRA") -> str:
    """One line: halves, rank, number of weights, prompt."""
    count = sum(tensor.numel() for tensor in blora.state_dict.values())
    line = f"B-LoRA with {' and '.join(blora.halves)}, rank {blora.rank}, {count:,} weights"
    prompt = prompt_of(blora)
    return f'{line}, prompt "{prompt}"' if prompt else line


def describe_in_full(blora: "BLoRA", source: object) -> str:
    """A description of several lines: what it is, what each layer changes, how to use it.

    Args:
        source: the file, folder or id, as the command to use it names it.
    """
    changes = norms(blora)
    known = facts(blora, changes)
    width = max(len(what) for what, _ in known)
    lines = [f"{what:<{width}}  {text}" for what, text in known]
    lines += ["", "norm of the change, layer by layer:"]
    for layer, norm in sorted(changes.items()):
        rank = blora.layers[layer][0].shape[0]
        lines.append(f"  {norm:9.4f}  rank {rank:<4} {layer}")
    lines += ["", "use it:", f"  {_command(blora, source)}"]
    return "\n".join(lines)


def describe_as_html(blora: "BLoRA") -> str:
    """Thumbnail, facts, and a bar for the change in each kind of layer of each half."""
    changes = norms(blora)
    left = 'style="text-align:left"'
    rows = "".join(
        f"<tr><th {left}>{html.escape(what)}</th><td {left}>{html.escape(text)}</td></tr>"
        for what, text in facts(blora, changes)
    )
    thumbnail = blora.metadata.get("modelspec.thumbnail", "")
    picture = ""
    if THUMBNAIL.fullmatch(thumbnail):
        alt = "the picture it was trained on"
        picture = f'<img src="{thumbnail}" alt="{alt}" style="float:right">'
    return f"<div>{picture}<table>{rows}</table>{_bars(changes)}</div>"


def prompt_of(blora: "BLoRA") -> str | None:
    """The prompt that means the training picture; None if the file does not say.

    Of pictures with captions it is the first one's.
    """
    training = json_object(blora.metadata.get("training", "")) or {}
    trigger = blora.metadata.get("modelspec.trigger_phrase")
    prompt = trigger or training.get("instance_prompt")
    return shown(prompt, 300) if prompt else None


def example_prompt(blora: "BLoRA") -> str:
    """A prompt to try it with; of one half alone, a prompt that says the other half in words."""
    if blora.halves == ("content",):
        return "A [c] in watercolour style"
    if blora.halves == ("style",):
        return "A cat in [s] style"
    return prompt_of(blora) or "A [v]"


def norms(blora: "BLoRA") -> dict[str, float]:
    """The Frobenius norm of the change of each layer's weight, lora_B @ lora_A, by layer name."""
    # |BA|² = sum(BᵀB * AAᵀ), in matrices of [rank, rank]
    return {
        layer: float(((b.T @ b) * (a @ a.T)).sum().clamp(min=0).sqrt())
        for layer, (a, b) in blora.layers.items()
    }


def facts(blora: "BLoRA", changes: dict[str, float]) -> list[tuple[str, str]]:
    """What can be said about a B-LoRA, given its `norms`: (what, text), a line each."""
    lines = [("what", describe(blora))]
    if blora.format:
        lines.append(("format", blora.format))
    for half in blora.halves:
        layers = [layer for layer in changes if half_of(layer) == half]
        ranks = sorted({blora.layers[layer][0].shape[0] for layer in layers})
        listed = ", ".join(map(str, ranks))
        norm = sum(changes[layer] ** 2 for layer in layers) ** 0.5
        text = f"{len(layers)} layers, rank {listed}, norm of the change {norm:.3g}"
        lines.append((f"{half} half", text))
    lines.append(("base", _base(blora)))
    lines.append(("prompt", prompt_of(blora) or "not in the file; the original trains with: A [v]"))
    for what, key in FROM_METADATA.items():
        if key in blora.metadata:
            plain = blora.metadata[key].replace('"', "").strip("{}")
            lines.append((what, shown(plain, 400)))
    lines.append(("fingerprint", blora.fingerprint))
    return lines + [("note", note) for note in blora.notes]


def _base(blora: "BLoRA") -> str:
    """The kind of base model, and the name and hash of the model it was trained on."""
    kind = base_of(blora.state_dict)
    name = blora.metadata.get("base_model") or blora.metadata.get("ss_sd_model_name")
    if not name:
        return kind
    sha256 = blora.metadata.get("base_model_sha256")
    of_hash = f", sha256 {shown(sha256, 12)}" if sha256 else ""
    return f"{kind} ({shown(name)}{of_hash})"


def _command(blora: "BLoRA", source: object) -> str:
    """The command that draws with the halves of a B-LoRA."""
    base = BASE_FLAGS.get(base_of(blora.state_dict), " --pretrained_model_name_or_path ITS_BASE")
    halves = " ".join(f"--{half}_B_LoRA {shlex.quote(str(source))}" for half in blora.halves)
    prompt = shlex.quote(example_prompt(blora))
    return f"blora generate --prompt {prompt} {halves}{base} --output_path outputs"


def _bars(changes: dict[str, float]) -> str:
    """An SVG: the norm of the change by kind of layer, averaged over the transformer layers."""
    norms_of: dict[tuple[str, str], list[float]] = {}
    for layer, norm in changes.items():
        kind = re.sub(r"transformer_blocks\.\d+\.", "", layer.split(".attentions.")[1][2:])
        half = str(half_of(layer))
        norms_of.setdefault((half, kind), []).append(norm)
    means = {group: sum(values) / len(values) for group, values in sorted(norms_of.items())}
    longest = max(means.values()) or 1
    bars = ""
    for row, ((half, kind), mean) in enumerate(means.items()):
        top = 14 * row
        width = 220 * mean / longest
        fill = COLOUR_OF_HALF[half]
        bars += (
            f'<text x="0" y="{top + 11}">{half} {kind}</text>'
            f'<rect x="150" y="{top + 2}" width="{width:.1f}" height="10" fill="{fill}"/>'
            f'<text x="375" y="{top + 11}">{mean:.3g}</text>'
        )
    label = "mean norm of the change by kind of layer"
    size = f'width="440" height="{14 * len(means)}" font-size="11" font-family="sans-serif"'
    return f'<svg role="img" aria-label="{label}" {size}>{bars}</svg>'
