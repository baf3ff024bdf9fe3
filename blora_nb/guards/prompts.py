"""Checks of prompts: not a text, cut off by the text encoder, or never learned."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from unicodedata import category

from blora_nb.errors import PromptWarning

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline
    from transformers import CLIPTokenizer

SMALL = 10_000  # tokens; the vocabulary of a teaching model has fewer, CLIP's own 49 408
END_OF_WORD = "</w>"  # how CLIP's tokenizer marks the last token of a word
PLACEHOLDER = re.compile(r"\[[^\[\]]*\]|<[^<>]*>")  # [v], [c], <s>: meant to be no word


def check_prompt(prompt: str) -> None:
    """Raise a ValueError unless the prompt is one valid string."""
    if not isinstance(prompt, str):
        raise ValueError(
            f"The prompt must be one string, not {prompt!r}. For several prompts, make one call "
            "for each."
        )
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"The prompt {prompt!r} contains bytes that are not valid UTF-8. Type it again."
        ) from None


def unused_words(pipe: "StableDiffusionXLPipeline", prompt: str) -> str:
    """The end of a prompt that the text encoder does not read, as it was typed, or ""."""
    ends = [_cut_off(tokenizer, prompt) for tokenizer in _tokenizers(pipe)]
    return max(ends, key=len, default="")


def unknown_words(pipe: "StableDiffusionXLPipeline", prompt: str) -> list[str]:
    """The words of a prompt that the teaching model has never seen; none for larger models.

    They are the words that its tokenizer has to spell. Placeholders like [v] are no words.
    """
    tokenizers = _tokenizers(pipe)
    if not tokenizers or len(tokenizers[0].get_vocab()) > SMALL:
        return []
    placeholders = [match.span() for match in PLACEHOLDER.finditer(prompt)]
    found = []
    for start, end, tokens in _words(tokenizers[0], prompt):
        word = prompt[start:end]
        inside = any(first <= start and end <= last for first, last in placeholders)
        if tokens > 1 and not inside and _is_word(word) and word not in found:
            found.append(word)
    return found


def _is_word(text: str) -> bool:
    """Whether there are two letters in it, or one of a script without case, such as Chinese."""
    letters = [letter for letter in text if letter.isalpha()]
    return len(letters) > 1 or any(category(letter) == "Lo" for letter in letters)


def remarks_on_prompt(pipe: "StableDiffusionXLPipeline", prompt: str | None) -> list[str]:
    """Sentences on the words of a prompt that are cut off or unknown; none if all is well."""
    if not prompt or not isinstance(prompt, str):
        return []
    remarks = []
    unused = unused_words(pipe, prompt)
    if unused:
        most = min(_room(tokenizer) for tokenizer in _tokenizers(pipe))
        remarks.append(
            f"The text encoder reads {most} tokens of a prompt; these words are not used: "
            f'"{unused}". Shorten the prompt, or put the important words first.'
        )
    unknown = unknown_words(pipe, prompt.rstrip().removesuffix(unused))
    if unknown:
        plural = "s" if len(unknown) > 1 else ""
        remarks.append(
            f"The teaching model never learned the word{plural} {', '.join(unknown)}. "
            "blora_nb.known_words() lists those that it knows."
        )
    return remarks


def warn_about_prompt(pipe: "StableDiffusionXLPipeline", prompt: str | None) -> None:
    """Give the remarks on a prompt as `PromptWarning`s."""
    for remark in remarks_on_prompt(pipe, prompt):
        warnings.warn(remark, PromptWarning, stacklevel=3)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Inside, diffusers and transformers log only errors, not that a prompt is too long."""
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


def _tokenizers(pipe: "StableDiffusionXLPipeline") -> list["CLIPTokenizer"]:
    tokenizers = (getattr(pipe, name, None) for name in ("tokenizer", "tokenizer_2"))
    return [tokenizer for tokenizer in tokenizers if tokenizer is not None]


def _room(tokenizer: "CLIPTokenizer") -> int:
    """How many tokens the encoder reads, without the two that mark beginning and end."""
    return tokenizer.model_max_length - 2


def _words(tokenizer: "CLIPTokenizer", prompt: str) -> Iterator[tuple[int, int, int]]:
    """(start, end, number of tokens) of each word of a prompt, whatever its length."""
    with quiet_libraries():
        read = tokenizer(
            prompt, truncation=False, add_special_tokens=False, return_offsets_mapping=True
        )
    tokens = tokenizer.convert_ids_to_tokens(read["input_ids"])
    start, count = None, 0
    for token, (first, last) in zip(tokens, read["offset_mapping"]):
        if start is None:
            start = first
        count += 1
        if token.endswith(END_OF_WORD):
            yield start, last, count
            start, count = None, 0


def _cut_off(tokenizer: "CLIPTokenizer", prompt: str) -> str:
    """The end of a prompt that does not fit, from the first word that is not read as a whole."""
    read = 0
    for start, _, tokens in _words(tokenizer, prompt):
        read += tokens
        if read > _room(tokenizer):
            # "[v]" is three words for the tokenizer, and shown whole
            spans = (match.span() for match in PLACEHOLDER.finditer(prompt))
            start = next((first for first, last in spans if first < start < last), start)
            return prompt[start:].rstrip()
    return ""
