"""Seeds, progress, and a prompt per block."""

import warnings

import numpy as np
import pytest
import torch
from diffusers import HeunDiscreteScheduler
from PIL import Image
from safetensors.torch import save_file

from blora_nb.assets import DATA
from blora_nb.blocks import CONTENT_BLOCK, STYLE_BLOCK, TRANSFORMER_BLOCKS
from blora_nb.defaults import SCHEDULERS
from blora_nb.errors import PromptWarning
from blora_nb.evaluation.metrics import JudgeScorer
from blora_nb.files.saved_images import read_settings, save_picture
from blora_nb.generation import generate, sample
from blora_nb.inspection import prompt_per_block
from blora_nb.lora import applied, apply, remove, set_alphas
from blora_nb.pipeline import merge_few_step_lora, use_scheduler
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


def test_a_sampler_of_second_order_makes_more_steps(fresh):
    """Its last one, and not the last that was asked for, is looked at for NaN."""
    fresh.scheduler = HeunDiscreteScheduler.from_config(fresh.scheduler.config)
    seen, options = [], {"num_inference_steps": 3, "seeds": [0, 1]}
    generate(fresh, "A fish", progress=lambda *counts: seen.append(counts), **options)
    assert seen == [(i, 10) for i in range(1, 11)]

    def spoil(first, step, latents):
        if step == 3:
            latents.fill_(float("nan"))

    with pytest.raises(ValueError, match="for the seed 0"):
        generate(fresh, "A fish", progress=False, preview=spoil, **options)


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
    ("wrong", "why"),
    [
        ({"prompt": ["A fish", "A cat"]}, "one string"),
        ({"guidance": 2}, "no option 'guidance'. Did you mean guidance_scale"),
        ({"num_inference_steps": 0}, "at least 1"),
        ({"seeds": 0.5}, "whole numbers"),
        ({"seeds": "12"}, "whole numbers"),
        ({"seeds": 2**64}, r"between -2\^63 and 2\^64"),
        ({"content": {"weights": 1}}, "named by a file, a folder or an id"),
        ({"content_alpha": "1"}, "must be an ordinary number, not '1'"),
    ],
)
def test_what_makes_no_sense_is_said(pipe, wrong, why):
    with pytest.raises(ValueError, match=why):
        generate(pipe, **{"prompt": "A fish", "progress": False} | wrong)


@pytest.mark.parametrize("prompt", ["", "A <c>/[v] «猫» 🦊 in style", "word " * 200])
def test_any_prompt_is_accepted(pipe, prompt):
    assert generate(pipe, prompt, num_inference_steps=2, progress=False)[0].size == (96, 96)


def test_the_names_of_the_blocks_are_those_of_the_unet(pipe):
    found = [n for n, m in pipe.unet.named_modules() if type(m).__name__ == "Transformer2DModel"]
    assert sorted(found) == sorted(TRANSFORMER_BLOCKS)


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (CONTENT_BLOCK, ("house", "gold")),
        (STYLE_BLOCK, ("star", "popart")),
        ("mid_block.attentions.0", ("star", "gold")),
    ],
)
@pytest.mark.slow
def test_one_block_hears_another_prompt(pipe, judge, block, expected):
    with prompt_per_block(pipe, {block: "A house in popart style"}):
        images = generate(pipe, "A star in gold style", seeds=[0, 1, 2], progress=False)
    assert JudgeScorer(judge).name(images).count(expected) >= 2


def test_the_pipeline_is_restored_after_an_error(pipe):
    plain = generate(pipe, "A fish", num_inference_steps=2, progress=False)[0]
    with pytest.raises(RuntimeError), prompt_per_block(pipe, {CONTENT_BLOCK: "A cat"}):
        raise RuntimeError
    again = generate(pipe, "A fish", num_inference_steps=2, progress=False)[0]
    assert again.tobytes() == plain.tobytes()


def test_a_block_that_is_not_there_is_named(pipe):
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
    options = {"num_inference_steps": 3, "guidance_scale": 3.0}
    own = pipe("A fish in gold style", generator=torch.Generator().manual_seed(4), **options)
    ours = generate(pipe, "A fish in gold style", seeds=[1, 4], progress=False, **options)
    assert ours[1].tobytes() == own.images[0].tobytes()


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
    assert max(difference(a, b) for a, b in zip(alone, batch)) < 0.5
    assert difference(alone[0], alone[1]) > 0.5


def test_a_picture_of_what_is_on_the_pipeline_knows_what_it_was_made_with(pipe, tmp_path):
    star = str(DATA / "bloras" / "star_sunset.safetensors")
    # of rank 96, by which PEFT multiplies an alpha and divides it again
    style = [(star, 0.5), (star, 0.3), (star, -0.2)]
    options = {"num_inference_steps": 2, "progress": False}
    apply(pipe, star, style, 0.5, 0.35)
    (drawn,) = sample(pipe, "A [c]", seeds=7, negative_prompt="A cat", **options)
    (like,) = generate(pipe, "A [c]", star, style, 0.5, 0.35, 7, negative_prompt="A cat", **options)
    made_with = read_settings(save_picture(drawn, tmp_path))
    known = {"prompt": "A [c]", "seed": 7, "content_alpha": 0.5, "style_alpha": 0.35}
    assert made_with.items() >= known.items()
    files = {
        "content_B_LoRA": [star],
        "style_B_LoRA": [star] * 3,
        "style_weights": [0.5, 0.3, -0.2],
    }
    assert like.info["blora_nb"] == made_with | files
    pipe.disable_lora()
    (plain,) = sample(pipe, "A [c]", **options)
    assert "content_alpha" not in plain.info["blora_nb"]
    remove(pipe)


def test_previews_look_like_the_picture(pipe):
    look, seen = LatentPreview(pipe), []
    final = generate(
        pipe,
        "A star in neon style",
        seeds=1,
        preview=lambda index, step, latents: seen.append(look(latents)[0]),
        progress=False,
    )[0]
    assert len(seen) == 12
    assert seen[-1].size == (24, 24)
    small = final.resize((24, 24), Image.Resampling.BOX)
    house = generate(pipe, "A house in popart style", seeds=2, progress=False)[0]
    other = house.resize((24, 24), Image.Resampling.BOX)
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

    def far(latents):
        return (latents - steps[-1]).norm()

    torch.testing.assert_close(told[-1], steps[-1])
    assert told[0] is steps[0]
    assert far(told[6]) < 0.3 * far(steps[6])
    assert far(told[9]) < far(told[3]) < far(torch.zeros_like(steps[-1]))


def test_a_few_step_lora_changes_the_base_and_a_blora_goes_on_and_off_beside_it(
    fresh, picture, tmp_path
):
    def draw(*halves):
        options = {"num_inference_steps": 3, "progress": False}
        return generate(fresh, "A star", *halves, **options)[0]

    plain = draw()
    layer = "unet.down_blocks.2.attentions.0.transformer_blocks.0.attn1.to_v"
    width = fresh.unet.config.block_out_channels[2]
    down, up = 3 * torch.randn(4, width), torch.randn(width, 4)
    tensors = {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
    save_file(tensors, tmp_path / "few.safetensors")
    merge_few_step_lora(fresh, tmp_path / "few.safetensors")
    merged = draw()
    assert applied(fresh) == []
    assert difference(plain, merged) > 0.02
    trained = train(fresh, picture, progress=False, max_train_steps=2)
    assert draw(trained, trained).tobytes() != merged.tobytes()
    assert draw().tobytes() == merged.tobytes()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_samplers_draw(fresh, name):
    use_scheduler(fresh, name)
    options = {"num_inference_steps": 4, "guidance_scale": 1.5, "progress": False}
    assert generate(fresh, "A star", **options)[0].size == (96, 96)


def test_an_unknown_sampler_is_refused_with_the_known_ones(fresh):
    with pytest.raises(ValueError, match="dpm"):
        use_scheduler(fresh, "fastest")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"batch_size": -1}, "batch_size must be at least 1, not -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"num_inference_steps": 2.0}, "num_inference_steps must be a whole number, not 2.0"),
        ({"width": "64"}, "width must be a whole number, not '64'"),
        ({"height": -8}, "height must be a multiple of 8, not -8"),
        ({"height": 100, "image": Image.new("RGB", (96, 96))}, "multiple of 8, not 100"),
        ({"strength": "half"}, "strength must be a number, not 'half'"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be an ordinary number"),
    ],
)
def test_a_number_that_makes_no_picture_is_named(pipe, option, message):
    with pytest.raises(ValueError, match=message):
        generate(pipe, "A fish", progress=False, **option)


def test_a_negative_prompt_without_guidance_is_said_to_do_nothing(pipe):
    options = {"negative_prompt": "A cat", "num_inference_steps": 1, "progress": False}
    with pytest.warns(PromptWarning, match="negative prompt does nothing: at a guidance_scale of"):
        generate(pipe, "A fish", guidance_scale=1, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PromptWarning)
        generate(pipe, "A fish", guidance_scale=2, **options)


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_an_alpha_is_an_ordinary_number(pipe, blora, alpha):
    apply(pipe, blora, blora)
    with pytest.raises(ValueError, match="style_alpha must be an ordinary number"):
        set_alphas(pipe, style_alpha=alpha)
    remove(pipe)
