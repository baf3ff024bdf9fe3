"""What becomes of a prompt's words: those that the text encoder cuts off, or never learnt.

CLIP's text encoders read a fixed number of pieces and drop the rest. diffusers logs that for those
who read logs; here it is a `PromptWarning`, and panels show the same sentences.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from unicodedata import category

from blora_nb.errors import PromptWarning

SMALL = 10_000  # pieces; the vocabulary of a teaching model has fewer, CLIP's own 49 408
END_OF_WORD = "</w>"  # how CLIP's tokenizer marks the last piece of a word
PLACEHOLDER = re.compile(r"\[[^\[\]]*\]|<[^<>]*>")  # [v], [c], <s>: meant to be no word


def unused_words(pipe, prompt: str) -> str:
    """The end of a prompt that the text encoder does not read, as it is typed, or ""."""
    ends = [_cut_off(tokenizer, prompt) for tokenizer in _tokenizers(pipe)]
    return max(ends, key=len, default="")


def unknown_words(pipe, prompt: str) -> list[str]:
    """The words of a prompt that the teaching model has never seen; none for larger models.

    They are those that its tokenizer has to spell. Placeholders like [v] are no words.
    """
    if not (tokenizers := list(_tokenizers(pipe))) or len(tokenizers[0].get_vocab()) > SMALL:
        return []
    tokenizer = tokenizers[0]
    spans = [match.span() for match in PLACEHOLDER.finditer(prompt)]
    found: dict[str, None] = {}
    for start, end, pieces in _words(tokenizer, prompt):
        word = prompt[start:end]
        inside = any(first <= start and end <= last for first, last in spans)
        # one letter is no word, but where letters have no case, as in Chinese
        letters = [letter for letter in word if letter.isalpha()]
        word_like = len(letters) > 1 or any(category(letter) == "Lo" for letter in letters)
        if pieces > 1 and not inside and word_like:
            found[word] = None
    return list(found)


def remarks_on_prompt(pipe, prompt: str | None) -> list[str]:
    """Sentences on a prompt's words that are cut off or unknown; none where all is well."""
    if not prompt or not isinstance(prompt, str):
        return []
    remarks = []
    if rest := unused_words(pipe, prompt):
        most = min(_room(tokenizer) for tokenizer in _tokenizers(pipe))
        remarks.append(
            f"The text encoder reads {most} pieces of words; of the prompt these are not used: "
            f'"{rest}". Shorten it, or put first what matters.'
        )
    used = prompt.rstrip()
    used = used[: len(used) - len(rest)]
    if words := unknown_words(pipe, used):
        plural = "s" if len(words) > 1 else ""
        remarks.append(
            f"The teaching model never learnt the word{plural} {', '.join(words)}; it knows only "
            "those of its own drawings. Use one of these."
        )
    return remarks


def tell_of_prompt(pipe, prompt: str | None) -> None:
    """Give the remarks on a prompt as `PromptWarning`s."""
    for remark in remarks_on_prompt(pipe, prompt):
        warnings.warn(remark, PromptWarning, stacklevel=3)


@contextmanager
def without_the_libraries_own() -> Iterator[None]:
    """Inside, diffusers and transformers do not log that a prompt is too long."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    loggings = (diffusers_logging, transformers_logging)
    before = [logging.get_verbosity() for logging in loggings]
    for logging in loggings:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        for logging, verbosity in zip(loggings, before):
            logging.set_verbosity(verbosity)


def _tokenizers(pipe) -> Iterator:
    """The tokenizers of a pipeline, those with a limit."""
    for name in ("tokenizer", "tokenizer_2"):
        if (tokenizer := getattr(pipe, name, None)) is not None:
            yield tokenizer


def _room(tokenizer) -> int:
    """How many pieces a tokenizer's encoder reads, without the two that mark beginning and end."""
    return tokenizer.model_max_length - 2


def _pieces(tokenizer, prompt: str) -> list[tuple[str, int, int]]:
    """(piece, first character, character after the last) of a whole prompt, whatever its length."""
    with without_the_libraries_own():
        read = tokenizer(
            prompt, truncation=False, add_special_tokens=False, return_offsets_mapping=True
        )
    pieces = tokenizer.convert_ids_to_tokens(read["input_ids"])
    return [(piece, *span) for piece, span in zip(pieces, read["offset_mapping"])]


def _words(tokenizer, prompt: str) -> Iterator[tuple[int, int, int]]:
    """(first character, character after the last, number of pieces) of the words of a prompt."""
    start, count = None, 0
    for piece, first, last in _pieces(tokenizer, prompt):
        start, count = first if start is None else start, count + 1
        if piece.endswith(END_OF_WORD):
            yield start, last, count
            start, count = None, 0


def _cut_off(tokenizer, prompt: str) -> str:
    """The end of a prompt that does not fit, from its first word that is not read whole."""
    read = 0
    for start, _, pieces in _words(tokenizer, prompt):
        read += pieces
        if read > _room(tokenizer):
            # "[v]" is three words for the tokenizer, and shown whole
            spans = (match.span() for match in PLACEHOLDER.finditer(prompt))
            start = next((first for first, last in spans if first < start < last), start)
            return prompt[start:].rstrip()
    return ""
