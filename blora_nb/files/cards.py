"""What a B-LoRA is, for people: the metadata in its file, a description as text and HTML, a model card, the Hugging Face hub."""

import html as escaping
import json
import re
import shlex
import tempfile
from pathlib import Path

from blora_nb.blocks import half_of
from blora_nb.errors import shown
from blora_nb.files.images import safe_name
from blora_nb.files.locating import FILE_NAME
from blora_nb.files.state_dict_checks import SDXL, base_of

# what the hub knows by name, of its list at huggingface.co/docs/hub/repositories-licenses; others it shows as "other", with their name
LICENSES = (
    "mit",
    "apache-2.0",
    "cc0-1.0",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc-by-nd-4.0",
    "cc-by-nc-nd-4.0",
    "cc-by-nc-sa-4.0",
    "openrail",
    "openrail++",
    "creativeml-openrail-m",
    "gpl-3.0",
    "bigscience-openrail-m",
    "unlicense",
    "unknown",
    "other",
)
THUMBNAIL = re.compile(r"data:image/(?:jpeg|png|webp);base64,[A-Za-z0-9+/]{40,400000}={0,2}")


def norms(blora):
    """The Frobenius norm of each layer's change of weight, lora_B @ lora_A: layer name to number."""
    return {
        layer: float(((b.T @ b) * (a @ a.T)).sum().clamp(min=0).sqrt())
        for layer, (a, b) in blora.layers.items()
    }


def facts(blora, changes):
    """What can be said about a B-LoRA, given its `norms`, in a line each: a list of (what, text)."""
    lines = [("what", describe(blora)), *([("format", blora.format)] if blora.format else [])]
    for half in blora.halves:
        layers = [layer for layer in changes if half_of(layer + ".") == half]
        ranks = sorted({blora.layers[layer][0].shape[0] for layer in layers})
        change = sum(changes[layer] ** 2 for layer in layers) ** 0.5
        lines.append(
            (
                f"{half} half",
                f"{len(layers)} layers, rank {', '.join(map(str, ranks))}, norm of the change {change:.3g}",
            )
        )
    base = blora.metadata.get("base_model") or blora.metadata.get("ss_sd_model_name")
    sha256 = blora.metadata.get("base_model_sha256", "")
    lines.append(
        (
            "base",
            base_of(blora.state_dict)
            + (
                f" ({shown(base)}{', sha256 ' + shown(sha256, 12) if sha256 else ''})"
                if base
                else ""
            ),
        )
    )
    lines.append(("prompt", prompt_of(blora) or "not in the file; the original trains with: A [v]"))
    for what, key in (
        ("training", "training"),
        ("versions", "versions"),
        ("picture", "picture_sha256"),
        ("licence", "modelspec.license"),
    ):
        if key in blora.metadata:
            lines.append((what, shown(blora.metadata[key].replace('"', "").strip("{}"), 400)))
    lines.append(("fingerprint", blora.fingerprint))
    return lines + [("note", note) for note in blora.notes]


def example_prompt(blora):
    """A prompt to try it with: its own for both halves, for one alone one that asks for the other in words."""
    return {
        ("content", "style"): prompt_of(blora) or "A [v]",
        ("content",): "A [c] in watercolour style",
        ("style",): "A cat in [s] style",
    }[blora.halves]


def usage(blora, source):
    """The commands that use a B-LoRA's halves."""
    base = {"the teaching model": "", "SDXL": " --pretrained_model_name_or_path sdxl"}.get(
        base_of(blora.state_dict), " --pretrained_model_name_or_path ITS_BASE"
    )
    flags = " ".join(f"--{half}_B_LoRA {shlex.quote(str(source))}" for half in blora.halves)
    prompt = example_prompt(blora)
    return f"python -m blora_nb generate --prompt {shlex.quote(prompt)} {flags}{base} --output_path outputs"


def inspect(blora, source):
    """A description of several lines: what it is, what each layer changes, how to use it."""
    changes = norms(blora)
    known = facts(blora, changes)
    width = max(len(what) for what, _ in known)
    lines = [f"{what:<{width}}  {text}" for what, text in known] + [
        "",
        "norm of the change, layer by layer:",
    ]
    lines += [
        f"  {norm:9.4f}  rank {blora.layers[layer][0].shape[0]:<4} {layer}"
        for layer, norm in sorted(changes.items())
    ]
    return "\n".join([*lines, "", "use it:", f"  {usage(blora, source)}"])


def html(blora):
    """The description for a notebook: thumbnail, facts, and a bar for the change in each transformer layer of each half."""
    changes = norms(blora)
    rows = "".join(
        f'<tr><th style="text-align:left">{escaping.escape(what)}</th><td style="text-align:left">{escaping.escape(text)}</td></tr>'
        for what, text in facts(blora, changes)
    )
    thumbnail = blora.metadata.get("modelspec.thumbnail", "")
    picture = (
        f'<img src="{thumbnail}" alt="the picture it was trained on" style="float:right">'
        if THUMBNAIL.fullmatch(thumbnail)
        else ""
    )
    return f"<div>{picture}<table>{rows}</table>{_bars(changes)}</div>"


def _bars(changes):
    """An SVG with the norm of the change of each kind of layer, averaged over the transformer layers, half by half."""
    groups = {}
    for layer, norm in changes.items():
        kind = re.sub(r"transformer_blocks\.\d+\.", "", layer.split(".attentions.")[1][2:])
        groups.setdefault((half_of(layer + "."), kind), []).append(norm)
    means = {group: sum(values) / len(values) for group, values in sorted(groups.items())}
    longest, bars = max(means.values()) or 1, ""
    for row, ((half, kind), mean) in enumerate(means.items()):
        colour = {"content": "#0072b2", "style": "#d55e00"}[half]
        bars += f'<text x="0" y="{14 * row + 11}">{half} {kind}</text><rect x="150" y="{14 * row + 2}" width="{220 * mean / longest:.1f}" height="10" fill="{colour}"/><text x="375" y="{14 * row + 11}">{mean:.3g}</text>'
    return f'<svg role="img" aria-label="mean norm of the change by kind of layer" width="440" height="{14 * len(means)}" font-size="11" font-family="sans-serif">{bars}</svg>'


def model_card(blora, repo_id):
    """The text of a README.md for the Hugging Face hub, with the header the hub reads."""
    from huggingface_hub import ModelCardData

    prompt, license = prompt_of(blora), blora.metadata.get("modelspec.license")
    base = blora.metadata.get("base_model", "")
    base = (
        (base if re.fullmatch(r"[\w.-]+/[\w.-]+", base) else None)
        if base
        else (SDXL if base_of(blora.state_dict) == "SDXL" else None)
    )
    tags = [
        "text-to-image",
        "diffusers",
        "lora",
        "b-lora",
        *(["stable-diffusion-xl"] if base_of(blora.state_dict) == "SDXL" else []),
    ]
    named = (
        {"license": license and license.lower()}
        if license is None or license.lower() in LICENSES
        else {"license": "other", "license_name": safe_name(license).lower()}
    )
    data = ModelCardData(**named, base_model=base, tags=tags, instance_prompt=prompt)
    table = "\n".join(
        f"| {what} | {text.replace('|', '/')} |" for what, text in facts(blora, norms(blora))
    )
    return f"""---
{data.to_yaml()}
---
# {repo_id.split("/")[-1]}

A B-LoRA ([Frenkel et al., 2024](https://arxiv.org/abs/2403.14572)): LoRA on two transformer blocks of SDXL, trained from one
picture. The content half holds what is in the picture, the style half how it looks; each can be used alone or with the
other half of another B-LoRA.

| | |
|---|---|
{table}

```python
from blora_nb.generation import generate
from blora_nb.pipeline import load_pipeline

pipe = load_pipeline("{base or ("sdxl" if base_of(blora.state_dict) == "SDXL" else "tiny")}")
generate(pipe, {json.dumps(example_prompt(blora), ensure_ascii=False)}, {", ".join(f'{half}="{repo_id}"' for half in blora.halves)})
```

In plain diffusers: `pipe.load_lora_weights("{repo_id}")` applies {"both halves" if len(blora.halves) > 1 else "it"}.
"""


def upload(blora, repo_id, private=True, token=None, endpoint=None):
    """Put a B-LoRA with a model card on the Hugging Face hub, in one commit.

    Args:
        repo_id: "user/name"; made if it is not there. private: whether a new repository is.
        token: of an account that may write there; by default the one of `hf auth login`.
        endpoint: another hub than huggingface.co.

    Returns:
        The address of the commit.

    Raises:
        FileExistsError: the repository has weights already; nothing was changed.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint, token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    if api.file_exists(repo_id, FILE_NAME):
        raise FileExistsError(
            f"{repo_id} has a {FILE_NAME} already. Choose another name, or remove it there first."
        )
    with tempfile.TemporaryDirectory() as folder:
        blora.save(folder)
        (Path(folder) / "README.md").write_text(model_card(blora, repo_id), encoding="utf-8")
        return str(
            api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=f"Add a B-LoRA ({' and '.join(blora.halves)})",
            )
        )


def describe(blora):
    """One line about a B-LoRA, for people."""
    count = sum(t.numel() for t in blora.state_dict.values())
    prompt = prompt_of(blora)
    return f"B-LoRA with {' and '.join(blora.halves)}, rank {blora.rank}, {count:,} weights" + (
        f', prompt "{prompt}"' if prompt else ""
    )


def prompt_of(blora):
    """The prompt that means the picture it was trained on, or None where the file does not say."""
    try:
        prompt = json.loads(blora.metadata.get("training", "{}"))["instance_prompt"]
    except (ValueError, KeyError, TypeError, RecursionError):
        prompt = blora.metadata.get("modelspec.trigger_phrase")
    return shown(prompt, 300) if prompt else None
