"""Looking inside changes no bit of a picture and leaves a pipeline as it was, also on errors."""

import numpy as np
import pytest
import torch

from blora_nb.blocks import CONTENT_BLOCK, STYLE_BLOCK, TRANSFORMER_BLOCKS
from blora_nb.course.drawings import draw
from blora_nb.defaults import TINY_DEFAULTS
from blora_nb.generation import generate
from blora_nb.inspection import prompt_per_block, record_attention
from blora_nb.lora import apply, remove
from blora_nb.pipeline import load_pipeline

PROMPT = "A cat in neon style"


def picture(pipe, prompt=PROMPT, **options):
    return np.asarray(
        generate(pipe, prompt, seeds=1, num_inference_steps=4, progress=False, **options)[0]
    )


def hooks(pipe):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.unet.modules())


def test_recording_does_not_change_the_picture_and_leaves_nothing_behind(pipe, blora):
    before, halves = hooks(pipe), {"content": blora, "style": blora}
    plain, with_halves = picture(pipe), picture(pipe, **halves)
    with record_attention(pipe, PROMPT):
        assert np.array_equal(picture(pipe), plain)
    with record_attention(pipe, PROMPT):
        assert np.array_equal(picture(pipe, **halves), with_halves)
    remove(pipe)
    assert hooks(pipe) == before


def test_recorded_weights_are_what_the_attention_computes(pipe):
    """Recomputed by hand from the inputs of one layer, without guidance and in a single step."""
    layers, seen = pipe.unet.get_submodule(CONTENT_BLOCK).transformer_blocks, []

    def look(module, args, kwargs):
        seen.append((module, args[0], kwargs["encoder_hidden_states"]))

    handles = [block.attn2.register_forward_pre_hook(look, with_kwargs=True) for block in layers]
    with record_attention(pipe, PROMPT, [CONTENT_BLOCK]) as attention:
        generator = torch.Generator().manual_seed(0)
        pipe(PROMPT, num_inference_steps=1, guidance_scale=1.0, generator=generator)
    for handle in handles:
        handle.remove()
    by_hand = []
    for module, states, text in seen:
        query = module.head_to_batch_dim(module.to_q(states))
        key = module.head_to_batch_dim(module.to_k(text))
        # diffusers' own, [heads, positions, tokens]
        by_hand.append(module.get_attention_scores(query, key))
    by_hand = torch.stack(by_hand).mean(0)
    recorded = attention.cross_attention[CONTENT_BLOCK]
    assert recorded.shape == (4, 6, 6, 7)
    torch.testing.assert_close(recorded.flatten(1, 2), by_hand[..., :7])
    torch.testing.assert_close(
        attention.word(CONTENT_BLOCK, "cat", head=2), by_hand[2, :, 2].view(6, 6)
    )
    torch.testing.assert_close(
        attention.self_attention[CONTENT_BLOCK].sum((-1, -2)), torch.ones(4, 6, 6)
    )


def test_what_is_recorded_is_the_attention_with_the_b_lora_that_is_put_on_inside(pipe, blora):
    remove(pipe)

    def looked(*before):
        apply(pipe, *before)
        with record_attention(pipe, PROMPT, [CONTENT_BLOCK]) as attention:
            picture(pipe, content=blora, style=blora)
        remove(pipe)
        return attention.cross_attention[CONTENT_BLOCK], attention.self_attention[CONTENT_BLOCK]

    with record_attention(pipe, PROMPT, [CONTENT_BLOCK]) as plain:
        picture(pipe)
    (cross, itself), again = looked(), looked(blora, blora)
    after_another = looked(None, blora)
    assert torch.equal(cross, again[0])
    assert torch.equal(itself, again[1])
    assert torch.equal(cross, after_another[0])
    # the words get little of the weight: most of it falls on the padding
    assert (cross - plain.cross_attention[CONTENT_BLOCK]).abs().max() > 0.005


def test_all_blocks_with_guidance_and_other_shapes(pipe):
    with record_attention(pipe, PROMPT) as attention:
        generate(
            pipe, PROMPT, seeds=[0, 1], num_inference_steps=2, height=64, width=128, progress=False
        )
    assert list(attention.cross_attention) == list(TRANSFORMER_BLOCKS)
    assert attention.cross_attention[CONTENT_BLOCK].shape == (4, 4, 8, 7)
    assert attention.self_attention["up_blocks.1.attentions.0"].shape == (4, 8, 16, 8, 16)
    assert attention.position("up_blocks.1.attentions.0", 3, 7).shape == (8, 16)


def test_words_cut_into_pieces_and_words_that_are_not_there(pipe):
    with record_attention(
        pipe, "A zeppelin in neon style", [STYLE_BLOCK], kinds=["cross"]
    ) as attention:
        picture(pipe, "A zeppelin in neon style")
    known = ("in</w>", "neon</w>", "style</w>")
    pieces = [
        i
        for i, token in enumerate(attention.tokens)
        if i > 1 and token not in known and not token.startswith("<|")
    ]
    assert len(pieces) > 1, "the tokenizer knows zeppelins by now; take another word"
    torch.testing.assert_close(
        attention.word(STYLE_BLOCK, "zeppelin"),
        attention.cross_attention[STYLE_BLOCK][..., pieces].sum(-1).mean(0),
    )
    with pytest.raises(ValueError, match="dog.*no word of the prompt"):
        attention.word(STYLE_BLOCK, "dog")
    with pytest.raises(ValueError, match="Nothing of this kind"):
        attention.position(STYLE_BLOCK, 0, 0)


@pytest.mark.parametrize(
    "inside",
    [
        lambda pipe: prompt_per_block(pipe, {CONTENT_BLOCK: "A house"}),
        lambda pipe: record_attention(pipe, PROMPT),
    ],
)
def test_an_exception_inside_restores_the_pipeline(pipe, inside):
    before, plain = hooks(pipe), picture(pipe)
    with pytest.raises(KeyError), inside(pipe):
        raise KeyError
    assert hooks(pipe) == before
    assert np.array_equal(picture(pipe), plain)


def test_a_prompt_for_all_blocks_is_that_prompt_but_for_the_pooled_embedding(pipe):
    """Every block told the same equals encoder_hidden_states swapped as a whole."""
    from blora_nb.pipeline import encode_prompt

    with prompt_per_block(pipe, dict.fromkeys(TRANSFORMER_BLOCKS, "A house in wood style")):
        swapped = picture(pipe)
    embeds, _ = encode_prompt(pipe, "A house in wood style")
    _, pooled = encode_prompt(pipe, PROMPT)
    expected = pipe(
        prompt_embeds=embeds,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=torch.zeros_like(embeds),
        negative_pooled_prompt_embeds=torch.zeros_like(pooled),
        num_inference_steps=4,
        guidance_scale=TINY_DEFAULTS.guidance_scale,
        generator=torch.Generator().manual_seed(1),
    ).images[0]
    assert np.abs(swapped.astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_pictures_that_keep_a_layout_are_looked_into_as_well(guidance):
    """They are drawn by another pipeline, made of the parts.

    The first thing on a fresh one, and after a call with other guidance.
    """
    pipe, start = load_pipeline(device="cpu"), draw("star", "neon", 1, 96)
    options = {"image": start, "strength": 1.0, "guidance_scale": guidance}

    def house():
        with (
            prompt_per_block(pipe, {CONTENT_BLOCK: "A house in wood style"}),
            record_attention(pipe, PROMPT, [STYLE_BLOCK], kinds=["cross"]) as attention,
        ):
            drawn = picture(pipe, **options)
        return drawn, attention.word(STYLE_BLOCK, "neon")

    (first, looked), _ = house(), picture(pipe, guidance_scale=4.0 - guidance)
    (again, looked_again), plain = house(), picture(pipe, **options)
    assert np.array_equal(first, again)
    assert torch.equal(looked, looked_again)
    assert not np.array_equal(first, plain)


def test_unknown_blocks_are_named(pipe):
    with (
        pytest.raises(ValueError, match="up_blocks.9"),
        record_attention(pipe, PROMPT, ["up_blocks.9"]),
    ):
        pass
