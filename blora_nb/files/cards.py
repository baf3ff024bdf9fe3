"""A B-LoRA on the Hugging Face hub: its model card, and the upload."""

import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from blora_nb.assets import SDXL
from blora_nb.files.descriptions import example_prompt, facts, norms, prompt_of
from blora_nb.files.locating import FILE_NAME
from blora_nb.files.metadata import LICENCE, MADE_INSTANTLY
from blora_nb.files.paths import safe_name
from blora_nb.files.state_dict_checks import base_of

if TYPE_CHECKING:
    from blora_nb.lora import BLoRA

# from huggingface.co/docs/hub/repositories-licenses; the hub shows all others as "other"
LICENSES = {"mit", "apache-2.0", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0"}
LICENSES |= {"cc-by-nd-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0", "openrail", "openrail++"}
LICENSES |= {"creativeml-openrail-m", "bigscience-openrail-m", "gpl-3.0", "unlicense"}
LICENSES |= {"unknown", "other"}

CARD = """\
---
{{ card_data }}
---
# {{ repo_id.split("/")[-1] }}

A B-LoRA ([Frenkel et al., 2024](https://arxiv.org/abs/2403.14572)): LoRA on two transformer blocks
of {{ kind }}{{ made }}. The content half holds what is in the picture, the style half how it looks.
Each can be used alone, or with the other half of another B-LoRA.

| | |
|---|---|
{% for what, text in facts -%}
| {{ what }} | {{ text.replace("|", "/") }} |
{% endfor %}
```python
from blora_nb import generate, load_pipeline

pipe = load_pipeline("{{ base }}")
generate(pipe, {{ prompt }}, {{ halves }})
```

In plain diffusers: `pipe.load_lora_weights("{{ repo_id }}")` applies {{ what_is_applied }}.
"""


def model_card(blora: "BLoRA", repo_id: str) -> str:
    """The text of a README.md for the Hugging Face hub, with the header that the hub reads."""
    from huggingface_hub import ModelCard, ModelCardData

    is_sdxl = base_of(blora.state_dict) == "SDXL"
    base = _base_on_hub(blora)
    data = ModelCardData(
        **_license(blora.metadata.get(LICENCE)),
        base_model=base,
        tags=["text-to-image", "diffusers", "lora", "b-lora"]
        + (["stable-diffusion-xl"] if is_sdxl else []),
        instance_prompt=prompt_of(blora),
    )
    card = ModelCard.from_template(
        data,
        template_str=CARD,
        repo_id=repo_id,
        kind="SDXL" if is_sdxl else "a model with SDXL's blocks",
        made=_how_it_was_made(blora.metadata),
        facts=facts(blora, norms(blora)),
        base=base or ("sdxl" if is_sdxl else "tiny"),
        prompt=json.dumps(example_prompt(blora), ensure_ascii=False),
        halves=", ".join(f'{half}="{repo_id}"' for half in blora.halves),
        what_is_applied="both halves" if len(blora.halves) > 1 else "it",
    )
    return str(card)


def _base_on_hub(blora: "BLoRA") -> str | None:
    """The id of the base model on the hub; None for a folder or the teaching model."""
    name = blora.metadata.get("base_model")
    if name:
        return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else None
    return SDXL if base_of(blora.state_dict) == "SDXL" else None


def _how_it_was_made(metadata: dict[str, str]) -> str:
    """The end of a sentence, as far as the file says it."""
    if metadata.get("made_by") == MADE_INSTANTLY:
        return ", computed from one picture without training"
    if "learned" in metadata and "picture_sha256" in metadata:
        return ", trained on one picture"
    return ""


def _license(name: str | None) -> dict[str, str]:
    """The header's entries for a licence; the hub refuses one that it does not know by name."""
    if not name:
        return {}
    if name.lower() in LICENSES:
        return {"license": name.lower()}
    return {"license": "other", "license_name": safe_name(name).lower()}


def upload(
    blora: "BLoRA",
    repo_id: str,
    private: bool = True,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Put a B-LoRA with a model card on the Hugging Face hub, in one commit.

    Args:
        repo_id: "user/name"; made if it does not exist.
        private: whether a new repository is private.
        token: of an account that may write there; by default the one of `hf auth login`.
        endpoint: another hub than huggingface.co.

    Returns:
        The address of the commit.

    Raises:
        FileExistsError: the repository has weights or a model card already; nothing was changed.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint, token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    for name in (FILE_NAME, "README.md"):
        if api.file_exists(repo_id, name):
            raise FileExistsError(
                f"{repo_id} has a {name} already. Choose another name, or remove it there first."
            )
    message = f"Add a B-LoRA ({' and '.join(blora.halves)})"
    with tempfile.TemporaryDirectory() as folder:
        blora.copy().save(folder)
        (Path(folder) / "README.md").write_text(model_card(blora, repo_id), encoding="utf-8")
        commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
    return str(commit)
