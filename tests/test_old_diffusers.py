"""Files of diffusers 0.25, the version the original was made with.

Two written by it are kept here; ours are read by it where it is installed.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from blora_nb.lora import BLoRA, apply, remove
from old_diffusers import answer
from test_formats import made, mixed_rank

HERE = Path(__file__).parent


@pytest.mark.parametrize("way", ["layers", "peft"])
def test_files_written_by_diffusers_025_are_read(pipe, way):
    """tests/old_diffusers.py wrote them."""
    file = HERE / "files" / f"diffusers_0.25_{way}.safetensors"
    blora, raw = BLoRA.load(file), load_file(file)
    assert blora.halves == ("content", "style")
    assert blora.rank == 1
    assert len(blora.layers) == 32
    parts = ("lora.down", "lora.up") if way == "layers" else ("lora_A", "lora_B")
    for layer, pair in blora.layers.items():
        for part, matrix in zip(parts, pair):
            assert torch.equal(raw[f"unet.{layer}.{part}.weight"], matrix)
    remove(pipe)
    # without our code
    pipe.load_lora_weights(file)
    theirs = answer(pipe.unet)
    apply(pipe, blora, blora)
    torch.testing.assert_close(answer(pipe.unet), theirs, atol=1e-4, rtol=1e-4)
    remove(pipe)
    assert (answer(pipe.unet) - theirs).abs().max() > 1e-3


@pytest.mark.skipif(
    "OLD_DIFFUSERS_PYTHON" not in os.environ,
    reason="OLD_DIFFUSERS_PYTHON names no Python with diffusers 0.25 (see tests/old_diffusers.py)",
)
@pytest.mark.parametrize("format", ["diffusers", "kohya", "sgm"])
@pytest.mark.parametrize("kind", ["whole", "mixed ranks", "style half"])
def test_diffusers_025_reads_what_is_written(pipe, tmp_path, format, kind):
    blora = made(rank=mixed_rank if kind == "mixed ranks" else lambda layer: 4)
    blora = BLoRA({k: t * 0.2 for k, t in blora.state_dict.items()})
    blora = blora.style if kind == "style half" else blora
    file = blora.save(tmp_path / "x.safetensors", format)
    remove(pipe)
    without = answer(pipe.unet)
    apply(pipe, **dict.fromkeys(blora.halves, blora))
    torch.save({"with": answer(pipe.unet), "without": without}, tmp_path / "reference.pt")
    remove(pipe)
    command = [os.environ["OLD_DIFFUSERS_PYTHON"], HERE / "old_diffusers.py", "read"]
    command += [file, tmp_path / "reference.pt"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    found = re.search(r"difference (\S+) effect (\S+)", done.stdout)
    assert found, done.stdout + done.stderr
    difference, effect = map(float, found.groups())
    assert difference < 1e-5
    assert effect > 0.01
