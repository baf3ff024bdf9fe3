"""Which pictures and prompts each step of a training gets."""

import torch

from blora_nb.pipeline import encode_prompt


class Batches:
    """The latents and prompts of the pictures to learn from, encoded once; `batch` says which of them a step gets.

    Args:
        moments: mean and standard deviation of the latents, [pictures, channels, h, w] each. prompts: one for each picture, or one for all.
        size: pictures in a batch. prior: a `Batches` of class pictures that fill the second half of each batch, or None.
    """

    def __init__(self, pipe, moments, prompts, size, seed, prior=None):
        self.mean, self.std = moments
        embeds = [encode_prompt(pipe, prompt) for prompt in prompts]
        self.prompt_embeds, self.pooled = (
            torch.cat(part) for part in zip(*embeds)
        )  # [1 or pictures, …]
        self.size, self.seed, self.prior = size, seed, prior

    @property
    def one_prompt(self):
        """Whether all batches have the same prompt."""
        return len(self.prompt_embeds) == 1 and not self.prior

    def batch(self, number):
        """(mean, std, prompt_embeds, pooled) of batch `number`: every picture in turn, in a new order each round, the same after a resume."""
        count, places = len(self.mean), range(number * self.size, (number + 1) * self.size)
        picks = [self._order(place // count)[place % count] for place in places]
        batch = tuple(
            torch.stack([t[i] for i in picks]) if len(t) > 1 else t
            for t in (self.mean, self.std, self.prompt_embeds, self.pooled)
        )  # t[picks] would wait for a GPU
        if not self.prior:
            return batch
        return tuple(
            torch.cat([t.expand(self.size, *t.shape[1:]) for t in pair])
            for pair in zip(batch, self.prior.batch(number))
        )

    def _order(self, round_):
        count = len(self.mean)
        return (
            [0]
            if count == 1
            else torch.randperm(
                count, generator=torch.Generator().manual_seed(self.seed + 7919 * round_)
            ).tolist()
        )
