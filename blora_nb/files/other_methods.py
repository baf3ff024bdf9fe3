"""What is refused by name: other methods than LoRA, LoHa and LoKr, and LoRAs for other models.

docs/formats.md lists the methods, `REFUSED_METHODS` and then `CHANGE_THE_BASE`, in this order. The
methods of PEFT are in its own table, with their prefixes.
"""

import re
from collections.abc import Iterable

from blora_nb.errors import BLoRAError, shown
from blora_nb.files.setting_values import NO, is_true, plain_text

# methods, and a regular expression for the names of their weights
REFUSED_METHODS = {
    "(IA)^3": r"\.on_input$|ia3_l",
    "OFT": r"(?<![a-z])oft_",
    "DoRA": r"dora_scale|lora_magnitude_vector",
    "GLoRA": r"\.[ab][12]\.weight$|glora_",
    "LoHa of convolutions": r"hada_t",
    "LoKr of convolutions": r"lokr_t",
    "LoCon with a middle matrix": r"lora_mid",
    "LyCORIS with a scalar": r"\.scalar$",
    "T-LoRA": r"\.[pq]_layer\b|lambda_layer",
    "full weight differences": r"\.diff(_b)?$|\.set_weight$",
    "trained norms": r"[wb]_norm",
    "LoRA with a bias": r"lora_B(?:\.[\w-]{1,80})?\.bias$",
    "KaSA": r"lora_diag",
    "AdaLoRA": r"lora_E\b|ranknum",
    "Bone": r"(?<![a-z])bone_",
    "Control-LoRA": r"lora_controlnet",
}
# methods of PEFT whose prefix is that of LoRA, or that are read
NOT_BY_PREFIX = ("LORA", "ADALORA", "LOHA", "LOKR")
# values of init_lora_weights with which PEFT takes the first matrices off the base model's weights
CHANGE_THE_BASE = {
    "pissa": "PiSSA",
    "olora": "OLoRA",
    "corda": "CorDA",
    "loftq": "LoftQ",
    "lora_ga": "LoRA-GA",
}
CONVERTIBLE = {"PiSSA", "OLoRA", "CorDA", "LoRA-GA"}
OTHER_MODELS = {
    "FLUX or Hunyuan": r"double_blocks|single_blocks|single_transformer_blocks",
    "Stable Diffusion 3": r"joint_blocks|context_embedder",
    "Stable Diffusion 1 or 2": (
        r"up_blocks[._][123][._]attentions|output_blocks[._](?:[6-9]|1[01])[._]1[._]"
    ),
}


def method_of(key: str) -> str | None:
    """The refused method to which the name of a weight belongs, or None."""
    for method, mark in REFUSED_METHODS.items():
        if re.search(mark, key):
            return method
    # imported for names that are no LoRA's only: it takes seconds
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    for kind, prefix in PEFT_TYPE_TO_PREFIX_MAPPING.items():
        if kind.value not in NOT_BY_PREFIX and re.search(rf"(?<![a-z]){prefix}", key):
            return f"PEFT's {kind.value}"
    return None


def refuse_method(key: str) -> None:
    """Raise a BLoRAError if the name of a weight belongs to a refused method."""
    method = method_of(key)
    if method:
        raise BLoRAError(
            f"{shown(key)} belongs to {method}; only plain LoRA (with lora_A and lora_B, or down "
            "and up), LoHa and LoKr can be read."
        )


def model_of_names(keys: Iterable[str]) -> str | None:
    """The model, other than SDXL, for which the weights of these names seem to be made."""
    text = "\n".join(keys)
    return next((model for model, mark in OTHER_MODELS.items() if re.search(mark, text)), None)


def refuse_method_of_settings(values: dict, place: str) -> None:
    """Raise a BLoRAError if settings are not those of a plain LoRA on the unchanged base model."""
    method = str(values.get("peft_type") or "LORA").rpartition(".")[2]
    if method.upper() != "LORA":
        raise BLoRAError(
            f"Its settings ({place}) say that it is PEFT's {shown(method, 40)}; of PEFT's methods "
            "only LORA can be read."
        )
    for name in ("use_dora", "dora_wd"):
        if is_true(values.get(name), name, place):
            raise BLoRAError(
                f"It is a DoRA, as {place} says ({name}); only plain LoRA can be read."
            )
    if plain_text(values.get("kasa_config")).lower() not in NO:
        raise _changes_the_base("KaSA", "kasa_config", place)
    init = plain_text(values.get("init_lora_weights"))
    letters = re.sub(r"[^a-z]", "", init.lower())
    for start, name in CHANGE_THE_BASE.items():
        if letters.startswith(start.replace("_", "")):
            raise _changes_the_base(name, f"init_lora_weights {shown(init, 40)}", place)


def _changes_the_base(name: str, why: str, place: str) -> BLoRAError:
    remedy = "Train it again with another init_lora_weights, for instance gaussian."
    if name in CONVERTIBLE:
        remedy = (
            "Save it again from PEFT as a plain LoRA: "
            "save_pretrained(…, path_initial_model_for_weight_conversion=…)."
        )
    return BLoRAError(
        f"It is an adapter made with {name} ({why} in {place}), which changes the base model's own "
        f"weights as well; on the unchanged base model it would act wrongly. {remedy}"
    )
