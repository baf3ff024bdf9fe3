"""Bases of another kind of diffusion are refused by name, before anything is trained or drawn."""

import json
import shutil

import diffusers
import pytest

from blora_nb.assets import TINY_SDXL
from blora_nb.errors import BaseError
from blora_nb.generation import generate, sample
from blora_nb.inspection import record_attention
from blora_nb.pipeline import load_pipeline, use_scheduler
from blora_nb.training import train
from blora_nb.widgets.panels import AlphaPanel
from helpers import refused, run_here

FLOW = {"prediction_type": "flow_prediction"}
CONTINUOUS = {"prediction_type": "v_prediction", "timestep_type": "continuous"}
KINDS = {  # scheduler, its changes, words of the message
    "Playground": ("EDMDPMSolverMultistepScheduler", {}, "EDMDPMSolverMultistepScheduler .EDM."),
    "EDM Euler": ("EDMEulerScheduler", {}, "EDMEulerScheduler"),
    "flow": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, "FlowMatchEuler.*flow matching"),
    "flow Heun": ("FlowMatchHeunDiscreteScheduler", {}, "FlowMatchHeun"),
    "cascade": ("DDPMWuerstchenScheduler", {}, "DDPMWuerstchen"),
    "sample": ("EulerDiscreteScheduler", {"prediction_type": "sample"}, "predicts .*sample"),
    "flow sigmas": ("UniPCMultistepScheduler", {"use_flow_sigmas": True}, "use_flow_sigmas"),
    "flow prediction": ("DPMSolverMultistepScheduler", FLOW, "flow_prediction"),
    "continuous": ("EulerDiscreteScheduler", CONTINUOUS, "continuous"),
    "shifted": ("CogVideoXDDIMScheduler", {}, "shifted noise"),
    "exp": ("HeunDiscreteScheduler", {"beta_schedule": "exp"}, "beta_schedule"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_another_kind_of_diffusion_is_refused_everywhere(fresh, picture, tmp_path, kind):
    name, changes, words = KINDS[kind]
    fresh.scheduler = getattr(diffusers, name)(**changes)
    uses = [
        lambda: train(fresh, picture, max_train_steps=1, progress=False),
        lambda: generate(fresh, "A cat", progress=False),
        lambda: sample(fresh, "A cat", progress=False),
        lambda: record_attention(fresh, "A cat").__enter__(),
        lambda: use_scheduler(fresh, "euler"),
    ]
    for use in uses:
        with pytest.raises(BaseError, match=words + ".*such as sdxl"):
            use()
    panel = AlphaPanel(fresh, content=picture, folder=tmp_path, background=False)
    for button in (panel.generate, panel.choosers["content"].train):
        button.click()
    panel.generate.click()
    assert len(panel.errors) == 3
    assert isinstance(panel.errors[1], BaseError)


@pytest.mark.parametrize("kind", ["EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_another_sampler_does_not_hide_the_kind(fresh, tmp_path, kind):
    """diffusers gives Euler's scheduler betas that stand in no configuration of such a base."""
    getattr(diffusers, kind)().save_pretrained(tmp_path)
    theirs = getattr(diffusers, kind).from_pretrained(tmp_path)
    fresh.scheduler = diffusers.EulerDiscreteScheduler.from_config(theirs.config)
    for _ in range(2):
        with pytest.raises(BaseError, match="EDM|flow matching"):
            generate(fresh, "A cat", progress=False)
        fresh.scheduler.save_pretrained(tmp_path)
        fresh.scheduler = diffusers.EulerDiscreteScheduler.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler",
        "DDPMScheduler",
        "EulerAncestralDiscreteScheduler",
        "LCMScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
        "DEISMultistepScheduler",
    ],
)
def test_ddpms_family_is_used_whatever_the_sampler(fresh, name):
    fresh.scheduler = getattr(diffusers, name).from_config(fresh.scheduler.config)
    assert generate(fresh, "A cat", num_inference_steps=1, progress=False)


def test_a_sampler_that_was_another_kinds_for_a_while_is_used(fresh):
    before = fresh.scheduler.config
    foreign = diffusers.FlowMatchEulerDiscreteScheduler.from_config(before)
    fresh.scheduler = diffusers.EulerDiscreteScheduler.from_config(foreign.config)
    assert generate(fresh, "A cat", num_inference_steps=1, progress=False)


LATENTS = {
    "latents_mean": [-1.6574, 1.886, -1.383, 2.5155] * 3,
    "latents_std": [8.4927, 5.9022, 6.5498, 5.2299] * 3,
    "shift_factor": 0.1159,
}


@pytest.mark.parametrize("entry", LATENTS)
def test_latents_that_are_changed_by_the_vae_are_refused(fresh, picture, entry):
    fresh.vae.register_to_config(**{entry: LATENTS[entry]})
    for use in (lambda: train(fresh, picture, progress=False), lambda: generate(fresh, "A cat")):
        with pytest.raises(BaseError, match=f"VAE has {entry}"):
            use()
    nothing = {"latents_mean": [0.0] * 12, "latents_std": [1.0] * 12, "shift_factor": 0.0}
    fresh.vae.register_to_config(**{entry: nothing[entry]})
    assert len(train(fresh, picture, progress=False, max_train_steps=1).losses) == 1


def other_base(folder, scheduler):
    shutil.copytree(TINY_SDXL, folder)
    getattr(diffusers, scheduler)().save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    index["scheduler"] = ["diffusers", scheduler]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("scheduler", ["EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_the_command_line_says_it_in_a_line(tmp_path, scheduler):
    base = ["--pretrained_model_name_or_path", other_base(tmp_path / "base", scheduler)]
    train = ["train", "--max_train_steps", 1]
    picture = TINY_SDXL.parent / "examples" / "star_sunset.png"
    commands = [
        [*train, "--instance_data_dir", picture, "--output_dir", tmp_path / "o"],
        ["generate", "--prompt", "A cat", "--output_path", tmp_path / "p"],
        ["generate", "--prompt", "A cat", "--output_path", tmp_path / "p", "--scheduler", "euler"],
    ]
    for command in commands:
        refused(run_here(*command, *base), scheduler, "such as sdxl")
    assert not list(tmp_path.rglob("*.png"))
    assert not list((tmp_path / "o").rglob("*.safetensors"))


def test_files_of_a_variant_only_are_named(tmp_path):
    base = tmp_path / "base"
    shutil.copytree(TINY_SDXL, base)
    for file in base.rglob("*model.safetensors"):
        file.rename(file.with_name(file.name.replace("model.", "model.fp16.")))
    for variant in (None, "bf16"):
        with pytest.raises(OSError, match='are there: add --variant fp16 .*variant="fp16"'):
            load_pipeline(base, device="cpu", variant=variant)
    pipe = load_pipeline(base, device="cpu", variant="fp16")
    assert generate(pipe, "A cat", num_inference_steps=1, progress=False)
    shutil.copy(TINY_SDXL / "unet" / "diffusion_pytorch_model.safetensors", base / "unet")
    with pytest.raises(OSError, match="--variant fp16"):
        load_pipeline(base, device="cpu")
