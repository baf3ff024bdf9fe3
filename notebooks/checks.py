"""The checks of the exercises. Each looks at properties of an answer, never at its form, and says what is off.

A check prints one line and returns nothing: "✓ Right. …", "✗ Not yet: …", or "… not solved yet".
"""

import re
from functools import wraps

import torch


class NotYet(Exception):
    """What is still wrong with an answer, in words that help."""


def need(condition, message):
    if not condition:
        raise NotYet(message)


def exercise(check):
    """Makes a function that raises NotYet, or returns a sentence of praise, into one that prints the verdict."""

    @wraps(check)
    def run(*answer):
        try:
            print("✓ Right.", check(*answer))
        except NotYet as wrong:
            print("✗ Not yet:", wrong)
        except Unsolved:
            print("… not solved yet")
        except Exception as error:  # the student's own code stopped
            print(f"✗ Your code stopped with {type(error).__name__}: {error}")

    return run


class Unsolved(Exception):
    """The stub as it was."""


def called(function, *arguments):
    """What an answer returns; None is what a stub returns."""
    result = function(*arguments)
    if result is None:
        raise Unsolved
    return result


def close(got, wanted, tolerance=1e-4):
    """True for numbers or tensors of the same shape that agree."""
    try:
        got, wanted = (
            torch.as_tensor(got, dtype=torch.float64),
            torch.as_tensor(wanted, dtype=torch.float64),
        )
    except (TypeError, ValueError, RuntimeError):
        return False
    return got.shape == wanted.shape and bool(
        ((got - wanted).abs() <= tolerance * (1 + wanted.abs())).all()
    )


# ---------------------------------------------------------------- 0 · setup


@exercise
def two_colours(pipe, answer):
    from blora_nb.files.images import to_tensor
    from blora_nb.generation import generate

    if not answer:
        raise Unsolved
    need(isinstance(answer, str), "two_colours should be a prompt, a text.")
    pixels = torch.cat(
        [to_tensor(p) for p in generate(pipe, answer, seeds=[0, 1, 2], progress=False)]
    )  # [3, 3, side, side]
    third = pixels.shape[-1] // 3
    middle = pixels[:, :, third:-third, third:-third].mean((0, 2, 3))
    frame = torch.cat([pixels[:, :, :6].flatten(2), pixels[:, :, -6:].flatten(2)], 2).mean((0, 2))
    need(
        frame[2] > frame[0] + 0.2,
        f"the ground is not blue: its red, green and blue are {as_bytes(frame)}.",
    )
    need(
        middle[0] > middle[2] + 0.2,
        f"the ground is blue, but the object is not red: its red, green and blue are {as_bytes(middle)}. Is the object's colour said first, and a compact object named?",
    )
    return "First the object's colour, then the ground's."


def as_bytes(colour):
    return ((colour + 1) * 127.5).round().int().tolist()


@exercise
def share_right(answer):
    wanted = [("cat", "neon"), ("star", "wood"), ("fish", "ink"), ("boat", "gold")]
    called(answer, wanted, wanted)
    need(
        close(called(answer, wanted, wanted), 1),
        f"where everything agrees the share is 1; you return {answer(wanted, wanted)}.",
    )
    half = [("cat", "wood"), ("tree", "wood"), ("fish", "ink"), ("boat", "gold")]
    need(
        close(called(answer, half, wanted), 0.5),
        f"two of four agree in both parts, one only in the object, one only in the style: the share is 0.5; you return {answer(half, wanted)}.",
    )
    moved = wanted[1:] + wanted[:1]
    need(
        close(called(answer, moved, wanted), 0),
        "the same pairs in another order are all wrong: each place is compared with its own.",
    )
    need(
        close(
            called(
                answer, [("cat", "neon")] * 3, [("cat", "neon"), ("cat", "ink"), ("moon", "neon")]
            ),
            1 / 3,
        ),
        "one of three pairs agrees: the share is 1/3. It must also work for lists of other lengths.",
    )
    return "Both parts, place by place, as a share."


# ---------------------------------------------------------------- 1 · train a B-LoRA


@exercise
def lora_weights(answer):
    from peft import LoraConfig, get_peft_model

    for rank, inside, outside in ((1, 3, 5), (4, 104, 104), (16, 128, 104), (8, 10, 70)):
        got = called(answer, rank, inside, outside)
        layer = torch.nn.Sequential(torch.nn.Linear(inside, outside, bias=False))
        truth = sum(
            p.numel()
            for p in get_peft_model(layer, LoraConfig(r=rank, target_modules=["0"])).parameters()
            if p.requires_grad
        )
        need(
            close(got, truth),
            f"PEFT adds {truth} numbers to a layer [{outside}, {inside}] at rank {rank}; you say {got}.",
        )
    return "It grows with the sum of the sides, the layer itself with their product: that is why LoRA is small."


@exercise
def add_noise(answer):
    from diffusers import DDPMScheduler

    generator = torch.Generator().manual_seed(0)
    latents, noise = (
        torch.randn(2, 4, 6, 6, generator=generator),
        torch.randn(2, 4, 6, 6, generator=generator),
    )
    need(
        close(called(answer, latents, noise, 1.0), latents),
        "with a share of 1 nothing but the picture is there.",
    )
    need(
        close(answer(latents, noise, 0.0), noise),
        "with a share of 0 nothing but the noise is there.",
    )
    spread = answer(latents, noise, 0.3).std().item()
    need(
        abs(spread - 1) < 0.1,
        f"picture and noise have a spread of 1, and so must the mixture; yours has {spread:.2f} at a share of 0.3. Variances add up, amplitudes do not.",
    )
    scheduler = DDPMScheduler()
    for t in (10, 400, 900):
        need(
            close(
                answer(latents, noise, scheduler.alphas_cumprod[t].item()),
                scheduler.add_noise(latents, noise, torch.tensor([t, t])),
            ),
            f"at t = {t} it differs from what diffusers computes.",
        )
    return "diffusers' DDPMScheduler.add_noise does the same."


@exercise
def train_content(pipe, answer):
    from blora_nb.course.examples import example_picture
    from blora_nb.lora import BLoRA, applied, remove
    from blora_nb.settings import TrainingSettings

    settings = TrainingSettings.for_pipeline(pipe, max_train_steps=5, rank=4)
    weight = pipe.unet.conv_in.weight.sum().item()
    try:
        blora = called(answer, pipe, example_picture("cat_wood"), settings)
        need(
            isinstance(blora, BLoRA),
            f"it should return a BLoRA (`collect` makes one), not a {type(blora).__name__}.",
        )
        need(
            blora.halves == ("content",),
            f"it has {' and '.join(blora.halves)}; only the content block should be trained. Did attach_lora get the block?",
        )
        need(blora.rank == 4, f"its rank is {blora.rank}, the settings say 4.")
        moved = [t for key, t in blora.state_dict.items() if "lora_B" in key]
        need(all(t.abs().sum() > 0 for t in moved), "B is still zero: nothing was trained.")
        need(not applied(pipe), "the LoRA is still on the pipeline; take it off with remove(pipe).")
        need(
            pipe.unet.conv_in.weight.sum().item() == weight,
            "the model itself has changed; only the LoRA should learn.",
        )
        alone = _trained_alone(pipe, example_picture("cat_wood"), settings)
        need(
            all(close(t, alone[key], 1e-2) for key, t in blora.state_dict.items()),
            "its numbers are not those of a content block that learnt alone. Was the style block trained beside it, or another seed or prompt used?",
        )
    finally:
        remove(pipe)
    return "One half of a B-LoRA, in half of the weights."


def _trained_alone(pipe, picture, settings):
    """The weights of a LoRA on the content block, trained without the style block."""
    from blora_nb.blocks import CONTENT_BLOCK
    from blora_nb.lora import collect, remove
    from blora_nb.training import attach_lora, encode_image, run_steps

    remove(pipe)
    run_steps(
        pipe,
        attach_lora(pipe.unet, settings.rank, settings.seed, [CONTENT_BLOCK]),
        encode_image(pipe, picture, settings.resolution),
        settings,
        progress=False,
    )
    return collect(pipe.unet, settings).state_dict


# ---------------------------------------------------------------- 2 · inspect block attention


@exercise
def role(answer):
    called(answer, 1.0, 0.0)
    cases = {
        (1.0, 0.0): "content",
        (0.02, 1.1): "style",
        (0.9, 0.7): "both",
        (0.0, 0.0): "neither",
        (-0.1, 0.49): "neither",
        (0.5, -0.2): "content",
        (0.3, 0.5): "style",
        (0.5, 0.5): "both",
        (0.4, 0.3): "neither",
        (0.9, 0.6): "both",
        (0.6, 0.9): "both",
    }
    for (content, style), wanted in cases.items():
        got = called(answer, content, style)
        need(
            got == wanted,
            f'for content {content} and style {style} it should be "{wanted}"; you return {got!r}.',
        )
    return "Each of the two questions is asked on its own."


@exercise
def two_voices(pipe, answer):
    from blora_nb.generation import generate
    from blora_nb.inspection import prompt_per_block
    from blora_nb.metrics import scorer_for

    if not answer:
        raise Unsolved
    need(isinstance(answer, dict), "two_voices should be a dictionary from block names to prompts.")
    need(len(answer) <= 2, f"you use {len(answer)} blocks; two are enough.")
    with prompt_per_block(pipe, answer):
        pictures = generate(pipe, "A star in neon style", seeds=[0, 1, 2], progress=False)
    objects, styles = zip(*scorer_for(pipe).name(pictures))
    need(
        objects.count("fish") >= 2,
        f"it draws {', '.join(objects)}, not a fish. Which block decides the object, and does it hear the word fish?",
    )
    need(
        styles.count("wood") >= 2,
        f"the style is {', '.join(styles)}, not wood. Which block decides the style, and what does it hear?",
    )
    return "One block hears the object, the other the style."


@exercise
def needed_rank(answer):
    called(answer, [1.0, 1.0], 0.5)
    need(
        called(answer, [3.0, 4.0], 0.6) == 1,
        "of the values 3 and 4 the larger alone has 16 of 25 of the squares, that is 0.64: for a share of 0.6 one is enough.",
    )
    need(
        called(answer, [4.0, 3.0], 0.7) == 2,
        "of the values 4 and 3 the larger alone has 0.64 of the squares: for a share of 0.7 both are needed. Did you square them?",
    )
    need(
        called(answer, [1.0, 2.0, 10.0, 1.0], 0.9) == 1,
        "the values need not be sorted: [1, 2, 10, 1] with a share of 0.9 needs only the 10.",
    )
    need(
        called(answer, [2.0, 2.0, 2.0, 2.0], 0.5) == 2,
        "two of four equal values have exactly half of the squares: at least 0.5 is reached with 2.",
    )
    need(
        called(answer, [5.0, 1.0, 1.0], 1.0) == 3,
        "for a share of 1 every value that is not zero is needed.",
    )
    need(
        called(answer, torch.tensor([6.0, 3.0, 2.0]), 0.9) == 2,
        "it should also take a tensor, as svdvals returns one; 6 and 3 have 45 of 49 of the squares.",
    )
    return "Now try it on the curves above: how much rank does each half need for 95 %?"


# ---------------------------------------------------------------- 3 · style transfer


@exercise
def ours(answer):
    called(answer, 1.0)
    for published, wanted in (
        (1.0, 1.0),
        (0.0, 0.0),
        (1.1, 1.21),
        (0.5, 0.25),
        (-1.0, 1.0),
        (2.0, 4.0),
        (-0.5, 0.25),
    ):
        got = called(answer, published)
        need(
            close(got, wanted), f"the original's {published} acts with {wanted}; you return {got}."
        )
    return "And no published alpha can turn a half round."


@exercise
def best_seed(answer):
    called(answer, [1], [0.5], [0.5])
    need(
        called(answer, [7, 8, 9], [0.9, 0.6, 0.1], [0.1, 0.6, 0.9]) == 8,
        "of the pairs (0.9, 0.1), (0.6, 0.6), (0.1, 0.9) the middle one has the strongest weaker score: seed 8.",
    )
    need(
        called(answer, [3, 4], [1.0, 0.55], [0.5, 0.55]) == 4,
        "(1.0, 0.5) has the larger sum, but its weaker score is 0.5; (0.55, 0.55) wins: seed 4.",
    )
    need(
        called(answer, [3, 4], [0.98, 0.6], [0.59, 0.6]) == 4,
        "(0.98, 0.59) has the larger product, but (0.6, 0.6) the stronger weaker score: seed 4.",
    )
    need(
        called(answer, [40, 2], [0.2, 0.3], [0.9, 0.9]) == 2,
        "the answer is the seed, not its place in the list: of seeds 40 and 2 it is 2.",
    )
    need(
        called(answer, (5, 6), (0.9, 0.4), (0.8, 1.0)) == 5,
        "it should also take tuples, and (0.9, 0.8) is better than (0.4, 1.0).",
    )
    return "The weaker score decides, so neither can make up for the other."


@exercise
def lora_layer(pipe, answer):
    from blora_nb.course.examples import example_blora
    from blora_nb.lora import apply, remove

    blora, name = (
        example_blora(pipe, "cat_wood"),
        "up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_v",
    )
    A, B = (blora.state_dict[f"unet.{name}.lora_{part}.weight"] for part in "AB")
    W = pipe.unet.get_submodule(name).weight.float().cpu()
    x = torch.randn(5, W.shape[1], generator=torch.Generator().manual_seed(0))
    got = called(answer, x, W, A, B, 0.0)
    need(close(got, x @ W.T), "with alpha 0 it is the layer without LoRA, x·Wᵀ.")
    for alpha in (1.0, 0.7, -1.0, 2.0):
        apply(pipe, style=blora, style_alpha=alpha)
        try:
            truth = (
                pipe.unet.get_submodule(name)(x.to(pipe.unet.device, pipe.unet.dtype)).float().cpu()
            )
        finally:
            remove(pipe)
        need(
            close(
                answer(x, W, A, B, alpha), truth, 2e-3 if pipe.unet.dtype == torch.float32 else 5e-2
            ),
            f"with alpha {alpha} the real layer in the pipeline returns something else. Is alpha there once, and B·A in this order?",
        )
    return "The layer in the pipeline returns the same numbers."


# ---------------------------------------------------------------- 4 · text stylization


@exercise
def golden_words(pipe, answer):
    from blora_nb.course.examples import example_blora
    from blora_nb.generation import generate
    from blora_nb.metrics import scorer_for

    if not answer:
        raise Unsolved
    need(isinstance(answer, str), "golden_words should be a prompt, a text.")
    need(
        not re.search(r"\bcats?\b", answer.lower()),
        "the prompt names the animal; let the content half do that.",
    )
    objects, styles = zip(
        *scorer_for(pipe).name(
            generate(
                pipe,
                answer,
                content=example_blora(pipe, "cat_wood"),
                seeds=[0, 1, 2, 3],
                progress=False,
            )
        )
    )
    need(
        styles.count("gold") >= 3,
        f"the style is {', '.join(styles)}, not gold. Do the words say the style?",
    )
    need(
        objects.count("cat") >= 2,
        f"the object is {', '.join(objects)}, not a cat. Do the words name another object, or leave no place for one?",
    )
    return "The words give the style, the half gives the cat."


@exercise
def useful_range(answer):
    called(answer, [1.0], [1.0], [1.0], 0.5)
    alphas, kept, followed = (
        [0.0, 0.5, 1.0, 1.5, 2.0],
        [0.1, 0.6, 0.9, 1.0, 1.0],
        [1.0, 1.0, 0.8, 0.7, 0.2],
    )
    pair = lambda *arguments: tuple(called(answer, *arguments))
    need(
        pair(alphas, kept, followed, 0.5) == (0.5, 1.5),
        f"for kept {kept} and followed {followed} both are at least 0.5 from alpha 0.5 to 1.5; you return {answer(alphas, kept, followed, 0.5)}.",
    )
    need(pair(alphas, kept, followed, 0.6) == (0.5, 1.5), "exactly 0.6 is enough for 0.6.")
    need(
        pair(alphas, kept, followed, 0.95) == (None, None),
        "if no alpha is good in both, it is the pair (None, None).",
    )
    order = [3, 0, 4, 2, 1]
    shuffled = [[values[i] for i in order] for values in (alphas, kept, followed)]
    need(pair(*shuffled, 0.5) == (0.5, 1.5), "the alphas may come in any order.")
    need(
        pair([-1.0, -0.5, 0.0], [0.9, 0.9, 0.1], [0.9, 0.9, 0.9], 0.5) == (-1.0, -0.5),
        "alphas can be negative.",
    )
    need(
        pair([0.0, 1.0], [0.9, 0.1], [0.9, 0.9], 0.5) == (0.0, 0.0),
        "an alpha of 0 counts like any other.",
    )
    return "Both scores at once, and only the ends."


@exercise
def seeds_needed(answer):
    called(answer, 0.5, 0.5)
    for p, chance, wanted in (
        (0.5, 0.5, 1),
        (0.5, 0.75, 2),
        (0.5, 0.76, 3),
        (1.0, 0.99, 1),
        (0.9, 0.5, 1),
        (0.125, 0.95, 23),
        (0.01, 0.5, 69),
    ):
        got = called(answer, p, chance)
        need(
            close(got, wanted),
            f"with p = {p} it takes {wanted} seeds to reach {chance}; you say {got}.",
        )
    return "One in eight means 23 pictures for 95 %. Better: raise p first."


# ---------------------------------------------------------------- 5 · consistent style


@exercise
def my_series(pipe, objects, style):
    from blora_nb.course.examples import example_blora, example_names, example_picture
    from blora_nb.generation import generate
    from blora_nb.metrics import scorer_for

    if not objects or not style:
        raise Unsolved
    need(
        style in example_names(),
        f"{style!r} is none of the examples; they are {', '.join(example_names())}.",
    )
    need(
        len(set(objects)) >= 4,
        f"{len(set(objects))} different objects are not yet a series; take at least four.",
    )
    own, look = scorer_for(pipe).name([example_picture(style)])[0]
    need(
        own not in objects,
        f"{own} is the object of the style picture itself; that it comes out proves nothing.",
    )
    images = [
        generate(
            pipe,
            f"A {thing} in [s] style",
            style=example_blora(pipe, style),
            seeds=0,
            progress=False,
        )[0]
        for thing in objects
    ]
    found = scorer_for(pipe).name(images)
    wrong = [
        f"{thing} became {o}, {s}"
        for thing, (o, s) in zip(objects, found)
        if (o, s) != (thing, look)
    ]
    need(
        len(wrong) <= len(objects) / 3,
        f"too few come out: {'; '.join(wrong)}. Does the model know these objects? Some styles are harder than others.",
    )
    return f"A series in {look}, of a picture that shows none of its objects."


@exercise
def colour_distance(answer):
    even, left, right = (
        torch.full((8,), 1 / 8),
        torch.tensor([0.5, 0.5, 0, 0, 0, 0, 0, 0]),
        torch.tensor([0, 0, 0, 0, 0, 0, 0.25, 0.75]),
    )
    called(answer, even, even)
    need(close(called(answer, left, left), 0), "a histogram has the distance 0 from itself.")
    need(
        close(called(answer, left, right), 1),
        f"two that share no box have the distance 1; you return {answer(left, right)}.",
    )
    need(
        close(called(answer, even, left), called(answer, left, even)),
        "it should not matter which of the two comes first.",
    )
    need(
        close(called(answer, even, left), 0.75),
        f"[1/8, …] and [1/2, 1/2, 0, …] share 2/8, so their distance is 0.75; you return {answer(even, left)}.",
    )
    return "One minus the overlap is half the sum of the absolute differences."


@exercise
def mixed_change(answer):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)
    first, second = (draw(6, 2), draw(2, 5)), (draw(6, 3), draw(3, 5))
    got = called(answer, first, first, 0.5)
    need(close(got, first[0] @ first[1]), "mixed with itself, a LoRA stays what it is: B·A.")
    need(
        close(called(answer, first, second, 0.0), first[0] @ first[1]),
        "with a share of 0 only the first is there.",
    )
    need(
        close(called(answer, first, second, 1.0), second[0] @ second[1]),
        "with a share of 1 only the second is there.",
    )
    need(
        close(
            called(answer, first, second, 0.25),
            0.75 * first[0] @ first[1] + 0.25 * second[0] @ second[1],
        ),
        "with a share of 0.25 it should be three quarters of the first change and one quarter of the second.",
    )
    return "Mixing As and Bs separately would give cross terms of one's B and the other's A, and fails for different ranks."
