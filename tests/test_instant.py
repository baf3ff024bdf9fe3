"""The instant B-LoRA: exactly what its formula says, better than nothing, and where it belongs."""

from types import SimpleNamespace

import pytest
import torch

from blora_nb.blocks import CONTENT_BLOCK, STYLE_BLOCK
from blora_nb.course.drawings import draw
from blora_nb.evaluation.rebuilding import rebuild
from blora_nb.files.cards import model_card
from blora_nb.files.descriptions import describe
from blora_nb.files.images import to_tensor
from blora_nb.generation import generate
from blora_nb.instant import (
    EYES_SIDE,
    TOKENS,
    WIDTH,
    factors,
    instant_blora,
    instant_change,
    load_eyes,
)
from blora_nb.lora import BLoRA, remove
from blora_nb.pipeline import encode_prompt
from blora_nb.settings import TrainingSettings
from blora_nb.training import train

PICTURE = draw("cat", "clay", 4, EYES_SIDE)


@pytest.mark.parametrize("block", [CONTENT_BLOCK, STYLE_BLOCK])
def test_the_block_hears_the_eyes_where_it_reads_the_prompt(pipe, block):
    remove(pipe)
    read = encode_prompt(pipe, "A [v]")[0][0]
    eyes = load_eyes()
    heard = read.clone()
    if block == CONTENT_BLOCK:
        heard[-TOKENS:, :WIDTH] = eyes["content"](to_tensor(PICTURE))[0]
    else:
        heard[-TOKENS:, WIDTH:] = eyes["style"](to_tensor(PICTURE))[0]
    assert (heard - read).norm() > 10
    changes = instant_change(pipe, PICTURE, "A [v]")
    assert len(changes) == 8
    for name, change in changes.items():
        if name.startswith(block):
            layer = pipe.unet.get_submodule(name)
            torch.testing.assert_close(
                layer(read) + read @ change.T, layer(heard), atol=2e-3, rtol=1e-3
            )


def test_factors_are_the_nearest_of_their_rank():
    change = torch.randn(6, 5) @ torch.diag(torch.tensor([8.0, 4.0, 2.0, 0.0, 0.0]))
    a, b = factors(change, 4)
    assert (a.shape, b.shape) == ((4, 5), (6, 4))
    torch.testing.assert_close(b @ a, change, atol=1e-4, rtol=1e-4)
    a, b = factors(change, 1)
    values = torch.linalg.svdvals(change)
    left_out = values[1:].norm().item()
    assert (change - b @ a).norm().item() == pytest.approx(left_out, rel=1e-4)


@pytest.mark.slow
def test_it_knows_its_picture_and_a_training_from_it_knows_it_better(pipe, tmp_path):
    instant = instant_blora(pipe, PICTURE)
    assert instant.halves == ("content", "style")
    trained = train(pipe, PICTURE, progress=False)
    at_once, later = rebuild(pipe, instant, PICTURE), rebuild(pipe, trained, PICTURE)
    assert at_once.gain > 1
    assert later.psnr > at_once.psnr + 1
    read = BLoRA.load(instant.save(tmp_path / "cat.safetensors"))
    images = [
        generate(pipe, "A [v]", content=one, num_inference_steps=2, progress=False)[0]
        for one in (instant, read)
    ]
    assert images[0].tobytes() == images[1].tobytes()


def test_a_file_holds_it_as_it_is_and_says_how_it_was_made(pipe, picture, tmp_path):
    blora = instant_blora(pipe, picture, rank=64, prompt="A [v] star")
    again = BLoRA.load(blora.save(tmp_path))
    assert again.fingerprint == blora.fingerprint
    assert 'prompt "A [v] star"' in describe(again)
    assert "computed from one picture without training" in model_card(again, "a/b")


def test_it_is_for_one_picture_on_the_teaching_model(pipe):
    config = SimpleNamespace(cross_attention_dim=128, sample_size=12)
    other = SimpleNamespace(unet=SimpleNamespace(config=config), vae_scale_factor=8)
    with pytest.raises(ValueError, match="needs the teaching model"):
        instant_blora(other, PICTURE)
    assert TrainingSettings.for_pipeline(other).init_lora_weights == "gaussian"
    with pytest.raises(ValueError, match="is for one picture"):
        train(pipe, [PICTURE, PICTURE], init_lora_weights="instant")
    several = train(pipe, [PICTURE, PICTURE], progress=False, max_train_steps=1)
    assert '"init_lora_weights": "gaussian"' in several.metadata["training"]
