"""Look inside an unchanged pipeline: a context manager that gives single transformer blocks a prompt of their own."""

from contextlib import contextmanager

import torch

from .blocks import TRANSFORMER_BLOCKS
from .models import encode_prompt


@contextmanager
def prompt_per_block(pipe, prompts):
    """Inside, the named blocks attend to their own prompt; all other blocks to the one of the call.

        with prompt_per_block(pipe, {"up_blocks.0.attentions.0": "A cat"}):
            picture = generate(pipe, "A star in neon style")[0]

    This is the paper's block analysis (section 4.1). With classifier-free guidance only the conditional half of the batch
    changes. The pipeline is restored afterwards, also when something fails inside.

    Args:
        prompts: block name (see `blocks.TRANSFORMER_BLOCKS`) to prompt.

    Raises:
        ValueError: a name that is no transformer block.
    """
    unknown = set(prompts) - set(TRANSFORMER_BLOCKS)
    if unknown:
        raise ValueError(f"No transformer block of SDXL: {', '.join(sorted(unknown))}. The blocks are: {', '.join(TRANSFORMER_BLOCKS)}.")

    def swapped_in(embeds):
        def hook(module, args, kwargs):
            states = kwargs["encoder_hidden_states"]  # [batch, tokens, dim]; with guidance: unconditional half first
            conditional = embeds.to(states).expand_as(states)
            if pipe.do_classifier_free_guidance:
                half = states.shape[0] // 2
                conditional = torch.cat([states[:half], conditional[half:]])
            return args, {**kwargs, "encoder_hidden_states": conditional}

        return hook

    handles = []
    try:
        for name, prompt in prompts.items():
            embeds, _ = encode_prompt(pipe, prompt)
            handles.append(pipe.unet.get_submodule(name).register_forward_pre_hook(swapped_in(embeds), with_kwargs=True))
        yield pipe
    finally:
        for handle in handles:
            handle.remove()
