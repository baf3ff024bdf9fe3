"""Look inside an unchanged pipeline: a prompt for one block alone, and where blocks look.

Both are context managers; afterwards the pipeline is what it was, also when something fails inside.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from blora_nb.blocks import TRANSFORMER_BLOCKS, check_blocks
from blora_nb.generation import check_pipeline
from blora_nb.guards.changed_pipelines import check_unchanged, uncompiled
from blora_nb.guards.prompts import END_OF_WORD
from blora_nb.pipeline import encode_prompt
from blora_nb.registry import prompts_noted

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline
    from diffusers.models.attention_processor import Attention

SPECIAL = "<|"  # how CLIP's start and end tokens begin


def conditional_half(pipe: "StableDiffusionXLPipeline", batch: Tensor) -> Tensor:
    """The part of a batch that follows the prompt: with guidance its second half."""
    return batch[len(batch) // 2 :] if pipe.do_classifier_free_guidance else batch


@contextmanager
def prompt_per_block(
    pipe: "StableDiffusionXLPipeline", prompts: Mapping[str, str]
) -> Iterator["StableDiffusionXLPipeline"]:
    """Inside, the named blocks attend to a prompt of their own, all others to that of the call.

        with prompt_per_block(pipe, {"up_blocks.0.attentions.0": "A cat"}):
            picture = generate(pipe, "A star in neon style")[0]

    This is the paper's block analysis (section 4.1). With classifier-free guidance only the
    conditional half of the batch changes.

    Args:
        prompts: block name (see `blocks.TRANSFORMER_BLOCKS`) to prompt.

    Raises:
        ValueError: a name that is no transformer block.
    """
    check_blocks(prompts)
    check_pipeline(pipe)

    def attend_to(embeds: Tensor) -> Callable:
        def replace_prompt(block: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            states = kwargs["encoder_hidden_states"]  # [batch, tokens, dim]
            own = embeds.to(states).expand_as(conditional_half(pipe, states))
            unconditional = states[: len(states) - len(own)]
            return args, kwargs | {"encoder_hidden_states": torch.cat([unconditional, own])}

        return replace_prompt

    with ExitStack() as stack:
        stack.enter_context(uncompiled(pipe))
        stack.enter_context(prompts_noted(pipe, dict(prompts)))
        for name, prompt in prompts.items():
            embeds, _ = encode_prompt(pipe, prompt)
            block = pipe.unet.get_submodule(name)
            hook = block.register_forward_pre_hook(attend_to(embeds), with_kwargs=True)
            stack.enter_context(hook)
        yield pipe


@dataclass(repr=False, eq=False)
class AttentionRecord:
    """Where the blocks looked: attention weights, averaged over layers, steps and pictures.

    Attributes:
        tokens: the pieces the prompt was cut into.
        cross_attention: block to [heads, height, width, tokens]. At each position the weights over
            the prompt's tokens and the padding behind them (left out here) sum to 1.
        self_attention: block to [heads, height, width, height, width]. At each position (first two)
            the weights over all positions (last two) sum to 1.
    """

    tokens: list[str]
    cross_attention: dict[str, Tensor] = field(default_factory=dict)
    self_attention: dict[str, Tensor] = field(default_factory=dict)

    def word(self, block: str, word: str, head: int | None = None) -> Tensor:
        """[height, width]: how much each position of a block looked at a word of the prompt.

        Args:
            word: as it stands in the prompt; one of several tokens gets the sum of their weights.
            head: the number of one head; by default the mean of all.
        """
        weights = self._recorded(self.cross_attention, block)[..., self._tokens_of(word)].sum(-1)
        return weights.mean(0) if head is None else weights[head]

    def position(self, block: str, row: int, column: int, head: int | None = None) -> Tensor:
        """[height, width]: where one position of a block looked, in its self-attention."""
        weights = self._recorded(self.self_attention, block)[:, row, column]
        return weights.mean(0) if head is None else weights[head]

    def _recorded(self, maps: dict[str, Tensor], block: str) -> Tensor:
        if block not in maps:
            recorded = ", ".join(maps) or "nothing, as no picture was made inside"
            raise ValueError(
                f"Nothing of this kind was recorded in {block!r}; recorded: {recorded}."
            )
        return maps[block]

    def _tokens_of(self, word: str) -> list[int]:
        """The numbers of the tokens that spell a word, some of which may be words: [, c, ]."""
        ends = [i + 1 for i, token in enumerate(self.tokens) if token.endswith(END_OF_WORD)]
        special = [i + 1 for i, token in enumerate(self.tokens) if token.startswith(SPECIAL)]
        for first in sorted({0, *ends, *special}):
            for last in ends:
                spelled = "".join(self.tokens[first:last]).replace(END_OF_WORD, "")
                if first < last and spelled == word.lower():
                    return list(range(first, last))
        pieces = " ".join(self.tokens)
        raise ValueError(f"{word!r} is no word of the prompt; it was cut into {pieces}.")


@contextmanager
def record_attention(
    pipe: "StableDiffusionXLPipeline",
    prompt: str,
    blocks: Collection[str] = TRANSFORMER_BLOCKS,
    kinds: Collection[str] = ("cross", "self"),
) -> Iterator[AttentionRecord]:
    """Inside, the attention of the named blocks is recorded; the pictures stay the same bits.

        with record_attention(pipe, "A cat in neon style") as attention:
            picture = generate(pipe, "A cat in neon style")[0]
        attention.word("up_blocks.0.attentions.0", "cat")  # [height, width]

    The weights are computed beside the model, from queries and keys as its own layers give them,
    LoRA included. With classifier-free guidance only the conditional half is recorded. Memory at
    1024 px on SDXL, float32: self-attention 0.1 GB for a block of `up_blocks.0`, 0.7 GB for one of
    `up_blocks.1`; cross-attention at most 13 MB a block.

    Args:
        prompt: the prompt of the pictures made inside, for the names of the tokens.
        kinds: "cross" (which words the positions look at), "self" (which positions), or both.

    Yields:
        An `AttentionRecord`, filled at the end of the `with` block.

    Raises:
        ValueError: a name that is no transformer block, or a pipeline with another attention.
    """
    check_blocks(blocks)
    if isinstance(kinds, str) or not set(kinds) <= {"cross", "self"}:
        raise ValueError(f'kinds is a list of "cross", "self" or both, not {kinds!r}.')
    check_pipeline(pipe)
    check_unchanged(pipe, attention=True)
    ids = pipe.tokenizer(prompt, truncation=True).input_ids
    record = AttentionRecord(pipe.tokenizer.convert_ids_to_tokens(ids))
    sizes: dict[str, torch.Size] = {}  # block to height and width
    sums: dict[tuple[str, str], Tensor] = {}  # (kind, block) to weights, added up
    counts: dict[tuple[str, str], int] = defaultdict(int)

    def note_size(name: str) -> Callable:
        def hook(block: torch.nn.Module, args: tuple) -> None:
            sizes[name] = args[0].shape[-2:]  # of [batch, channels, height, width]

        return hook

    def add_weights(kind: str, block: str) -> Callable:
        @torch.no_grad()
        def hook(attention: "Attention", args: tuple, kwargs: dict, output: Tensor) -> None:
            states, text = args[0], kwargs.get("encoder_hidden_states")
            # looked up only now, as a B-LoRA may have been put on these layers since
            query = attention.to_q(conditional_half(pipe, states))
            key = attention.to_k(conditional_half(pipe, states if text is None else text))
            weights = attention_weights(query, key, attention.heads, attention.scale)
            sums[kind, block] = sums.get((kind, block), 0) + weights.sum(0)
            counts[kind, block] += len(weights)

        return hook

    with ExitStack() as stack:
        stack.enter_context(uncompiled(pipe))
        for name in blocks:
            block = pipe.unet.get_submodule(name)
            stack.enter_context(block.register_forward_pre_hook(note_size(name)))
            for layer in block.transformer_blocks:
                for kind, attention in (("self", layer.attn1), ("cross", layer.attn2)):
                    if kind in kinds:
                        add = add_weights(kind, name)
                        hook = attention.register_forward_hook(add, with_kwargs=True)
                        stack.enter_context(hook)
        yield record
    for (kind, name), total in sums.items():
        mean = (total / counts[kind, name]).cpu()
        if kind == "cross":
            without_padding = mean[..., : len(ids)]
            record.cross_attention[name] = without_padding.unflatten(1, sizes[name])
        else:
            record.self_attention[name] = mean.unflatten(2, sizes[name]).unflatten(1, sizes[name])


def attention_weights(query: Tensor, key: Tensor, heads: int, scale: float) -> Tensor:
    """softmax(Q Kᵀ · scale) in float32: [batch, heads, positions, tokens].

    Args:
        query, key: [batch, positions, dim] and [batch, tokens, dim]; the heads share dim.
        scale: 1 / √(dim / heads).
    """
    query = query.float().unflatten(-1, (heads, -1)).transpose(1, 2)
    key = key.float().unflatten(-1, (heads, -1)).transpose(1, 2)
    return (query @ key.transpose(-1, -2) * scale).softmax(-1)
