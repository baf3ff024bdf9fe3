"""Seeds, progress, and a prompt per block."""

import pytest

from blora_nb import generate, prompt_per_block
from blora_nb.blocks import CONTENT_BLOCK, STYLE_BLOCK, TRANSFORMER_BLOCKS


def test_a_picture_depends_on_its_own_seed_only(pipe):
    together = generate(pipe, "A fish in gold style", seeds=[4, 0], num_inference_steps=3, progress=False)
    alone = generate(pipe, "A fish in gold style", seeds=0, num_inference_steps=3, progress=False)
    assert together[1].tobytes() == alone[0].tobytes() != together[0].tobytes()


def test_progress_counts_every_step(pipe):
    seen = []
    generate(pipe, "A fish", seeds=[0, 1], num_inference_steps=3, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 6) for i in range(1, 7)]


def test_any_prompt_is_accepted(pipe):
    for prompt in ("", "A <c>/[v] «猫» 🦊 in style", "word " * 200):
        assert generate(pipe, prompt, num_inference_steps=2, progress=False)[0].size == (96, 96)


def test_the_names_of_the_blocks_are_those_of_the_unet(pipe):
    found = [n for n, m in pipe.unet.named_modules() if type(m).__name__ == "Transformer2DModel"]
    assert sorted(found) == sorted(TRANSFORMER_BLOCKS)


def test_one_block_hears_another_prompt(pipe, judge):
    for block, expected in ((CONTENT_BLOCK, ("house", "gold")), (STYLE_BLOCK, ("star", "popart")), ("mid_block.attentions.0", ("star", "gold"))):
        with prompt_per_block(pipe, {block: "A house in popart style"}):
            images = generate(pipe, "A star in gold style", seeds=[0, 1, 2], progress=False)
        assert judge.name(images).count(expected) >= 2, block


def test_the_pipeline_is_restored_after_an_error(pipe):
    plain = generate(pipe, "A fish", num_inference_steps=2, progress=False)[0]
    with pytest.raises(RuntimeError), prompt_per_block(pipe, {CONTENT_BLOCK: "A cat"}):
        raise RuntimeError
    assert generate(pipe, "A fish", num_inference_steps=2, progress=False)[0].tobytes() == plain.tobytes()
    with pytest.raises(ValueError, match="No transformer block"), prompt_per_block(pipe, {"up_blocks.9": "A cat"}):
        pass
