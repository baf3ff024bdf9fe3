"""The parts of `gpu.py`: what is measured on a GPU, and in which order, the shortest first."""

from dataclasses import dataclass, field
from typing import Any

NOT_SIMULATED = "not in the dry run: "
COMPILES = f"{NOT_SIMULATED}only a real GPU has code to compile for"
BITSANDBYTES = f"{NOT_SIMULATED}bitsandbytes asks for a real GPU"
TORCHAO = f"{NOT_SIMULATED}torchao's tensors do not go on the simulated GPU"
FOLLOWED = f"{NOT_SIMULATED}followed.py follows the peers' steps on the simulated GPU"


@dataclass(frozen=True)
class Part:
    """One process of its own.

    Attributes:
        kind: the function of gpu_part.py that measures it, and its table in the report.
        options: of that function.
        needs: packages without which it cannot run.
        not_simulated: why the dry run leaves it out, if it does.
    """

    name: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    not_simulated: str = ""


def training_parts() -> list[Part]:
    """One B-LoRA of SDXL with the package's settings: formats, what is recomputed, compiled."""
    modes = {"none": "", "partial": ", two blocks recomputed", "full": ", activations recomputed"}
    found = []
    for short, dtype in (("fp16", "float16"), ("bf16", "bfloat16")):
        for mode, words in modes.items():
            options: dict[str, Any] = {"dtype": dtype, "mode": mode}
            found.append(Part(f"train {short}{words}", "train", options))
    for quantization in ("int8", "nf4"):
        for mode, words in modes.items():
            options = {"dtype": "float16", "mode": mode, "quantization": quantization}
            name, needs = f"train {quantization}{words}", ("bitsandbytes",)
            found.append(Part(name, "train", options, needs, BITSANDBYTES))
    for short, dtype in (("fp16", "float16"), ("bf16", "bfloat16")):
        options = {"dtype": dtype, "mode": "none", "compile": True}
        found.append(Part(f"train {short}, blocks compiled", "train", options, (), COMPILES))
    options = {"dtype": "float16", "mode": "none", "quantization": "nf4", "compile": True}
    name, needs = "train nf4, blocks compiled", ("bitsandbytes",)
    found.append(Part(name, "train", options, needs, BITSANDBYTES))
    return found


def eight_bit_parts() -> list[Part]:
    """Frozen layers kept in 8 bits, and those kept and computed in 8 bits (W8A8)."""
    found = []
    plain = {"dtype": "bfloat16", "mode": "none"}
    for kind in ("train", "generate"):
        for compiled in (False, True):
            options = {**plain, "int8_layers": "own", "compile": compiled}
            name = f"{kind} bf16, W8A8, PyTorch's int8 product"
            if compiled:
                found.append(Part(f"{name}, blocks compiled", kind, options, (), COMPILES))
            else:
                found.append(Part(name, kind, options))
    options = {"dtype": "float16", "mode": "none", "quantization": "int8"}
    options["int8_layers"] = "bitsandbytes"
    name = "W8A8, bitsandbytes without outliers"
    for kind in ("train", "generate"):
        part = Part(f"{kind} int8, {name}", kind, options, ("bitsandbytes",), BITSANDBYTES)
        found.append(part)
    options = {**plain, "int8_layers": "torchao weights"}
    name = "train bf16, kept in 8 bits by torchao"
    found.append(Part(name, "train", options, ("torchao",), TORCHAO))
    for compiled in (False, True):
        options = {**plain, "int8_layers": "torchao dynamic", "compile": compiled}
        name = "generate bf16, W8A8, torchao" + (", blocks compiled" if compiled else "")
        found.append(Part(name, "generate", options, ("torchao",), TORCHAO))
    return found


def generation_parts() -> list[Part]:
    """Pictures, alphas, and other halves."""
    found = []
    for short, dtype in (("fp16", "float16"), ("bf16", "bfloat16")):
        found.append(Part(f"generate {short}", "generate", {"dtype": dtype}))
    for short, dtype in (("fp16", "float16"), ("bf16", "bfloat16")):
        options = {"dtype": dtype, "compile": True}
        found.append(Part(f"generate {short}, blocks compiled", "generate", options, (), COMPILES))
    return found


def peer_parts() -> list[Part]:
    """The peers' scripts, under the names of `peers.peer_commands`."""
    advanced = "diffusers' advanced script"
    names = [
        ("original", "original script"),
        ("original", "original script with gradient checkpointing"),
        ("advanced", f"{advanced}, latents cached"),
        ("advanced", f"{advanced} with gradient checkpointing, latents cached"),
    ]
    return [Part(name, "peer", {"peer": peer}, (), FOLLOWED) for peer, name in names]


PARTS = [
    Part("the original's recorded run, replayed", "replay"),
    Part("teaching model", "teaching"),
    Part("base with random weights", "base"),
    *training_parts(),
    *generation_parts(),
    *peer_parts(),
    *eight_bit_parts(),
    Part("a folder of pictures on two GPUs", "two_gpus"),
]
