"""How pictures are drawn: steps, guidance, size, and the layout that is kept."""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blora_nb.defaults import defaults_for
from blora_nb.errors import check_names
from blora_nb.settings import checked_number, value_type

if TYPE_CHECKING:
    from diffusers import ControlNetModel, StableDiffusionXLPipeline
    from PIL import Image


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn; None stands for what suits the pipeline.

    Attributes:
        height, width: in pixels.
        batch_size: pictures made at once; by default one on a CPU and as many as fit on a GPU,
            where it is faster. A picture still depends on its own seed only, but sums are added up
            in another order in a batch, which can change a pixel by a step or two. Halved where
            the memory turns out to be too small.
        image, strength: start from this picture (path or PIL image) instead of pure noise, and
            make only this share of the steps (img2img): the lower, the more of the picture is
            kept, its colours too.
        controlnet, control_image, controlnet_conditioning_scale: follow a drawn layout: a
            ControlNet (id, folder, or one from `structure.load_controlnet`), the layout as it
            wants it (see `structure.outline`), and how closely.
    """

    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None
    batch_size: int | None = None
    image: "str | Path | Image.Image | None" = None
    strength: float = 0.6
    controlnet: "str | Path | ControlNetModel | None" = None
    control_image: "str | Path | Image.Image | None" = None
    controlnet_conditioning_scale: float = 1.0

    def suited_to(self, pipe: "StableDiffusionXLPipeline") -> "Sampling":
        """The same with the pipeline's own steps and guidance where none are given, checked.

        Raises:
            ValueError: no picture can be made with it.
        """
        suits = defaults_for(pipe)
        values = {
            f.name: checked_number(f.name, getattr(self, f.name), value_type(f))
            for f in fields(self)
        }
        if values["num_inference_steps"] is None:
            values["num_inference_steps"] = suits.num_inference_steps
        if values["guidance_scale"] is None:
            values["guidance_scale"] = float(suits.guidance_scale)
        for name in ("num_inference_steps", "batch_size"):
            if values[name] is not None and values[name] < 1:
                raise ValueError(f"{name} must be at least 1, not {values[name]}.")
        for name in ("height", "width"):
            if values[name] is not None and (values[name] < 8 or values[name] % 8):
                raise ValueError(f"{name} must be a multiple of 8, not {values[name]}.")
        if not math.isfinite(values["guidance_scale"]):
            given = values["guidance_scale"]
            raise ValueError(f"guidance_scale must be an ordinary number, not {given}.")
        return Sampling(**values)

    @classmethod
    def of(cls, pipe: "StableDiffusionXLPipeline", given: dict[str, Any]) -> "Sampling":
        """The fields that are given by name, suited to a pipeline.

        Raises:
            ValueError: there is no such field, or no picture can be made with it.
        """
        names = [field.name for field in fields(cls)]
        check_names(given, names, "option", "help(blora_nb.sampling.Sampling)")
        return cls(**given).suited_to(pipe)

    def record(self) -> dict[str, Any]:
        """What of it stands in the record of a picture."""
        names = ("num_inference_steps", "guidance_scale", "height", "width")
        return {name: getattr(self, name) for name in names}
