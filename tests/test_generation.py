"""Seeds, progress, and a prompt per block."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from blora_nb.blocks import CONTENT_BLOCK, STYLE_BLOCK, TRANSFORMER_BLOCKS
from blora_nb.defaults import SCHEDULERS
from blora_nb.files.images import read_settings, save_picture
from blora_nb.generation import generate, lora_in_the_conditional_pass_only
from blora_nb.inspection import prompt_per_block
from blora_nb.lora import applied, remove
from blora_nb.pipeline import encode_prompt, load_pipeline, merge_few_step_lora, use_scheduler
from blora_nb.training import train
from blora_nb.widgets.preview import LatentPreview, predicted_latents


def test_a_picture_depends_on_its_own_seed_only(pipe):
    together = generate(
        pipe, "A fish in gold style", seeds=[4, 0], num_inference_steps=3, progress=False
    )
    alone = generate(pipe, "A fish in gold style", seeds=0, num_inference_steps=3, progress=False)
    assert together[1].tobytes() == alone[0].tobytes() != together[0].tobytes()


def test_progress_counts_every_step(pipe):
    seen = []
    generate(
        pipe,
        "A fish",
        seeds=[0, 1],
        num_inference_steps=3,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(i, 6) for i in range(1, 7)]


def test_numbers_may_come_from_numpy_and_pytorch(pipe, blora, tmp_path):
    options = {
        "num_inference_steps": np.int64(1),
        "guidance_scale": np.float32(3),
        "height": np.int64(64),
        "progress": False,
    }
    made = generate(
        pipe, "A fish", blora, content_alpha=np.float32(0.5), seeds=np.arange(2), **options
    )
    same = [
        *generate(
            pipe, "A fish", blora, content_alpha=torch.tensor(0.5), seeds=np.int64(0), **options
        ),
        *generate(pipe, "A fish", blora, content_alpha=0.5, seeds=torch.tensor(1), **options),
    ]
    assert [image.tobytes() for image in made] == [image.tobytes() for image in same]
    assert read_settings(save_picture(made[1], tmp_path))["seed"] == 1


@pytest.mark.parametrize(
    "wrong, why",
    [
        ({"prompt": ["A fish", "A cat"]}, "one text"),
        ({"num_inference_steps": 0}, "at least 1"),
        ({"seeds": 0.5}, "whole numbers"),
        ({"seeds": "12"}, "whole numbers"),
    ],
)
def test_what_makes_no_sense_is_said(pipe, wrong, why):
    with pytest.raises(ValueError, match=why):
        generate(pipe, **{"prompt": "A fish", "progress": False} | wrong)


def test_any_prompt_is_accepted(pipe):
    for prompt in ("", "A <c>/[v] «猫» 🦊 in style", "word " * 200):
        assert generate(pipe, prompt, num_inference_steps=2, progress=False)[0].size == (96, 96)


def test_the_names_of_the_blocks_are_those_of_the_unet(pipe):
    found = [n for n, m in pipe.unet.named_modules() if type(m).__name__ == "Transformer2DModel"]
    assert sorted(found) == sorted(TRANSFORMER_BLOCKS)


def test_one_block_hears_another_prompt(pipe, judge):
    for block, expected in (
        (CONTENT_BLOCK, ("house", "gold")),
        (STYLE_BLOCK, ("star", "popart")),
        ("mid_block.attentions.0", ("star", "gold")),
    ):
        with prompt_per_block(pipe, {block: "A house in popart style"}):
            images = generate(pipe, "A star in gold style", seeds=[0, 1, 2], progress=False)
        assert judge.name(images).count(expected) >= 2, block


def test_the_pipeline_is_restored_after_an_error(pipe):
    plain = generate(pipe, "A fish", num_inference_steps=2, progress=False)[0]
    with pytest.raises(RuntimeError), prompt_per_block(pipe, {CONTENT_BLOCK: "A cat"}):
        raise RuntimeError
    assert (
        generate(pipe, "A fish", num_inference_steps=2, progress=False)[0].tobytes()
        == plain.tobytes()
    )
    with (
        pytest.raises(ValueError, match="No transformer block"),
        prompt_per_block(pipe, {"up_blocks.9": "A cat"}),
    ):
        pass


def difference(one, two):
    return np.abs(np.asarray(one, dtype=int) - np.asarray(two, dtype=int)).mean()


def test_pictures_are_those_of_the_plain_pipeline(pipe):
    """Prompts encoded once for all seeds give what the pipeline gives by itself."""
    remove(pipe)
    own = pipe(
        "A fish in gold style",
        num_inference_steps=3,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(4),
    ).images[0]
    assert (
        generate(pipe, "A fish in gold style", seeds=[1, 4], num_inference_steps=3, progress=False)[
            1
        ].tobytes()
        == own.tobytes()
    )


def test_a_batch_gives_the_same_pictures_to_a_step_or_two(pipe):
    seen, options = [], {"num_inference_steps": 3, "height": 64, "width": 128}
    alone = generate(pipe, "A fish", seeds=[5, 1, 2], progress=False, **options)
    batch = generate(
        pipe,
        "A fish",
        seeds=[5, 1, 2],
        batch_size=2,
        progress=lambda done, total: seen.append((done, total)),
        **options,
    )
    assert seen == [(2, 9), (4, 9), (6, 9), (7, 9), (8, 9), (9, 9)]
    assert batch[0].size == (128, 64)
    assert (
        max(difference(a, b) for a, b in zip(alone, batch)) < 0.5 < difference(alone[0], alone[1])
    )


def test_recipes_of_guidance_and_time(pipe, blora):
    """Each is checked against what it must equal in a case that can be written down otherwise."""
    options = {"seeds": 3, "num_inference_steps": 4, "progress": False}
    plain, both = (
        generate(pipe, "A [v]", **options)[0],
        generate(pipe, "A [v]", blora, blora, **options)[0],
    )
    content = generate(pipe, "A [v]", blora, **options)[0]
    assert (
        generate(pipe, "A [v]", blora, blora, style_from=1.0, **options)[0].tobytes()
        == generate(pipe, "A [v]", blora, blora, style_alpha=0, **options)[0].tobytes()
    )
    assert (
        difference(generate(pipe, "A [v]", blora, blora, style_from=1.0, **options)[0], content)
        < 0.5
    )
    assert (
        difference(
            generate(pipe, "A [v]", blora, blora, content_until=0.0, style_from=1.0, **options)[0],
            plain,
        )
        < 0.5
    )
    halves = generate(pipe, "A [v]", blora, blora, content_until=0.5, style_from=0.5, **options)[0]
    assert min(difference(halves, other) for other in (plain, both, content)) > 1
    assert (
        generate(pipe, "A [v]", blora, blora, **options)[0].tobytes() == both.tobytes()
    )  # nothing stays behind

    asymmetric = generate(pipe, "A [v]", blora, blora, asymmetric_guidance=True, **options)[0]
    assert difference(asymmetric, both) > 1
    assert generate(pipe, "A [v]", blora, blora, **options)[0].tobytes() == both.tobytes()
    latents, time, (states, pooled) = (
        torch.randn(1, 12, 12, 12),
        torch.tensor([500]),
        encode_prompt(pipe, "A [v]"),
    )
    conditions = {"text_embeds": pooled, "time_ids": torch.tensor([[96.0, 96, 0, 0, 96, 96]])}
    predict = lambda n: (
        pipe.unet(
            latents.expand(n, -1, -1, -1),
            time,
            states.expand(n, -1, -1),
            added_cond_kwargs={k: v.expand(n, -1) for k, v in conditions.items()},
        ).sample
    )
    with torch.no_grad():
        with_lora = predict(1)
        with lora_in_the_conditional_pass_only(pipe.unet):
            unconditional, conditional = predict(2)
        remove(pipe)
        torch.testing.assert_close(conditional, with_lora[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(unconditional, predict(1)[0], atol=1e-4, rtol=1e-4)


def test_previews_look_like_the_picture(pipe):
    look, seen = LatentPreview(pipe), []
    final = generate(
        pipe,
        "A star in neon style",
        seeds=1,
        preview=lambda index, step, latents: seen.append(look(latents)[0]),
        progress=False,
    )[0]
    assert len(seen) == 20
    assert seen[-1].size == (12, 12)
    small = final.resize((12, 12), Image.Resampling.BOX)
    other = generate(pipe, "A house in popart style", seeds=2, progress=False)[0].resize(
        (12, 12), Image.Resampling.BOX
    )
    assert difference(seen[-1], small) < 0.6 * difference(seen[-1], other)
    assert difference(seen[-1], small) < difference(seen[0], small)


def test_what_the_latents_will_be_is_told_early(pipe):
    steps = []
    generate(
        pipe,
        "A star in neon style",
        seeds=1,
        preview=lambda index, step, latents: steps.append(latents),
        progress=False,
    )
    told = [
        predicted_latents(pipe.scheduler, before, after, step)
        for step, (before, after) in enumerate(zip([None, *steps], steps))
    ]
    far = lambda latents: (latents - steps[-1]).norm()
    torch.testing.assert_close(told[-1], steps[-1])
    assert told[0] is steps[0]
    assert far(told[10]) < 0.3 * far(steps[10])
    assert far(told[15]) < far(told[5]) < far(torch.zeros_like(steps[-1]))


def test_samplers_and_a_few_step_lora(picture, tmp_path):
    """The merged LoRA changes the base model; a B-LoRA goes on and off beside it."""
    pipe = load_pipeline(device="cpu")
    plain = generate(pipe, "A star", num_inference_steps=3, progress=False)[0]
    layer = "unet.down_blocks.2.attentions.0.transformer_blocks.0.attn1.to_q"
    width = pipe.unet.config.block_out_channels[2]
    save_file(
        {
            f"{layer}.lora_A.weight": torch.randn(4, width),
            f"{layer}.lora_B.weight": torch.randn(width, 4),
        },
        tmp_path / "few.safetensors",
    )
    merge_few_step_lora(pipe, tmp_path / "few.safetensors")
    merged = generate(pipe, "A star", num_inference_steps=3, progress=False)[0]
    assert applied(pipe) == []
    assert difference(plain, merged) > 0.02
    trained = train(pipe, picture, progress=False, max_train_steps=2)
    assert (
        generate(pipe, "A star", trained, trained, num_inference_steps=3, progress=False)[
            0
        ].tobytes()
        != merged.tobytes()
    )
    assert (
        generate(pipe, "A star", num_inference_steps=3, progress=False)[0].tobytes()
        == merged.tobytes()
    )
    for name in SCHEDULERS:
        use_scheduler(pipe, name)
        assert generate(pipe, "A star", num_inference_steps=4, guidance_scale=1.5, progress=False)[
            0
        ].size == (96, 96)
    with pytest.raises(ValueError, match="dpm"):
        use_scheduler(pipe, "fastest")
