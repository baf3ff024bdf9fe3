"""Every check accepts different correct answers and rejects plausible wrong ones with a reason.

It leaves stubs alone.
"""

import linecache
from math import ceil, log
from statistics import mean

import nbformat
import pytest
import torch

import prepare
from blora_nb.blocks import CONTENT_BLOCK, STYLE_BLOCK, TRANSFORMER_BLOCKS
from blora_nb.course import checks
from blora_nb.evaluation.metrics import non_dominated
from blora_nb.lora import collect, remove
from blora_nb.training import attach_lora, encode_image, run_steps, train
from conftest import ROOT

NOTEBOOKS = ROOT / "notebooks"


def good(alphas, kept, followed, enough, together=min):
    """The alphas whose two scores, taken together, are enough."""
    return [a for a, k, f in zip(alphas, kept, followed) if together((k, f)) >= enough]


def first_and_last(values):
    return (values[0], values[-1]) if values else (None, None)


# check: (correct answers, plausible wrong ones)
PURE = {
    "share_right": (
        [
            lambda f, w: sum(a == b for a, b in zip(f, w)) / len(w),
            lambda f, w: torch.tensor(
                [float(a[0] == b[0] and a[1] == b[1]) for a, b in zip(f, w)]
            ).mean(),
        ],
        [
            lambda f, w: sum(a == b for a, b in zip(f, w)),
            lambda f, w: sum(a[0] == b[0] for a, b in zip(f, w)) / len(w),
            lambda f, w: sum(a[0] == b[0] or a[1] == b[1] for a, b in zip(f, w)) / len(w),
            lambda f, w: len(set(f) & set(w)) / len(w),
        ],
    ),
    "lora_weights": (
        [
            lambda r, i, o: r * (i + o),
            lambda r, i, o: torch.zeros(r, i).numel() + torch.zeros(o, r).numel(),
        ],
        [
            lambda r, i, o: r * i * o,
            lambda r, i, o: 2 * r * i,
            lambda r, i, o: r * i,
            lambda r, i, o: i * o,
        ],
    ),
    "clean_latents": (
        [
            lambda x, v, s: s**0.5 * x - (1 - s) ** 0.5 * v,
            lambda x, v, s: torch.tensor(s).sqrt() * x - torch.tensor(1 - s).sqrt() * v,
            # first the noise, then the latents from it
            lambda x, v, s: (x - (1 - s) ** 0.5 * ((1 - s) ** 0.5 * x + s**0.5 * v)) / s**0.5,
        ],
        [
            lambda x, v, s: s * x - (1 - s) * v,
            lambda x, v, s: s**0.5 * x + (1 - s) ** 0.5 * v,
            lambda x, v, s: (1 - s) ** 0.5 * x - s**0.5 * v,
            lambda x, v, s: x - (1 - s) ** 0.5 * v,
        ],
    ),
    "role": (
        [
            lambda c, s: {
                (True, True): "both",
                (True, False): "content",
                (False, True): "style",
                (False, False): "neither",
            }[c >= 0.5, s >= 0.5]
        ],
        [
            lambda c, s: "content" if c > s else "style",
            lambda c, s: "content" if c >= 0.5 else "style" if s >= 0.5 else "neither",
            lambda c, s: ["neither", "style", "content", "both"][2 * (c > 0) + (s > 0)],
        ],
    ),
    "needed_rank": (
        [
            lambda v, share: next(
                n
                for n in range(1, len(v) + 1)
                if sum(sorted((float(x) ** 2 for x in v), reverse=True)[:n])
                >= share * sum(float(x) ** 2 for x in v) - 1e-9
            )
        ],
        [
            lambda v, share: next(
                n
                for n in range(1, len(v) + 1)
                if sum(sorted(map(float, v), reverse=True)[:n]) >= share * sum(map(float, v)) - 1e-9
            ),
            lambda v, share: next(
                n
                for n in range(1, len(v) + 1)
                if sum(float(x) ** 2 for x in list(v)[:n])
                >= share * sum(float(x) ** 2 for x in v) - 1e-9
            ),
            lambda v, share: round(share * len(v)),
            lambda v, share: next(
                (
                    n
                    for n in range(len(v) + 1)
                    if sum(sorted((float(x) ** 2 for x in v), reverse=True)[:n])
                    > share * sum(float(x) ** 2 for x in v)
                ),
                len(v),
            ),
        ],
    ),
    "ours": (
        [lambda a: a * a, lambda a: abs(a) ** 2],
        [lambda a: a, lambda a: abs(a) ** 0.5, lambda a: a * abs(a), lambda a: 2 * a],
    ),
    "best_seed": (
        [
            lambda s, k, m: max(zip(s, k, m), key=lambda x: min(x[1], x[2]))[0],
            lambda s, k, m: s[max(range(len(s)), key=lambda i: min(k[i], m[i]))],
        ],
        [
            lambda s, k, m: max(zip(s, k, m), key=lambda x: x[1] + x[2])[0],
            lambda s, k, m: max(range(len(s)), key=lambda i: min(k[i], m[i])),
            lambda s, k, m: max(zip(s, k, m), key=lambda x: x[1])[0],
            lambda s, k, m: max(zip(s, k, m), key=lambda x: x[1] * x[2])[0],
        ],
    ),
    "on_the_frontier": (
        [
            lambda k, m: [
                i
                for i, p in enumerate(zip(k, m))
                if not any(a >= p[0] and b >= p[1] and (a, b) != p for a, b in zip(k, m))
            ],
            non_dominated,
        ],
        [
            lambda k, m: [k.index(max(k)), m.index(max(m))],
            lambda k, m: sorted({k.index(max(k)), m.index(max(m))}),
            # only neighbours are compared
            lambda k, m: [
                i
                for i in range(len(k))
                if not any(
                    k[j] >= k[i] and m[j] >= m[i] and (k[j], m[j]) != (k[i], m[i])
                    for j in (i - 1, i + 1)
                    if 0 <= j < len(k)
                )
            ],
            lambda k, m: [
                i
                for i, p in enumerate(zip(k, m))
                if not any(a >= p[0] and b >= p[1] for a, b in zip(k, m) if (a, b) is not p)
            ],
            lambda k, m: [
                i
                for i, p in enumerate(zip(k, m))
                if not any(a > p[0] and b > p[1] for a, b in zip(k, m))
            ],
        ],
    ),
    "useful_range": (
        [
            lambda a, k, f, e: first_and_last(sorted(good(a, k, f, e))),
            lambda a, k, f, e: [end(good(a, k, f, e), default=None) for end in (min, max)],
        ],
        [
            lambda a, k, f, e: first_and_last(good(a, k, f, e)),
            lambda a, k, f, e: first_and_last(sorted(good(a, k, k, e))),
            lambda a, k, f, e: first_and_last(sorted(good(a, k, f, e, mean))),
        ],
    ),
    "seeds_needed": (
        [
            lambda p, c: next(n for n in range(1, 10_000) if 1 - (1 - p) ** n >= c),
            lambda p, c: 1 if p == 1 else ceil(log(1 - c) / log(1 - p)),
        ],
        [
            lambda p, c: round(c / p),
            lambda p, c: ceil(log(1 - c) / log(1 - p)),
            lambda p, c: int(1 / p),
            lambda p, c: next(n for n in range(1, 10_000) if 1 - (1 - p) ** n > c),
            lambda p, c: max(
                1, int(torch.log(torch.tensor(1 - c)) / torch.log(torch.tensor(1 - min(p, 0.999))))
            ),
        ],
    ),
    "colour_distance": (
        [lambda a, b: 1 - torch.minimum(a, b).sum(), lambda a, b: (a - b).abs().sum().item() / 2],
        [
            lambda a, b: torch.minimum(a, b).sum().item(),
            lambda a, b: (a - b).abs().sum().item(),
            lambda a, b: ((a - b) ** 2).sum().item() ** 0.5,
            lambda a, b: (a - b).clamp(min=0).max().item(),
            # the share of filled bins that they have in common
            lambda a, b: 1 - ((a > 0) & (b > 0)).sum().item() / max((a > 0).sum(), (b > 0).sum()),
        ],
    ),
    "mixed_change": (
        [
            lambda f, s, w: (1 - w) * (f[0] @ f[1]) + w * (s[0] @ s[1]),
            lambda f, s, w: torch.cat([(1 - w) * f[0], w * s[0]], 1) @ torch.cat([f[1], s[1]]),
        ],
        [
            lambda f, s, w: f[0] @ f[1] + w * s[0] @ s[1],
            lambda f, s, w: w * f[0] @ f[1] + (1 - w) * s[0] @ s[1],
            lambda f, s, w: ((1 - w) * f[0] + w * s[0]) @ ((1 - w) * f[1] + w * s[1]),
        ],
    ),
}


def verdict(capsys, check, *answer):
    getattr(checks, check)(*answer)
    (line,) = capsys.readouterr().out.strip().splitlines()
    return line


@pytest.mark.parametrize("check", PURE)
def test_right_answers_pass_and_wrong_ones_are_told_why(check, capsys):
    right, wrong = PURE[check]
    assert len(wrong) >= 3
    assert [verdict(capsys, check, answer)[0] for answer in right] == ["✓"] * len(right)
    for number, answer in enumerate(wrong):
        assert verdict(capsys, check, answer).startswith("✗"), (
            f"wrong answer {number} of {check} is accepted"
        )
    assert verdict(capsys, check, lambda *arguments: None) == "… not solved yet"


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        (
            "two_colours",
            "A heart in red on blue style",
            [
                "A heart in blue on red style",
                "A heart in green on yellow style",
                "A heart in yellow on blue style",
                "A heart in pink on blue style",
                "A heart in red on teal style",
                "A heart in red on purple style",
                "A red heart",
            ],
        ),
        (
            "golden_words",
            "A [c] in gold style",
            ["A cat, in gold style", "A [c] in neon style", "A [c]"],
        ),
    ],
)
@pytest.mark.slow
def test_prompts_are_judged_by_what_they_draw(pipe, capsys, check, right, wrong):
    assert verdict(capsys, check, pipe, right).startswith("✓")
    for prompt in wrong:
        assert verdict(capsys, check, pipe, prompt).startswith("✗"), prompt
    assert verdict(capsys, check, pipe, "") == "… not solved yet"


FIRST_AND_LAST = (TRANSFORMER_BLOCKS[0], TRANSFORMER_BLOCKS[-1])
TWO_VOICES = [
    {CONTENT_BLOCK: "A fish in neon style", STYLE_BLOCK: "A house in wood style"},
    {CONTENT_BLOCK: "A fish in wood style", STYLE_BLOCK: "A fish in wood style"},
]
OTHER_VOICES = [
    {CONTENT_BLOCK: "A fish in wood style"},
    {STYLE_BLOCK: "A fish", CONTENT_BLOCK: "A [x] in wood style"},
    dict.fromkeys(FIRST_AND_LAST, "A fish in wood style"),
    dict.fromkeys(TRANSFORMER_BLOCKS, "A fish in wood style"),
]


@pytest.mark.parametrize("right", TWO_VOICES)
@pytest.mark.slow
def test_a_prompt_for_two_blocks(pipe, capsys, right):
    assert verdict(capsys, "two_voices", pipe, right).startswith("✓")


@pytest.mark.parametrize("wrong", OTHER_VOICES)
@pytest.mark.slow
def test_a_wrong_prompt_for_two_blocks(pipe, capsys, wrong):
    assert verdict(capsys, "two_voices", pipe, wrong).startswith("✗")


def test_no_prompt_for_two_blocks(pipe, capsys):
    assert verdict(capsys, "two_voices", pipe, {}) == "… not solved yet"


@pytest.mark.slow
def test_a_series(pipe, capsys):
    series = ["star", "heart", "house", "boat"], "flower_neon"
    assert verdict(capsys, "my_series", pipe, *series).startswith("✓")
    assert verdict(capsys, "my_series", pipe, [], "") == "… not solved yet"


@pytest.mark.parametrize(
    ("objects", "style"),
    [
        (["star", "heart"], "flower_neon"),
        (["star", "heart", "house", "flower"], "flower_neon"),
        (["zeppelin", "piano", "giraffe", "bottle"], "flower_neon"),
        (["star", "heart", "house", "zeppelin"], "flower_neon"),
        (["a star", "a heart", "a house", "a boat"], "flower_neon"),
        (["star", "heart", "house", "boat"], "monet"),
    ],
)
@pytest.mark.slow
def test_a_wrong_series(pipe, capsys, objects, style):
    assert verdict(capsys, "my_series", pipe, objects, style).startswith("✗")


def training_of(blocks, steps=True, take_off=True):
    """An answer to the exercise, perhaps with something left out."""

    def answer(pipe, picture, settings):
        attach_lora(pipe.unet, settings.rank, settings.seed, blocks=blocks)
        if steps:
            moments = encode_image(pipe, picture, settings.resolution)
            run_steps(pipe, moments, settings, progress=False)
        blora = collect(pipe.unet, settings)
        if take_off:
            remove(pipe)
        return blora

    return answer


def half_of_a_whole_training(pipe, picture, settings):
    return train(pipe, picture, settings, progress=False).content


WRONG_TRAININGS = {
    "two blocks": training_of([CONTENT_BLOCK, STYLE_BLOCK]),
    "another block": training_of([STYLE_BLOCK]),
    "no steps": training_of([CONTENT_BLOCK], steps=False),
    "left on the model": training_of([CONTENT_BLOCK], take_off=False),
    "half of a whole training": half_of_a_whole_training,
}


@pytest.mark.slow
def test_a_training_of_one_block(pipe, capsys):
    answer = training_of([CONTENT_BLOCK])
    assert verdict(capsys, "train_content", pipe, answer).startswith("✓")


@pytest.mark.parametrize("wrong", WRONG_TRAININGS)
@pytest.mark.slow
def test_a_wrong_training_of_one_block(pipe, capsys, wrong):
    assert verdict(capsys, "train_content", pipe, WRONG_TRAININGS[wrong]).startswith("✗")
    remove(pipe)


LORA_LAYERS = [
    lambda x, W, A, B, alpha: x @ (W + alpha * B @ A).T,
    lambda x, W, A, B, alpha: torch.nn.functional.linear(x, W) + alpha * (x @ A.T) @ B.T,
]
WRONG_LORA_LAYERS = [
    lambda x, W, A, B, alpha: x @ (W + alpha**2 * B @ A).T,
    lambda x, W, A, B, alpha: alpha * x @ (B @ A).T,
    lambda x, W, A, B, alpha: x @ W.T + x @ A.T @ B.T,
    lambda x, W, A, B, alpha: x @ (W + alpha * A @ B).T,
]


@pytest.mark.parametrize("right", LORA_LAYERS)
def test_a_lora_layer(pipe, capsys, right):
    assert verdict(capsys, "lora_layer", pipe, right).startswith("✓")


@pytest.mark.parametrize("wrong", WRONG_LORA_LAYERS)
def test_a_wrong_lora_layer(pipe, capsys, wrong):
    assert verdict(capsys, "lora_layer", pipe, wrong).startswith("✗")


def test_an_answer_that_crashes_is_told_how(capsys):
    assert "ZeroDivisionError" in verdict(capsys, "ours", lambda a: 1 / 0)


ROLES = {(True, True): "both", (True, False): "content", (False, True): "style"}


@pytest.mark.parametrize(
    ("check", "answer", "told"),
    [
        (
            "ours",
            lambda a: print(end="") or None,
            "it returns None for 1.0. Is a `return` missing?",
        ),
        (
            "role",
            lambda c, s: ROLES.get((c >= 0.5, s >= 0.5)),
            "it returns None for 0.0, 0.0. Is a `return`",
        ),
        (
            "useful_range",
            lambda *given: first_and_last(sorted(good(*given))) if good(*given) else None,
            "return the pair (None, None)",
        ),
        ("ours", 3, "it should be a function, and is 3"),
    ],
)
def test_an_answer_of_none_is_no_stub(capsys, check, answer, told):
    line = verdict(capsys, check, answer)
    assert line.startswith("✗ Not yet:")
    assert told in line


def test_a_check_that_stops_by_itself_does_not_blame_the_code(pipe, capsys, monkeypatch):
    def offline(_):
        raise OSError("no network")

    monkeypatch.setattr(checks, "scorer_for", offline)
    line = verdict(capsys, "golden_words", pipe, "A [c] in gold style")
    assert line == "✗ The check stopped with OSError: no network"


def test_an_answer_that_crashes_is_told_where(capsys):
    """The line is that of the cell, also where a function of its own or a library stopped."""
    cell = "def squared(a):\n    return torch.stack(a)\n\ndef ours(a):\n    return squared(a)\n"
    # as IPython keeps what was typed
    linecache.cache["a cell"] = (len(cell), None, cell.splitlines(), "a cell")
    namespace = {"torch": torch}
    exec(compile(cell, "a cell", "exec"), namespace)
    told = verdict(capsys, "ours", namespace["ours"])
    assert told.startswith("✗ Your code stopped in line 2 (`return torch.stack(a)`) with TypeError")


@pytest.mark.parametrize("path", prepare.LESSONS, ids=lambda p: p.stem)
def test_shared_cells_and_solutions_are_those_that_prepare_writes(path):
    lesson = nbformat.read(path, as_version=4)
    before = [(c.source, dict(c.metadata)) for c in lesson.cells]
    prepare.prepare(lesson, path.stem)
    after = [(c.source, dict(c.metadata)) for c in lesson.cells]
    assert before == after, "run: python notebooks/prepare.py"
    solved = nbformat.read(NOTEBOOKS / "solutions" / path.name, as_version=4)
    written = prepare.solutions(lesson, path.stem)
    assert prepare.same_sources(solved, written), "run: python notebooks/prepare.py"
    verdicts = [
        output.text
        for cell in solved.cells
        for output in cell.get("outputs", [])
        if "checks." in cell.source and output.output_type == "stream"
    ]
    assert len(verdicts) >= 2
    wrong = [text for text in verdicts if not text.startswith("✓")]
    assert wrong == [], "execute the solutions: make notebooks"
