"""Look inside an unchanged pipeline: give single blocks a prompt of their own, record where they look.

Both are context managers; afterwards the pipeline is what it was, also when something fails inside.
"""

from collections import defaultdict
from contextlib import ExitStack, contextmanager

import torch

from blora_nb.blocks import TRANSFORMER_BLOCKS, check_blocks
from blora_nb.generation import check_pipeline
from blora_nb.guards.changed_pipelines import check_unchanged, uncompiled
from blora_nb.pipeline import encode_prompt

END_OF_WORD = "</w>"  # how CLIP's tokenizer marks the last piece of a word


def _conditional(pipe, states):
    """The part of a batch that follows the prompt; with classifier-free guidance that is the second half."""
    return states[states.shape[0] // 2 :] if pipe.do_classifier_free_guidance else states


@contextmanager
def prompt_per_block(pipe, prompts):
    """Inside, the named blocks attend to their own prompt; all other blocks to the one of the call.

        with prompt_per_block(pipe, {"up_blocks.0.attentions.0": "A cat"}):
            picture = generate(pipe, "A star in neon style")[0]

    This is the paper's block analysis (section 4.1). With classifier-free guidance only the conditional half of the batch
    changes.

    Args:
        prompts: block name (see `blocks.TRANSFORMER_BLOCKS`) to prompt.

    Raises:
        ValueError: a name that is no transformer block.
    """
    check_blocks(prompts)
    check_pipeline(pipe)

    def swapped_in(embeds):
        def hook(module, args, kwargs):
            states = kwargs["encoder_hidden_states"]  # [batch, tokens, dim]
            own = embeds.to(states).expand_as(_conditional(pipe, states))
            unconditional = states[: len(states) - len(own)]
            return args, {**kwargs, "encoder_hidden_states": torch.cat([unconditional, own])}

        return hook

    with ExitStack() as stack:
        stack.enter_context(uncompiled(pipe))
        for name, prompt in prompts.items():
            embeds, _ = encode_prompt(pipe, prompt)
            block = pipe.unet.get_submodule(name)
            handle = block.register_forward_pre_hook(swapped_in(embeds), with_kwargs=True)
            stack.callback(handle.remove)
        yield pipe


class AttentionRecord:
    """Where the blocks looked: attention weights, averaged over a block's layers and over all steps and pictures.

    Attributes:
        tokens: the pieces the prompt was cut into.
        cross_attention: block to [heads, height, width, tokens]; at each position the weights over the prompt's tokens and the
            padding behind them (left out here) sum to 1.
        self_attention: block to [heads, height, width, height, width]; at each position (first two) the weights sum to 1 over
            all positions (last two).
    """

    def __init__(self, tokens):
        self.tokens, self.cross_attention, self.self_attention = tokens, {}, {}

    def word(self, block, word, head=None):
        """[height, width]: how much each position of a block looked at a word of the prompt.

        Args:
            word: as it stands in the prompt; one cut into several tokens gets the sum of their weights.
            head: the number of one head; by default the mean of all.
        """
        weights = self._of(self.cross_attention, block)[..., self._places(word)].sum(-1)
        return weights.mean(0) if head is None else weights[head]

    def position(self, block, row, column, head=None):
        """[height, width]: where a position of a block looked, in its self-attention."""
        weights = self._of(self.self_attention, block)[:, row, column]
        return weights.mean(0) if head is None else weights[head]

    def _of(self, maps, block):
        if block not in maps:
            raise ValueError(
                f"Nothing of this kind was recorded in {block!r}; recorded: {', '.join(maps) or 'nothing, as no picture was made inside'}."
            )
        return maps[block]

    def _places(self, word):
        """The positions of the tokens that spell a word."""
        wanted = word.lower()
        for first in range(len(self.tokens)):
            for last in range(first + 1, len(self.tokens) + 1):
                pieces = self.tokens[first:last]
                starts = (
                    first == 0
                    or self.tokens[first - 1].endswith(END_OF_WORD)
                    or self.tokens[first - 1].startswith("<|")
                )
                if (
                    starts
                    and pieces[-1].endswith(END_OF_WORD)
                    and "".join(pieces).replace(END_OF_WORD, "") == wanted
                ):
                    return list(range(first, last))
        raise ValueError(
            f"{word!r} is no word of the prompt; it was cut into {' '.join(self.tokens)}."
        )


@contextmanager
def record_attention(pipe, prompt, blocks=TRANSFORMER_BLOCKS, kinds=("cross", "self")):
    """Inside, the attention of the named blocks is recorded; the pictures are the same to the last bit.

        with record_attention(pipe, "A cat in neon style") as attention:
            picture = generate(pipe, "A cat in neon style")[0]
        attention.word("up_blocks.0.attentions.0", "cat")  # [height, width]

    The weights are computed beside the model, from queries and keys as its own layers give them, LoRA included. With classifier-free
    guidance only the conditional half is recorded. Memory at 1024 px on SDXL, float32: self-attention 0.1 GB for a block
    of `up_blocks.0`, 0.7 GB for one of `up_blocks.1`; cross-attention at most 13 MB a block.

    Args:
        prompt: the prompt of the pictures made inside, for the names of the tokens.
        kinds: "cross" (where the words land), "self" (where the positions look), or both.

    Yields:
        An `AttentionRecord`, filled when the block is left.

    Raises:
        ValueError: a name that is no transformer block, or a pipeline with another attention.
    """
    check_blocks(blocks)
    check_pipeline(pipe)
    check_unchanged(pipe, attention=True)
    ids = pipe.tokenizer(prompt, truncation=True).input_ids
    record = AttentionRecord(pipe.tokenizer.convert_ids_to_tokens(ids))
    sums, calls, size = {}, defaultdict(int), {}

    def see_latents(module, args, kwargs):
        sample = args[0] if args else kwargs["sample"]
        size["latents"] = sample.shape[-2:]

    def add_weights(place):
        @torch.no_grad()
        def hook(attention, args, kwargs, output):
            states, text = args[0], kwargs.get("encoder_hidden_states")
            projected = (
                attention.to_q(states),
                attention.to_k(states if text is None else text),
            )  # asked here, as LoRA may have been put on them since
            query, key = (
                _conditional(pipe, t).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
                for t in projected
            )
            weights = (
                (query.float() @ key.float().transpose(-1, -2) * attention.scale).softmax(-1).sum(0)
            )  # [heads, positions, tokens or positions]
            sums[place] = sums.get(place, 0) + weights
            calls[place] += len(query)

        return hook

    with ExitStack() as stack:
        stack.enter_context(uncompiled(pipe))
        handle = pipe.unet.register_forward_pre_hook(see_latents, with_kwargs=True)
        stack.callback(handle.remove)
        for block in blocks:
            for layer in pipe.unet.get_submodule(block).transformer_blocks:
                for kind, attention in (("self", layer.attn1), ("cross", layer.attn2)):
                    if kind in kinds:
                        see = add_weights((kind, block))
                        handle = attention.register_forward_hook(see, with_kwargs=True)
                        stack.callback(handle.remove)
        yield record
    for (kind, block), total in sums.items():
        mean = (total / calls[kind, block]).cpu()
        shrink = round((size["latents"].numel() / mean.shape[1]) ** 0.5)
        height, width = (side // shrink for side in size["latents"])
        if kind == "cross":
            record.cross_attention[block] = mean.unflatten(1, (height, width))[..., : len(ids)]
        else:
            record.self_attention[block] = mean.unflatten(2, (height, width)).unflatten(
                1, (height, width)
            )
