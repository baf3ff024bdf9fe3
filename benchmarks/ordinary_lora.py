"""The rival of a B-LoRA: an ordinary LoRA, on the attention of all eleven transformer blocks."""

from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor

from blora_nb.blocks import TRANSFORMER_BLOCKS
from blora_nb.lora import remove
from blora_nb.settings import TrainingSettings
from blora_nb.training import IN_TRAINING, attach_lora, encode_image, run_steps

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline


def train_everywhere(
    pipe: "StableDiffusionXLPipeline", picture: Image.Image, settings: TrainingSettings
) -> dict[str, Tensor]:
    """The weights of an ordinary LoRA of one picture, by their names in diffusers."""
    from peft.utils import get_peft_model_state_dict

    moments = encode_image(pipe, picture, settings.resolution)
    remove(pipe)
    attach_lora(pipe.unet, settings.rank, settings.seed, TRANSFORMER_BLOCKS)
    run_steps(pipe, moments, settings, progress=False)
    weights = get_peft_model_state_dict(pipe.unet, adapter_name=IN_TRAINING)
    weights = {f"unet.{name}": tensor.detach().clone() for name, tensor in weights.items()}
    remove(pipe)
    return weights


def apply_both(
    pipe: "StableDiffusionXLPipeline", content: dict[str, Tensor], style: dict[str, Tensor]
) -> None:
    """Put two ordinary LoRAs on a pipeline, each with strength 1."""
    remove(pipe)
    for name, weights in (("first", content), ("second", style)):
        copies = {key: tensor.clone() for key, tensor in weights.items()}
        pipe.load_lora_weights(copies, adapter_name=name)
    pipe.set_adapters(["first", "second"], [1.0, 1.0])
