"""Scores mean what they say.

The judge on drawings; DINO and CLIP, random and of their real architecture, on any picture.
"""

import json

import pytest
import torch

from blora_nb.course.drawings import draw
from blora_nb.metrics import EncoderScorer, JudgeScorer, ranked, scorer_for


def test_the_judge_scores_what_was_kept_and_what_moved(pipe):
    scorer = scorer_for(pipe)
    assert isinstance(scorer, JudgeScorer)
    content, style = draw("cat", "wood", 1, 256), draw("star", "neon", 2, 96)
    images = [draw("cat", "neon", 3, 96), draw("cat", "wood", 4, 96), draw("star", "neon", 5, 96)]
    kept, moved = scorer.content_kept(images, content), scorer.style_moved(images, style)
    assert kept[0] > 0.9
    assert kept[1] > 0.9
    assert kept[2] < 0.1
    assert moved[0] > 0.9
    assert moved[1] < 0.1
    assert moved[2] > 0.9
    assert ranked(kept, moved)[0] == 0
    assert scorer.says_content(images, "cat") == pytest.approx(kept)
    assert scorer.says_style(images, "neon") == pytest.approx(moved)


def write_processor(folder, **settings):
    settings |= {"do_resize": True, "do_normalize": True}
    settings |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """DINO and CLIP with random weights, two layers each, written as the hub has them."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, ViTConfig, ViTModel

    from blora_nb.assets import TINY_SDXL

    folder = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    small = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "patch_size": 8,
    }
    ViTModel(ViTConfig(image_size=32, **small), add_pooling_layer=False).save_pretrained(
        folder / "dino"
    )
    tokenizer = CLIPTokenizer.from_pretrained(TINY_SDXL / "tokenizer")
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 16,
        "eos_token_id": tokenizer.eos_token_id,
    }
    CLIPModel(
        CLIPConfig(text_config=text, vision_config={"image_size": 32, **small}, projection_dim=16)
    ).save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    write_processor(
        folder / "dino",
        image_processor_type="ViTImageProcessor",
        size={"height": 32, "width": 32},
    )
    write_processor(
        folder / "clip",
        image_processor_type="CLIPImageProcessor",
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        do_center_crop=True,
    )
    return EncoderScorer(folder / "dino", folder / "clip", device="cpu")


def test_dino_finds_a_picture_most_like_itself(encoders):
    picture = draw("cat", "wood", 1, 200)
    images = [draw("star", "neon", 2, 96), picture, draw("moon", "candy", 3, 64)]
    scores = encoders.content_kept(images, picture)
    assert scores[1] == pytest.approx(1, abs=1e-5)
    assert max(scores[0], scores[2]) < 0.9999
    assert all(-1 <= s <= 1 for s in encoders.style_moved(images, picture))


def test_clip_agrees_with_transformers_own_logits(encoders):
    images = [draw("star", "neon", 2, 96), draw("cat", "wood", 3, 96)]
    inputs = encoders.clip_processor(
        text=["A photo of a cat"], images=images, return_tensors="pt", padding=True
    )
    with torch.no_grad():
        outputs = encoders.clip(**inputs)
    expected = outputs.logits_per_image[:, 0] / encoders.clip.logit_scale.exp()
    assert encoders.says_content(images, "cat") == pytest.approx(expected.tolist(), abs=1e-5)
    assert encoders.says_style(images, "neon") != encoders.says_style(images, "wood")
    (found, _), _ = encoders.name(images)
    assert all(
        encoders.says_content(images, found)[0] >= encoders.says_content(images, other)[0]
        for other in ("cat", "star", "moon")
    )
