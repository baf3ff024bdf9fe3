"""Scores mean what they say.

The judge on drawings; DINO and CLIP, random and of their real architecture, on any picture.
"""

import json
import re
from statistics import mean

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from blora_nb.course.drawings import OBJECTS, STYLES, draw
from blora_nb.evaluation.metrics import EncoderScorer, JudgeScorer, ranked, scorer_for

CAT, STAR = draw("cat", "wood", 1, 256), draw("star", "neon", 2, 96)
BOTH = [draw("cat", "neon", 1, 96), draw("cat", "wood", 1, 96), draw("star", "neon", 2, 96)]


def test_the_judge_scores_what_was_kept_and_what_moved(pipe):
    scorer = scorer_for(pipe)
    assert isinstance(scorer, JudgeScorer)
    kept, moved = scorer.content_kept(BOTH, CAT), scorer.style_moved(BOTH, STAR)
    assert min(kept[:2]) > 0.6 > 0.4 > kept[2]
    assert min(moved[0], moved[2]) > 0.6 > 0.4 > moved[1]
    assert ranked(kept, moved)[0] == 0
    assert scorer.content_kept([CAT], CAT) == pytest.approx([1], abs=1e-5)


def test_the_judge_finds_the_picture_that_lent_a_half(pipe):
    pictures = {f"{o}_{s}": draw(o, s, 7, 128) for o, s in zip(OBJECTS, STYLES)}
    drawn = [draw(o, s, 7, 96) for o, s in zip(list(OBJECTS)[:6], list(STYLES)[6:])]
    found = scorer_for(pipe).find(drawn, pictures)
    assert sum(shape == name for (shape, _), name in zip(found, pictures)) >= 5
    assert sum(style == name for (_, style), name in zip(found, list(pictures)[6:])) >= 5


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (("unicorn", "neon"), "There is no object 'unicorn'"),
        (("cat", "neonn"), "There is no style 'neonn'. Did you mean neon?"),
        (("cat", "red on bleu"), "There is no colour 'bleu'. Did you mean blue?"),
    ],
)
def test_what_cannot_be_drawn_is_named(named, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        draw(*named)


SPOIL_RANDOM = np.random.default_rng(0)


def blurred(picture, amount):
    return picture.filter(ImageFilter.GaussianBlur(28 * amount))


def noisy(picture, amount):
    noise = SPOIL_RANDOM.normal(0, 300 * amount, (*picture.size, 3))
    return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))


def cut(picture, amount):
    """The left part is covered with the colour of the corner."""
    spoilt = picture.copy()
    box = (0, 0, round(picture.width * (0.15 + 0.7 * amount)), picture.height)
    spoilt.paste(picture.getpixel((0, 0)), box)
    return spoilt


def scribbled(picture, amount):
    spoilt, random = picture.copy(), np.random.default_rng(1)
    for _ in range(round(24 * amount)):
        line = [tuple(point) for point in random.uniform(0, picture.width, (3, 2))]
        ImageDraw.Draw(spoilt).line(line, fill="#505050", width=picture.width // 14)
    return spoilt


@pytest.mark.parametrize("spoil", [blurred, noisy, cut, scribbled])
def test_the_more_a_drawing_is_spoilt_the_less_it_scores(pipe, spoil):
    scorer = scorer_for(pipe)
    drawings = [draw(o, s, 9, 192) for o, s in zip(OBJECTS, STYLES)]
    others = [draw(o, s, 9, 192) for o, s in zip(OBJECTS, reversed(STYLES))]
    means = []
    for amount in (0.0, 0.33, 0.67, 1.0):
        scores = [
            scorer.content_kept([spoil(drawing, amount)], other)[0]
            for drawing, other in zip(drawings, others)
        ]
        means.append(mean(scores))
    assert means == sorted(means, reverse=True)
    assert means[-1] < 0.7 * means[0]


def test_a_scribble_keeps_no_content(pipe):
    scribbles = [scribbled(Image.new("RGB", (192, 192), "#e8e0d0"), a) for a in (0.3, 0.6, 1.0)]
    kept = [scorer_for(pipe).content_kept(scribbles, draw(o, "gold", 3, 192)) for o in OBJECTS]
    assert np.mean(kept) < 0.25


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
