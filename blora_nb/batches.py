"""Which pictures and prompts each step of a training gets."""

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor


class Batches:
    """The latents and prompts of the pictures to learn from; `batch` says which a step gets.

    Args:
        moments: mean and standard deviation of the latents, [pictures, channels, h, w] each.
        embeds: (prompt_embeds [1, tokens, dim], pooled [1, dim]) of each picture, or one for all.
        size: pictures in a batch.
        seed: decides the order of the pictures.
        class_batches: class pictures that fill a second half of each batch.
    """

    def __init__(
        self,
        moments: tuple[Tensor, Tensor],
        embeds: Sequence[tuple[Tensor, Tensor]],
        size: int,
        seed: int,
        class_batches: Optional["Batches"] = None,
    ) -> None:
        self.mean, self.std = moments
        self.prompt_embeds = torch.cat([prompt_embeds for prompt_embeds, _ in embeds])
        self.pooled = torch.cat([pooled for _, pooled in embeds])
        self.size, self.seed, self.class_batches = size, seed, class_batches

    @property
    def one_prompt(self) -> bool:
        """Whether all batches have the same prompt."""
        return len(self.prompt_embeds) == 1 and self.class_batches is None

    @property
    def total_size(self) -> int:
        """Pictures in a batch, class pictures included."""
        return self.size if self.class_batches is None else 2 * self.size

    def batch(self, number: int) -> tuple[Tensor, ...]:
        """(mean, std, prompt_embeds, pooled) of batch `number`.

        Every picture in turn, in a new order each round, the same after a resume.
        """
        count = len(self.mean)
        places = range(number * self.size, (number + 1) * self.size)
        picks = [self._order(place // count)[place % count] for place in places]
        tensors = (self.mean, self.std, self.prompt_embeds, self.pooled)
        # tensor[picks] would wait for a GPU
        batch = tuple(torch.stack([t[i] for i in picks]) if len(t) > 1 else t for t in tensors)
        if self.class_batches is None:
            return batch
        pairs = zip(batch, self.class_batches.batch(number), strict=True)
        return tuple(torch.cat([t.expand(self.size, *t.shape[1:]) for t in pair]) for pair in pairs)

    def _order(self, round_number: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed + 7919 * round_number)
        return torch.randperm(len(self.mean), generator=generator).tolist()
