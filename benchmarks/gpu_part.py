"""Measure one of the parts of `gpu.py`, in a process of its own.

    python benchmarks/gpu_part.py RESULT.json "train fp16" '{"base": "FOLDER", "steps": 40, …}'

What was measured, or why nothing was, is written to RESULT.json. In the dry run ("simulate") the
same functions run on the simulated GPU: tensors have shapes and no numbers, memory is that of the
tensors, and times are None. Only what the teaching model and the replay compute has numbers there.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

import peers
from gpu_parts import PARTS, Part
from report import HERE

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

    from blora_nb.lora import BLoRA

GIB = 2**30
Numbers = dict[str, Any]


class CannotRun(Exception):
    """There is nothing wrong, and still nothing to measure; says why."""


@dataclass(frozen=True)
class How:
    """How parts are measured, the same for all of them; given as JSON.

    Attributes:
        base: folder of an SDXL with random weights.
        simulate: on the simulated GPU, with a base of the given size.
        steps, warm_up: of a training, all of them and those not counted.
        inference_steps: of a picture.
        pictures: whose median is taken; also those of the folder for two GPUs.
    """

    base: str
    simulate: bool = False
    size: str = "full"
    steps: int = 40
    warm_up: int = 10
    inference_steps: int = 30
    pictures: int = 3
    original: str | None = None
    original_python: str | None = None
    advanced: str | None = None
    advanced_python: str | None = None

    def pipeline(self, part: Part) -> "StableDiffusionXLPipeline":
        """The base of a part, as its options say, on the GPU."""
        import torch

        from blora_nb.pipeline import load_pipeline
        from full_sdxl import full_sdxl
        from int8_layers import use_int8

        dtype = getattr(torch, part.options["dtype"])
        if self.simulate:
            pipe = full_sdxl(dtype, self.size)
            simulate_pictures(pipe)
        else:
            quantization = part.options.get("quantization", "none")
            pipe = load_pipeline(self.base, "cuda", dtype, quantization)
        if "int8_layers" in part.options:
            use_int8(pipe.unet, part.options["int8_layers"])
        return pipe

    def seconds(self, measured: float) -> float | None:
        """A time; None in the dry run, where times mean nothing."""
        return None if self.simulate else measured


def simulate_pictures(pipe: "StableDiffusionXLPipeline") -> None:
    """What has no numbers is no picture; a black one stands in for each."""
    from PIL import Image

    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    pipe.image_processor.postprocess = lambda decoded, **_: [
        Image.new("RGB", (side, side)) for _ in decoded
    ]


def memory() -> Numbers:
    """GiB at most so far, of all tensors, and with what PyTorch keeps; and now, of all programs."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return {
        "peak allocated, GiB": torch.cuda.max_memory_allocated() / GIB,
        "peak reserved, GiB": torch.cuda.max_memory_reserved() / GIB,
        "in use on the device, GiB": (total - free) / GIB,
    }


def synchronized(work: Callable[[], object]) -> Callable[[], None]:
    """The same work, and the GPU has done it."""
    import torch

    def waited() -> None:
        work()
        torch.cuda.synchronize()

    return waited


def seconds_between(times: list[tuple[int, float]], warm_up: int) -> float:
    """Median seconds of a step, from (step, seconds on the clock) after the warm-up.

    Raises:
        RuntimeError: there were too few.
    """
    counted = [(step, seconds) for step, seconds in times if step >= warm_up]
    if len(counted) < 2:
        raise RuntimeError(f"There were too few steps after the warm-up: {times}")
    return median(
        (end - start) / (last - first) for (first, start), (last, end) in pairwise(counted)
    )


# -------------------------------------------------------------------------------- kinds of parts


def train(part: Part, how: How) -> Numbers:
    """A B-LoRA of the package's settings for SDXL: what `blora_nb.training.train` does.

    Its last step, the weights' way back to the computer, is left out.
    """
    import torch

    from blora_nb.course.examples import example_picture
    from blora_nb.defaults import native_resolution
    from blora_nb.running.memory import unet_can_stay
    from blora_nb.running.placement import offloaded
    from blora_nb.settings import TrainingSettings
    from blora_nb.training import attach_lora, encode_image, run_steps
    from our_step_times import step_ends
    from peer_step_times import now

    pipe = how.pipeline(part)
    settings = TrainingSettings(
        resolution=native_resolution(pipe),
        max_train_steps=how.steps,
        gradient_checkpointing=part.options["mode"],
        compile=part.options.get("compile", False),
    )
    times: list[tuple[int, float]] = []
    whole: Numbers = {}

    def note(step: int) -> None:
        times.append((step, now()))
        if step >= how.warm_up and not whole:
            whole.update(memory())
            torch.cuda.reset_peak_memory_stats()

    torch.cuda.reset_peak_memory_stats()
    aside = [pipe.text_encoder, pipe.text_encoder_2]
    if not unet_can_stay(pipe, settings):
        aside.append(pipe.unet)
    with offloaded(*aside):
        picture = example_picture("star_sunset")
        moments = encode_image(pipe, picture, settings.resolution)
    attach_lora(pipe.unet, settings.rank)
    start = now()
    with step_ends(note):
        losses = run_steps(pipe, moments, settings, progress=False)
    of_steps = memory()
    return {
        "seconds a step": None if how.simulate else seconds_between(times, how.warm_up),
        "first step, s": how.seconds(times[0][1] - start),
        **{name: max(size, whole.get(name, 0)) for name, size in of_steps.items()},
        "peak of a step, GiB": of_steps["peak allocated, GiB"],
        "mean loss": None if how.simulate else mean(losses),
        "settings": f"{settings.resolution} px, batch 1, rank {settings.rank}",
    }


def peer(part: Part, how: How) -> Numbers:
    """The same steps in another project's script."""
    args = argparse.Namespace(**vars(how))
    with tempfile.TemporaryDirectory() as temporary:
        folder, result = Path(temporary), Path(temporary) / "result.json"
        base = peers.prepare(args, folder, "full", 1024)
        commands = peers.peer_commands(args, base, folder, "full", how.steps, cuda=True)
        python, script, *flags = commands[part.name]
        command = [python, str(HERE / "peer_step_times.py"), script, str(result), *flags]
        found, last_words = peers.run(command, result, cuda=True)
    if len(found["times"]) < how.steps:
        raise RuntimeError(last_words.strip().split("\n")[-1])
    versions = peers.versions(args, cuda=True)[part.options["peer"]]
    return {
        "seconds a step": seconds_between(found["times"], how.warm_up),
        "peak allocated, GiB": found["peak_mib"] / 1024,
        "peak reserved, GiB": found["reserved_mib"] / 1024,
        "mean loss": mean(found["losses"]),
        "settings": "1024 px, batch 1, rank 64, fp16",
        "made with": {name: versions[name] for name in ("torch", "diffusers")},
    }


def random_blora(unet: "UNet2DConditionModel", rank: int, seed: int) -> "BLoRA":
    """Both halves for a U-Net, of random weights that change a picture little."""
    import torch

    from blora_nb.blocks import target_modules
    from blora_nb.lora import BLoRA

    generator = torch.Generator().manual_seed(seed)
    state_dict: dict[str, torch.Tensor] = {}
    for name, layer in unet.named_modules():
        if re.fullmatch(target_modules(), name):
            a = torch.randn(rank, layer.in_features, generator=generator) / rank
            b = torch.randn(layer.out_features, rank, generator=generator) / 1000
            state_dict |= {f"unet.{name}.lora_A.weight": a, f"unet.{name}.lora_B.weight": b}
    return BLoRA(state_dict)


def generate(part: Part, how: How) -> Numbers:
    """A picture with both halves on, other alphas, other halves."""
    import torch

    from blora_nb import generation, lora
    from blora_nb.defaults import SDXL_DEFAULTS
    from growth import milliseconds

    pipe = how.pipeline(part)
    one, two = (random_blora(pipe.unet, SDXL_DEFAULTS.rank, seed) for seed in (0, 1))
    lora.apply(pipe, one, two)
    if part.options.get("compile"):
        pipe.unet.compile_repeated_blocks()

    def picture() -> None:
        generation.sample(
            pipe,
            "A [c] in [s] style",
            num_inference_steps=how.inference_steps,
            guidance_scale=SDXL_DEFAULTS.guidance_scale,
            progress=False,
        )

    torch.cuda.reset_peak_memory_stats()
    first = milliseconds(synchronized(picture), 1) / 1000
    later = first if how.simulate else milliseconds(synchronized(picture), how.pictures) / 1000
    peaks = memory()
    pairs = [(one, two), (two, one)]
    alphas = [(0.5, 0.8), (1.0, 0.3)]

    def change_alphas() -> None:
        lora.set_alphas(pipe, *alphas[0])
        alphas.reverse()

    def change_halves() -> None:
        pairs.reverse()
        lora.apply(pipe, *pairs[0])

    times = 1 if how.simulate else 15
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    return {
        "seconds a picture": how.seconds(later),
        "first picture, s": how.seconds(first),
        **peaks,
        "other alphas, ms": how.seconds(milliseconds(synchronized(change_alphas), times)),
        "other halves, ms": how.seconds(milliseconds(synchronized(change_halves), times)),
        "settings": f"{side} px, {how.inference_steps} steps, rank {SDXL_DEFAULTS.rank}",
    }


def teaching(part: Part, how: How) -> Numbers:
    """The teaching model: a B-LoRA with its own settings, the second of two; and its pictures."""
    from blora_nb.course.examples import example_picture
    from blora_nb.generation import generate
    from blora_nb.pipeline import load_pipeline
    from blora_nb.training import train
    from growth import milliseconds

    pipe = load_pipeline("tiny", "cuda")
    steps = how.steps if how.simulate else None
    made = []

    def learn() -> None:
        picture = example_picture("star_sunset")
        made.append(train(pipe, picture, progress=False, max_train_steps=steps))

    def draw() -> None:
        generate(pipe, "A [v]", made[0], made[0], num_inference_steps=steps, progress=False)

    if not how.simulate:
        learn()
        learn()
        draw()
    seconds = milliseconds(synchronized(learn), 1) / 1000
    picture = milliseconds(synchronized(draw), 1 if how.simulate else how.pictures) / 1000
    return {
        "seconds a B-LoRA": how.seconds(seconds),
        "seconds a picture": how.seconds(picture),
        **memory(),
        "settings": f"96 px, {len(made[-1].losses)} steps",
    }


def replay(part: Part, how: How) -> Numbers:
    """Whether the original's recorded losses and weights come out on this device, in float32."""
    import torch

    from replay import LOSS_TOLERANCE, WEIGHT_TOLERANCE, replay

    # convolutions would be rounded to 10 bits otherwise
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    with tempfile.TemporaryDirectory() as folder:
        found = replay("cuda", folder)
    return {
        "losses differ by, relative": found.loss_difference,
        "weights differ by": found.weight_difference,
        "holds": "yes" if found.holds else "no",
        "settings": f"allowed: {LOSS_TOLERANCE:g} and {WEIGHT_TOLERANCE:g}",
    }


def base(part: Part, how: How) -> Numbers:
    """SDXL with random weights, written by the oldest diffusers that is to read it."""
    folder = Path(how.base)
    start = time.perf_counter()
    if not how.simulate and not (folder / "model_index.json").exists():
        unfinished = folder.with_name(folder.name + ".unfinished")
        python = how.original_python if how.original else sys.executable
        command = [str(python), str(HERE / "random_sdxl.py"), str(unfinished), "full", "complete"]
        subprocess.run(["rm", "-rf", str(unfinished)], check=True)
        subprocess.run(command, check=True)
        unfinished.rename(folder)
    return {"seconds": how.seconds(time.perf_counter() - start), "settings": "float16"}


def two_gpus(part: Part, how: How) -> Numbers:
    """Pictures an hour that become B-LoRAs, on one GPU and on two."""
    import torch

    from blora_nb.course.examples import example_names, example_picture
    from growth import command_seconds

    if torch.cuda.device_count() < 2:
        raise CannotRun("one GPU")
    count, steps = 4, 100
    flags = ["--pretrained_model_name_or_path", how.base, "--mixed_precision", "fp16"]
    flags += ["--max_train_steps", str(steps)]
    found: Numbers = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "pictures"
        folder.mkdir()
        for name in example_names()[:count]:
            example_picture(name).save(folder / f"{name}.png")
        for processes, words in ((1, "one GPU"), (2, "two GPUs")):
            out = Path(temporary) / str(processes)
            seconds = command_seconds(folder, out, processes, flags)
            found[f"pictures an hour, {words}"] = 3600 * count / seconds
    found["settings"] = f"{count} pictures, {steps} steps each, fp16, loading included"
    return found


KINDS: dict[str, Callable[[Part, How], Numbers]] = {
    "train": train,
    "peer": peer,
    "generate": generate,
    "teaching": teaching,
    "replay": replay,
    "base": base,
    "two_gpus": two_gpus,
}


# ------------------------------------------------------------------------------------ the process


def end_with_parent() -> None:
    """End this process and its children when `gpu.py` is gone, however it ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    if os.getpgrp() == os.getpid():  # its own group, as gpu.py starts it
        threading.Thread(target=watch, daemon=True).start()


def one_line(error: BaseException) -> str:
    """What went wrong, for a cell of a table."""
    words = str(error).strip().split("\n")[0] or type(error).__name__
    return words.replace("|", "/")[:200]


def measured(part: Part, how: How) -> dict[str, Any]:
    """{"state", "numbers", "why"} of a part; no error leaves it."""
    from blora_nb.running.out_of_memory import is_out_of_memory

    try:
        numbers = KINDS[part.kind](part, how)
    except CannotRun as reason:
        return {"state": "cannot", "why": str(reason)}
    except ImportError as error:
        return {"state": "cannot", "why": f"a package is missing: {one_line(error)}"}
    except Exception as error:
        import traceback

        traceback.print_exc()
        words = one_line(error)
        out_of_memory = is_out_of_memory(error) or "out of memory" in words
        return {"state": "failed", "why": f"out of memory: {words}" if out_of_memory else words}
    return {"state": "followed" if how.simulate else "measured", "numbers": numbers}


def main() -> None:
    result, name, given = sys.argv[1:]
    how = How(**json.loads(given))
    part = next(part for part in PARTS if part.name == name)
    end_with_parent()
    context: Any = nullcontext()
    if how.simulate:
        from simulated_gpu import SimulatedGPU

        context = SimulatedGPU(numbers=part.kind in ("teaching", "replay"))
    with context:
        found = measured(part, how)
    Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
