"""The checks of the exercises. Each looks at properties of an answer, never at its form, and says what is off.

A check prints one line and returns nothing: "✓ Right. …", "✗ Not yet: …", or "… not solved yet".
"""

import random
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
        got, wanted = torch.as_tensor(got, dtype=torch.float64), torch.as_tensor(wanted, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        return False
    return got.shape == wanted.shape and bool(((got - wanted).abs() <= tolerance * (1 + wanted.abs())).all())


# ---------------------------------------------------------------- 2 · inspect block attention


@exercise
def role(answer):
    called(answer, 1.0, 0.0)
    cases = {(1.0, 0.0): "content", (0.02, 1.1): "style", (0.9, 0.7): "both", (0.0, 0.0): "neither", (-0.1, 0.49): "neither", (0.5, -0.2): "content", (0.3, 0.5): "style", (0.5, 0.5): "both", (0.4, 0.3): "neither", (0.9, 0.6): "both", (0.6, 0.9): "both"}  # fmt: skip
    for (content, style), wanted in cases.items():
        got = called(answer, content, style)
        need(got == wanted, f'for content {content} and style {style} it should be "{wanted}"; you return {got!r}.')
    return "Each of the two questions is asked on its own."


@exercise
def two_voices(pipe, answer):
    from blora_nb import generate, prompt_per_block
    from blora_nb.metrics import scorer_for

    if not answer:
        raise Unsolved
    need(isinstance(answer, dict), "two_voices should be a dictionary from block names to prompts.")
    need(len(answer) <= 2, f"you use {len(answer)} blocks; two are enough.")
    with prompt_per_block(pipe, answer):
        pictures = generate(pipe, "A star in neon style", seeds=[0, 1, 2], progress=False)
    objects, styles = zip(*scorer_for(pipe).name(pictures))
    need(objects.count("fish") >= 2, f"it draws {', '.join(objects)}, not a fish. Which block decides the object, and does it hear the word fish?")
    need(styles.count("wood") >= 2, f"the style is {', '.join(styles)}, not wood. Which block decides the style, and what does it hear?")
    return "One block hears the object, the other the style."


@exercise
def needed_rank(answer):
    called(answer, [1.0, 1.0], 0.5)
    need(called(answer, [3.0, 4.0], 0.6) == 1, "of the values 3 and 4 the larger alone has 16 of 25 of the squares, that is 0.64: for a share of 0.6 one is enough.")
    need(called(answer, [4.0, 3.0], 0.7) == 2, "of the values 4 and 3 the larger alone has 0.64 of the squares: for a share of 0.7 both are needed. Did you square them?")
    need(called(answer, [1.0, 2.0, 10.0, 1.0], 0.9) == 1, "the values need not be sorted: [1, 2, 10, 1] with a share of 0.9 needs only the 10.")
    need(called(answer, [2.0, 2.0, 2.0, 2.0], 0.5) == 2, "two of four equal values have exactly half of the squares: at least 0.5 is reached with 2.")
    need(called(answer, [5.0, 1.0, 1.0], 1.0) == 3, "for a share of 1 every value that is not zero is needed.")
    need(called(answer, torch.tensor([6.0, 3.0, 2.0]), 0.9) == 2, "it should also take a tensor, as svdvals returns one; 6 and 3 have 45 of 49 of the squares.")
    return "Now try it on the curves above: how much rank does each half need for 95 %?"
