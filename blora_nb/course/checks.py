"""The checks of the exercises: each looks at properties of an answer, and says what is off.

A check prints one line and returns nothing: "✓ Right. …", "✗ Not yet: …", or "… not solved yet".
"""

import re
from collections.abc import Callable, Sequence
from functools import wraps
from traceback import extract_tb
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from blora_nb.assets import known_words
from blora_nb.blocks import CONTENT_BLOCK
from blora_nb.course.examples import example_blora, example_names, example_picture
from blora_nb.errors import shown
from blora_nb.evaluation.metrics import scorer_for
from blora_nb.generation import generate
from blora_nb.inspection import prompt_per_block
from blora_nb.lora import BLoRA, applied, apply, collect, remove
from blora_nb.settings import TrainingSettings
from blora_nb.training import attach_lora, encode_image, run_steps

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline
    from PIL.Image import Image

# a student's function; it may return anything
Answer = Callable[..., Any]


class NotYet(Exception):
    """What is still wrong with an answer, in words that help."""


class Unsolved(Exception):
    """The stub is as it was."""


def exercise(check: Callable[..., str]) -> Callable[..., None]:
    """Make a function that raises `NotYet`, or returns praise, into one that prints the verdict."""

    @wraps(check)
    def run(*answer: Any) -> None:
        try:
            print("✓ Right.", check(*answer))
        except NotYet as wrong:
            print("✗ Not yet:", wrong)
        except Unsolved:
            print("… not solved yet")
        except Exception as error:
            where = place_in_cell(error, answer)
            # without a place it may be the network's fault, or that of a word in a prompt
            stopped = f"Your code stopped{where}" if where else "The check stopped"
            print(f"✗ {stopped} with {type(error).__name__}: {error}")

    return run


def place_in_cell(error: Exception, answers: Sequence[Any]) -> str:
    """The last line of the answers' own cells that an error came through; "" if there is none."""
    cells = {answer.__code__.co_filename for answer in answers if hasattr(answer, "__code__")}
    through = [f for f in extract_tb(error.__traceback__) if f.filename in cells]
    return f" in line {through[-1].lineno} (`{through[-1].line}`)" if through else ""


def need(condition: bool, message: str) -> None:
    if not condition:
        raise NotYet(message)


def need_prompt(name: str, answer: Any) -> None:
    """Raise unless an answer is a text."""
    if not answer:
        raise Unsolved
    need(isinstance(answer, str), f"{name} should be a prompt: a string in quotes.")


def called(function: Answer, *arguments: Any) -> Any:
    """What an answer returns.

    Raises:
        Unsolved: it is the stub, as it was.
        NotYet: it is no function, or returns None.
    """
    need(callable(function), f"it should be a function, and is {function!r}.")
    result = function(*arguments)
    if result is None:
        if is_stub(function):
            raise Unsolved
        given = shown(" ".join(", ".join(map(repr, arguments)).split()))
        raise NotYet(f"it returns None for {given}. Is a `return` missing?")
    return result


def is_stub(function: Answer) -> bool:
    """Whether a function does nothing: its code is no longer than that of an empty one."""
    empty = (lambda: None).__code__
    code = getattr(function, "__code__", None)
    return code is not None and len(code.co_code) <= len(empty.co_code)


def close(got: Any, wanted: Any, tolerance: float = 1e-4) -> bool:
    """True for numbers or tensors of the same shape that agree."""
    try:
        got = torch.as_tensor(got, dtype=torch.float64)
        wanted = torch.as_tensor(wanted, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        return False
    if got.shape != wanted.shape:
        return False
    return bool(((got - wanted).abs() <= tolerance * (1 + wanted.abs())).all())


# ---------------------------------------------------------------- 0 · setup


@exercise
def two_colours(pipe: "StableDiffusionXLPipeline", answer: str) -> str:
    need_prompt("two_colours", answer)
    pictures = generate(pipe, answer, seeds=[0, 1, 2], progress=False)
    # [pictures, height, width, 3]
    pixels = np.stack([np.asarray(picture) for picture in pictures])
    third = pixels.shape[1] // 3
    middle = mean_colour(pixels[:, third:-third, third:-third])
    ground = mean_colour(np.concatenate([pixels[:, :6], pixels[:, -6:]]))
    need(
        ground[2] > 2 * ground[0] and ground[2] > 1.6 * ground[1],
        f"the background is not blue: its red, green and blue are {ground}. Which of the two "
        "colour words sets the background?",
    )
    need(
        middle[0] > 2 * max(middle[1], middle[2]),
        "the background is blue, but the object is not red: its red, green and blue are "
        f"{middle}. Does the prompt give the object's colour first, and name a compact object?",
    )
    return "First the object's colour, then that of the background."


def mean_colour(pixels: np.ndarray) -> list[int]:
    return pixels.mean((0, 1, 2)).round().astype(int).tolist()


@exercise
def share_right(answer: Answer) -> str:
    wanted = [("cat", "neon"), ("star", "wood"), ("fish", "ink"), ("boat", "gold")]
    got = called(answer, wanted, wanted)
    need(close(got, 1), f"if all pairs agree, the share is 1; you return {got}.")

    half = [("cat", "wood"), ("tree", "wood"), ("fish", "ink"), ("boat", "gold")]
    got = called(answer, half, wanted)
    need(
        close(got, 0.5),
        "two of four agree in both parts, one only in the object, one only in the style: "
        f"the share is 0.5; you return {got}.",
    )
    moved = wanted[1:] + wanted[:1]
    need(
        close(called(answer, moved, wanted), 0),
        "the same pairs in another order are all wrong: compare them position by position.",
    )
    three_cats = [("cat", "neon")] * 3
    three_wanted = [("cat", "neon"), ("cat", "ink"), ("moon", "neon")]
    need(
        close(called(answer, three_cats, three_wanted), 1 / 3),
        "one of three pairs agrees: the share is 1/3. "
        "It must also work for lists of other lengths.",
    )
    return "Both parts, place by place, as a share."


# ---------------------------------------------------------------- 1 · train a B-LoRA


@exercise
def lora_weights(answer: Answer) -> str:
    for rank, inside, outside in ((1, 3, 5), (4, 104, 104), (16, 128, 104), (8, 10, 70)):
        got = called(answer, rank, inside, outside)
        counted = weights_added_by_peft(rank, inside, outside)
        need(
            close(got, counted),
            f"PEFT adds {counted} numbers to a layer [{outside}, {inside}] at rank {rank}; you "
            f"return {got}. A is [{rank}, {inside}] and B is [{outside}, {rank}]: count both.",
        )
    return (
        "The number grows with inputs plus outputs, that of the layer itself with inputs times "
        "outputs: that is why LoRA is small."
    )


def weights_added_by_peft(rank: int, inside: int, outside: int) -> int:
    from peft import LoraConfig, get_peft_model

    layer = torch.nn.Sequential(torch.nn.Linear(inside, outside, bias=False))
    with_lora = get_peft_model(layer, LoraConfig(r=rank, target_modules=["0"]))
    return sum(p.numel() for p in with_lora.parameters() if p.requires_grad)


@exercise
def clean_latents(answer: Answer) -> str:
    from diffusers import DDPMScheduler

    latents, noise = torch.randn(2, 2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    need(
        close(called(answer, latents, -noise, 1.0), latents),
        "with a share of 1 the mixture is the picture itself.",
    )
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    for timestep in (10, 400, 900, 999):
        t = torch.tensor([timestep, timestep])
        share = scheduler.alphas_cumprod[timestep].item()
        noisy = scheduler.add_noise(latents, noise, t)
        velocity = scheduler.get_velocity(latents, noise, t)
        got = called(answer, noisy, velocity, share)
        need(
            not close(got, share * noisy - (1 - share) * velocity),
            "you multiply by the shares themselves. They are shares of the variance: multiply "
            "by their square roots.",
        )
        need(
            close(got, latents),
            f"at t = {timestep}, with a share of {share:.2f}, noise and picture are mixed again "
            "instead of separated. Insert the two formulas into your line, and see what remains.",
        )
    return "That is how a sampler sees the picture behind the noise, at every step."


@exercise
def train_content(pipe: "StableDiffusionXLPipeline", answer: Answer) -> str:
    settings = TrainingSettings.for_pipeline(
        pipe, max_train_steps=5, rank=4, init_lora_weights="gaussian"
    )
    picture = example_picture("cat_wood")
    weight = pipe.unet.conv_in.weight.sum().item()
    try:
        blora = called(answer, pipe, picture, settings)
        need(
            isinstance(blora, BLoRA),
            f"it should return a BLoRA (`collect` makes one), not a {type(blora).__name__}.",
        )
        need(
            blora.halves == ("content",),
            f"it has {' and '.join(blora.halves)}; only the content block should be trained. "
            "Did you pass blocks=[CONTENT_BLOCK] to attach_lora?",
        )
        need(blora.rank == 4, f"its rank is {blora.rank}, the settings say 4.")
        need(
            all(B.any() for _, B in blora.layers.values()), "B is still zero: nothing was trained."
        )
        need(not applied(pipe), "the LoRA is still on the pipeline; take it off with remove(pipe).")
        need(
            pipe.unet.conv_in.weight.sum().item() == weight,
            "the model itself has changed; only the LoRA should learn.",
        )
        trained_alone = content_trained_alone(pipe, picture, settings).state_dict
        need(
            all(close(t, trained_alone[key], 1e-3) for key, t in blora.state_dict.items()),
            "its weights are not those of a content block trained alone. Was the style block "
            "trained, too, or another seed or prompt used?",
        )
    finally:
        remove(pipe)
    return "One half of a B-LoRA, with half of the weights."


def content_trained_alone(
    pipe: "StableDiffusionXLPipeline", picture: "Image", settings: TrainingSettings
) -> BLoRA:
    """A content half, trained without the style block."""
    remove(pipe)
    moments = encode_image(pipe, picture, settings.resolution)
    attach_lora(pipe.unet, settings.rank, seed=settings.seed, blocks=[CONTENT_BLOCK])
    run_steps(pipe, moments, settings, progress=False)
    return collect(pipe.unet, settings)


# ---------------------------------------------------------------- 2 · inspect block attention


@exercise
def role(answer: Answer) -> str:
    for content, style, wanted in (
        (1.0, 0.0, "content"),
        (0.02, 1.1, "style"),
        (0.9, 0.7, "both"),
        (0.0, 0.0, "neither"),
        (-0.1, 0.49, "neither"),
        (0.5, -0.2, "content"),
        (0.3, 0.5, "style"),
        (0.5, 0.5, "both"),
        (0.4, 0.3, "neither"),
        (0.9, 0.6, "both"),
        (0.6, 0.9, "both"),
    ):
        got = called(answer, content, style)
        need(
            got == wanted,
            f'for content {content} and style {style} it should be "{wanted}"; you return {got!r}.',
        )
    return "Each of the two questions is asked on its own."


@exercise
def two_voices(pipe: "StableDiffusionXLPipeline", answer: dict[str, str]) -> str:
    if not answer:
        raise Unsolved
    need(isinstance(answer, dict), "two_voices should be a dictionary from block names to prompts.")
    need(len(answer) <= 2, f"you use {len(answer)} blocks; two are enough.")
    with prompt_per_block(pipe, answer):
        pictures = generate(pipe, "A star in neon style", seeds=[0, 1, 2], progress=False)
    scorer = scorer_for(pipe)
    fishes = nearer(scorer.says_content, pictures, "fish", "star")
    need(
        fishes >= 2,
        f"{fishes} of 3 pictures are more like a fish than like a star. "
        "Which block decides the object, and does it hear the word fish?",
    )
    wooden = nearer(scorer.says_style, pictures, "wood", "neon")
    need(
        wooden >= 2,
        f"{wooden} of 3 pictures are more like wood than like neon. "
        "Which block decides the style, and what does it hear?",
    )
    return "One block hears the object, the other the style."


def nearer(
    says: Callable[[Sequence["Image"], str], list[float]],
    pictures: "Sequence[Image]",
    wanted: str,
    other: str,
) -> int:
    """How many of the pictures score higher for one name than for another."""
    return sum(w > o for w, o in zip(says(pictures, wanted), says(pictures, other)))


@exercise
def needed_rank(answer: Answer) -> str:
    called(answer, [1.0, 1.0], 0.5)
    need(
        called(answer, [4.0, 3.0], 0.6) == 1,
        "the squares of 4 and 3 add up to 25, and 16 of it, a share of 0.64, is from the 4: "
        "for a share of 0.6 one value is enough.",
    )
    need(
        called(answer, [4.0, 3.0], 0.7) == 2,
        "of the squares of 4 and 3, the larger alone is a share of 0.64: "
        "for a share of 0.7 both are needed. Did you square them?",
    )
    need(
        called(answer, [1.0, 2.0, 10.0, 1.0], 0.9) == 1,
        "the values can come in any order: [1, 2, 10, 1] with a share of 0.9 needs only the 10. "
        "Sort them first.",
    )
    need(
        called(answer, [2.0, 2.0, 2.0, 2.0], 0.5) == 2,
        "of four equal values, two have exactly half of the sum of squares: "
        "for a share of 0.5 two are enough.",
    )
    need(
        called(answer, [5.0, 1.0, 1.0], 1.0) == 3,
        "for a share of 1 every value that is not zero is needed.",
    )
    need(
        called(answer, torch.tensor([6.0, 3.0, 2.0]), 0.9) == 2,
        "it should also take a tensor, as svdvals returns one; "
        "the squares of 6 and 3 are 45 of 49.",
    )
    return "Now try it on the curves above: how much rank does each half need for 95 %?"


# ---------------------------------------------------------------- 3 · style transfer


@exercise
def ours(answer: Answer) -> str:
    for published in (1.0, 0.0, 1.1, 0.5, -1.0, 2.0, -0.5):
        got = called(answer, published)
        need(
            close(got, published**2),
            f"the original's {published} acts like {published**2:g}; you return {got}. "
            f"It multiplies A by {published}, and B as well.",
        )
    return "And no published alpha can reverse a half."


@exercise
def best_seed(answer: Answer) -> str:
    called(answer, [1], [0.5], [0.5])
    got = called(answer, [70, 80, 90], [0.9, 0.6, 0.1], [0.1, 0.6, 0.9])
    need(
        got in (70, 80, 90),
        f"the answer is one of the seeds, not its place in the list or its score: of the seeds "
        f"70, 80 and 90 you return {got}.",
    )
    need(
        got == 80,
        "of the pairs (0.9, 0.1), (0.6, 0.6), (0.1, 0.9) the lower score is highest in the "
        f"middle one: seed 80; you return {got}.",
    )
    need(
        called(answer, [3, 4], [1.0, 0.55], [0.5, 0.55]) == 4,
        "(1.0, 0.5) has the larger sum, but its lower score is 0.5; (0.55, 0.55) wins: seed 4.",
    )
    need(
        called(answer, [3, 4], [0.98, 0.6], [0.59, 0.6]) == 4,
        "(0.98, 0.59) has the larger product, but the lower score of (0.6, 0.6) is higher: seed 4.",
    )
    need(
        called(answer, [40, 2], [0.2, 0.3], [0.9, 0.9]) == 2,
        "of the pairs (0.2, 0.9) and (0.3, 0.9) the second is better: seed 2, although 40 is "
        "the larger number.",
    )
    need(
        called(answer, (5, 6), (0.9, 0.4), (0.8, 1.0)) == 5,
        "it should also take tuples, and (0.9, 0.8) is better than (0.4, 1.0).",
    )
    return "The weaker score decides, so neither can make up for the other."


@exercise
def on_the_frontier(answer: Answer) -> str:
    called(answer, [0.5], [0.5])
    for kept, moved, wanted, why in (
        ([0.9, 0.5, 0.4], [0.1, 0.5, 0.2], [0, 1], "(0.5, 0.5) beats (0.4, 0.2) in both"),
        ([0.9, 0.5, 0.5], [0.1, 0.5, 0.4], [0, 1], "(0.5, 0.5) beats (0.5, 0.4): a tie in one"),
        ([0.3, 0.3, 0.2], [0.6, 0.6, 0.6], [0, 1], "two equal points do not beat each other"),
        ([0.2, 0.4, 0.8], [0.9, 0.7, 0.1], [0, 1, 2], "each is best at something"),
        ([0.2, 0.9, 0.1], [0.2, 0.9, 0.1], [1], "(0.9, 0.9) beats all others"),
        (
            [0.2, 0.1, 0.9],
            [0.2, 0.95, 0.9],
            [1, 2],
            "(0.9, 0.9) beats (0.2, 0.2), which is not its neighbour",
        ),
    ):
        got = called(answer, kept, moved)
        need(
            isinstance(got, list | tuple) and list(got) == wanted,
            f"for kept {kept} and moved {moved} the answer is {wanted}, because {why}; you "
            f"return {got}.",
        )
    return (
        "A choice among these is a matter of taste; every other point can be improved in one "
        "score without loss in the other."
    )


@exercise
def lora_layer(pipe: "StableDiffusionXLPipeline", answer: Answer) -> str:
    blora = example_blora(pipe, "cat_wood")
    name = "up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_v"
    A, B = blora.layers[name]
    W = pipe.unet.get_submodule(name).weight.float().cpu()
    x = torch.randn(5, W.shape[1], generator=torch.Generator().manual_seed(0))
    need(
        close(called(answer, x, W, A, B, 0.0), x @ W.T),
        "with alpha 0 it is the layer without LoRA, x·Wᵀ.",
    )
    tolerance = 2e-3 if pipe.unet.dtype == torch.float32 else 5e-2
    for alpha in (1.0, 0.7, -1.0, 2.0):
        apply(pipe, style=blora, style_alpha=alpha)
        try:
            layer = pipe.unet.get_submodule(name)
            returned = layer(x.to(pipe.unet.device, pipe.unet.dtype)).float().cpu()
        finally:
            remove(pipe)
        need(
            close(answer(x, W, A, B, alpha), returned, tolerance),
            f"with alpha {alpha} the real layer in the pipeline returns something else. "
            "Does alpha appear once, and B·A in this order?",
        )
    return "The layer in the pipeline returns the same numbers."


# ---------------------------------------------------------------- 4 · text stylization


@exercise
def golden_words(pipe: "StableDiffusionXLPipeline", answer: str) -> str:
    need_prompt("golden_words", answer)
    need(
        not re.search(r"\bcats?\b", answer.lower()),
        "the prompt names the animal; let the content half do that.",
    )
    cat = example_blora(pipe, "cat_wood")
    pictures = generate(pipe, answer, content=cat, seeds=[0, 1, 2, 3], progress=False)
    scorer = scorer_for(pipe)
    styles = [style for _, style in scorer.name(pictures)]
    need(
        styles.count("gold") >= 3,
        f"the style is {', '.join(styles)}, not gold. Do the words say the style?",
    )
    kept = scorer.content_kept(pictures, example_picture("cat_wood"))
    need(
        sum(score > 0.5 for score in kept) >= 2,
        f"content kept is {', '.join(f'{score:.2f}' for score in kept)}: this is not the cat. "
        "Do the words name another object, or leave no place for one?",
    )
    return "The words give the style, the half gives the cat."


@exercise
def useful_range(answer: Answer) -> str:
    def range_of(*arguments: Any) -> tuple | None:
        returned = answer(*arguments)
        # None is no pair, but there is more to say about it below
        if returned is None:
            return None
        need(
            isinstance(returned, tuple | list) and len(returned) == 2,
            f"return a pair, the lowest and the highest alpha; you return {returned!r}.",
        )
        return tuple(returned)

    called(answer, [1.0], [1.0], [1.0], 0.5)
    alphas = [0.0, 0.5, 1.0, 1.5, 2.0]
    kept = [0.1, 0.6, 0.9, 1.0, 1.0]
    followed = [1.0, 1.0, 0.8, 0.7, 0.2]
    got = range_of(alphas, kept, followed, 0.5)
    need(
        got == (0.5, 1.5),
        f"for kept {kept} and followed {followed} both are at least 0.5 from alpha 0.5 to 1.5; "
        f"you return {got}.",
    )
    need(
        range_of(alphas, kept, followed, 0.6) == (0.5, 1.5),
        "where enough is 0.6, a score of exactly 0.6 is enough.",
    )
    need(
        range_of(alphas, kept, followed, 0.95) == (None, None),
        "if no alpha is good in both, return the pair (None, None).",
    )
    order = [3, 0, 4, 2, 1]
    shuffled = [[values[i] for i in order] for values in (alphas, kept, followed)]
    need(range_of(*shuffled, 0.5) == (0.5, 1.5), "the alphas may come in any order.")
    need(
        range_of([-1.0, -0.5, 0.0], [0.9, 0.9, 0.1], [0.9, 0.9, 0.9], 0.5) == (-1.0, -0.5),
        "alphas can be negative.",
    )
    need(
        range_of([0.0, 1.0], [0.9, 0.1], [0.9, 0.9], 0.5) == (0.0, 0.0),
        "an alpha of 0 counts like any other.",
    )
    return "Both scores at once, and only the ends."


@exercise
def seeds_needed(answer: Answer) -> str:
    for p, chance, wanted in (
        (0.5, 0.5, 1),
        (0.5, 0.75, 2),
        (0.5, 0.76, 3),
        (0.9, 0.5, 1),
        (0.125, 0.95, 23),
        (0.01, 0.5, 69),
    ):
        got = called(answer, p, chance)
        need(
            close(got, wanted),
            f"with p = {p} it takes {wanted} seeds to reach {chance}; you return {got}.",
        )
    need(
        close(result_or_none(answer, 1.0, 0.99), 1),
        "if every seed is good (p = 1), one is enough. (The logarithm of 1 − p does not exist.)",
    )
    return "One in eight means 23 pictures for 95 %. Better: raise p first."


def result_or_none(function: Answer, *arguments: Any) -> Any:
    """What an answer returns, or None where it stops with an error of arithmetic."""
    try:
        return function(*arguments)
    except (ArithmeticError, ValueError):
        return None


# ---------------------------------------------------------------- 5 · consistent style


@exercise
def my_series(pipe: "StableDiffusionXLPipeline", objects: Sequence[str], style: str) -> str:
    if not objects or not style:
        raise Unsolved
    names = example_names()
    need(style in names, f"{style!r} is not one of the examples; they are {', '.join(names)}.")
    unknown = sorted(set(objects) - set(known_words()["objects"]))
    need(
        not unknown,
        f"the model does not know {', '.join(unknown)}. Use bare words from "
        'known_words()["objects"]: "star", not "a star".',
    )
    different = len(set(objects))
    need(different >= 4, f"{different} different objects are not yet a series; take at least four.")
    own_object = style.split("_")[0]
    need(
        own_object not in objects,
        f"{own_object} is the object of the style picture itself; drawing it proves nothing.",
    )
    blora = example_blora(pipe, style)
    plain, pictures = {style: example_picture(style)}, []
    for thing in objects:
        plain[thing] = generate(pipe, f"A {thing}", seeds=0, progress=False)[0]
        prompt = f"A {thing} in [s] style"
        pictures += generate(pipe, prompt, style=blora, seeds=0, progress=False)
    scorer = scorer_for(pipe)
    examples = {name: example_picture(name) for name in names}
    wrong = []
    for thing, (shape, _), (_, look) in zip(
        objects, scorer.find(pictures, plain), scorer.find(pictures, examples)
    ):
        if shape != thing:
            wrong.append(f"{thing} looks more like {shape}")
        elif look != style:
            wrong.append(f"{thing} is more in the style of {look}")
    need(
        len(wrong) <= len(objects) / 3,
        f"too many are wrong: {'; '.join(wrong)}. "
        "Thin objects are harder than compact ones, and some styles are harder than others.",
    )
    return f"A series in the style of {style}, which shows none of its objects."


@exercise
def colour_distance(answer: Answer) -> str:
    even = torch.full((8,), 1 / 8)
    left = torch.tensor([0.5, 0.5, 0, 0, 0, 0, 0, 0])
    right = torch.tensor([0, 0, 0, 0, 0, 0, 0.25, 0.75])
    called(answer, even, even)
    need(close(called(answer, left, left), 0), "the distance of a histogram from itself is 0.")
    got = called(answer, left, right)
    need(close(got, 1), f"the distance of two that share no bin is 1; you return {got}.")
    got = called(answer, even, left)
    need(
        close(got, called(answer, left, even)), "it should not matter which of the two comes first."
    )
    need(
        close(got, 0.75),
        f"[1/8, …] and [1/2, 1/2, 0, …] share 2/8, so their distance is 0.75; you return {got}.",
    )
    uneven = torch.tensor([0.25, 0.75, 0, 0, 0, 0, 0, 0])
    got = called(answer, left, uneven)
    need(
        close(got, 0.25),
        f"[1/2, 1/2, 0, …] and [1/4, 3/4, 0, …] fill the same bins and still share only 3/4: their "
        f"distance is 0.25; you return {got}.",
    )
    return "One minus the overlap is half the sum of the absolute differences."


@exercise
def mixed_change(answer: Answer) -> str:
    generator = torch.Generator().manual_seed(0)

    def lora(rank: int) -> tuple[Tensor, Tensor]:
        """A pair B [6, rank], A [rank, 5]."""
        B = torch.randn(6, rank, generator=generator, dtype=torch.float64)
        return B, torch.randn(rank, 5, generator=generator, dtype=torch.float64)

    first, second, of_rank_3 = lora(2), lora(2), lora(3)
    change, other, another = (B @ A for B, A in (first, second, of_rank_3))
    got = called(answer, first, first, 0.5)
    need(close(got, change), "mixed with itself, a LoRA stays what it is: B·A.")
    got = called(answer, first, second, 0.0)
    need(close(got, change), "with a share of 0 only the first is there.")
    got = called(answer, first, second, 1.0)
    need(close(got, other), "with a share of 1 only the second is there.")
    need(
        close(called(answer, first, second, 0.25), 0.75 * change + 0.25 * other),
        "with a share of 0.25 it should be three quarters of the first change and one quarter "
        "of the second. Do you multiply B·A first, and then mix?",
    )
    need(
        close(called(answer, first, of_rank_3, 0.5), (change + another) / 2),
        "the two may be of different rank: B·A always has the shape of the weight.",
    )
    return (
        "Mixing As and Bs separately would add cross terms, the B of one times the A of the "
        "other, and would fail for different ranks."
    )
