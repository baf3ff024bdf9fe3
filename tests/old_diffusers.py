"""Run by test_old_diffusers.py with diffusers 0.25, which the original's files come from.

It needs nothing of ours.

    # two B-LoRAs, one for each of its ways to train
    python tests/old_diffusers.py write FOLDER
    # how far the U-Net's answer with FILE is from the one in REFERENCE
    python tests/old_diffusers.py read FILE REFERENCE

`make test-old-diffusers` sets up such an environment, from tests/old_diffusers.txt.
"""

import sys
from pathlib import Path

import torch

UNET = Path(__file__).resolve().parent.parent / "blora_nb" / "data" / "tiny_sdxl" / "unet"
BLOCKS = ("up_blocks.0.attentions.0.", "up_blocks.0.attentions.1.")
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def unet():
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(UNET, low_cpu_mem_usage=False).eval()


@torch.no_grad()
def answer(unet):
    """[2, 12, 24, 24]: what the U-Net says to a fixed question."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 12, 24, 24, generator=generator)
    text = torch.randn(2, 7, 192, generator=generator)
    config = unet.config
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    conditions = {
        "text_embeds": torch.randn(2, pooled, generator=generator),
        "time_ids": torch.tensor([[96.0, 96, 0, 0, 96, 96]] * 2),
    }
    return unet(x, torch.tensor([300, 700]), text, added_cond_kwargs=conditions).sample


def write(folder, peft):
    """A B-LoRA as the original trains one: through PEFT, or diffusers' own LoRA layers."""
    from diffusers import StableDiffusionXLPipeline

    model = unet()
    names = [
        n for n, _ in model.named_modules() if n.startswith(BLOCKS) and n.endswith(PROJECTIONS)
    ]
    torch.manual_seed(1)
    if peft:
        from peft import LoraConfig
        from peft.utils import get_peft_model_state_dict

        model.add_adapter(
            LoraConfig(r=1, lora_alpha=1, init_lora_weights="gaussian", target_modules=names)
        )
        for name, p in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.1)
        layers = get_peft_model_state_dict(model)
    else:
        from diffusers.models.lora import LoRALinearLayer
        from diffusers.training_utils import unet_lora_state_dict

        for name in names:
            module = model.get_submodule(name)
            layer = LoRALinearLayer(module.in_features, module.out_features, rank=1)
            torch.nn.init.normal_(layer.up.weight, std=0.1)
            module.set_lora_layer(layer)
        layers = unet_lora_state_dict(model)
    StableDiffusionXLPipeline.save_lora_weights(
        folder,
        unet_lora_layers=layers,
        weight_name=f"diffusers_0.25_{'peft' if peft else 'layers'}.safetensors",
    )


def read(file, reference):
    from diffusers import StableDiffusionXLPipeline

    model = unet()
    state_dict, alphas = StableDiffusionXLPipeline.lora_state_dict(file, unet_config=model.config)
    StableDiffusionXLPipeline.load_lora_into_unet(
        state_dict, network_alphas=alphas, unet=model, adapter_name="a"
    )
    saved = torch.load(reference)
    difference = (answer(model) - saved["with"]).abs().max().item()
    effect = (saved["with"] - saved["without"]).abs().max().item()
    print("difference", difference, "effect", effect)


if __name__ == "__main__":
    if sys.argv[1] == "read":
        read(*sys.argv[2:])
    elif len(sys.argv) == 3:
        import subprocess

        write(sys.argv[2], peft=True)
        subprocess.run([sys.executable, *sys.argv, "layers"], check=True)
    else:
        # before anything else of diffusers is imported
        import diffusers.utils
        import diffusers.utils.constants

        diffusers.utils.USE_PEFT_BACKEND = diffusers.utils.constants.USE_PEFT_BACKEND = False
        write(sys.argv[2], peft=False)
