"""Record what the authors' training script does, unchanged, for test_training.py to replay.

    python benchmarks/random_sdxl.py BASE small
    python tests/record_original.py SCRIPT tests/files/original_trace.safetensors \\
        --pretrained_model_name_or_path=BASE --instance_data_dir=PICTURES --output_dir=OUT \\
        --instance_prompt="A [v]" --resolution=96 --rank=4 --learning_rate=1e-3 \\
        --lr_scheduler=constant --lr_warmup_steps=0 --max_train_steps=8 \\
        --checkpointing_steps=100 --seed=0

SCRIPT is train_dreambooth_b-lora_sdxl.py of github.com/yardenfren1996/B-LoRA; it runs in an
environment of its own, with diffusers 0.25 and torchvision, without PEFT. It needs nothing of ours.
"""

import importlib.util
import sys

import accelerate
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from safetensors.torch import save_file


def main():
    script, target, *arguments = sys.argv[1:]
    steps = next(int(a.split("=")[1]) for a in arguments if a.startswith("--max_train_steps="))
    unets, found, losses = [], {}, []

    def lora(when):
        return {
            f"{when}/{name}": p.detach().clone()
            for name, p in unets[0].named_parameters()
            if "lora_layer" in name
        }

    def watched(owner, name, before):
        original = getattr(owner, name)

        def method(self, *args, **kwargs):
            before(self, *args, **kwargs)
            return original(self, *args, **kwargs)

        setattr(owner, name, method)

    def prepare(self, *models, **kwargs):
        unets.extend(model for model in models if isinstance(model, UNet2DConditionModel))
        found.update(lora("before"))

    def add_noise(self, latents, noise, timesteps):
        number = sum(key.startswith("latents/") for key in found)
        found.update(
            {
                f"latents/{number}": latents.clone(),
                f"noise/{number}": noise.clone(),
                f"timesteps/{number}": timesteps.clone(),
            }
        )

    def forward(self, sample, timestep, encoder_hidden_states, *args, added_cond_kwargs, **kwargs):
        found.update(
            {
                "prompt_embeds": encoder_hidden_states.clone(),
                "pooled": added_cond_kwargs["text_embeds"].clone(),
                "time_ids": added_cond_kwargs["time_ids"].clone(),
            }
        )

    def log(self, values, step=None, **kwargs):
        if step == steps:
            found.update(lora("after"), losses=torch.stack(losses))
            save_file(found, target)
            sys.exit()

    watched(accelerate.Accelerator, "prepare", prepare)

    def backward(self, loss, **kwargs):
        losses.append(loss.detach().clone())

    watched(accelerate.Accelerator, "backward", backward)
    watched(DDPMScheduler, "add_noise", add_noise)
    watched(UNet2DConditionModel, "forward", forward)
    accelerate.Accelerator.log = log
    accelerate.Accelerator.init_trackers = lambda *args, **kwargs: None
    spec = importlib.util.spec_from_file_location("original", script)
    original = importlib.util.module_from_spec(spec)
    sys.modules["original"] = original
    spec.loader.exec_module(original)
    # it reads them as a global
    original.args = original.parse_args(arguments)
    original.main(original.args)


if __name__ == "__main__":
    main()
