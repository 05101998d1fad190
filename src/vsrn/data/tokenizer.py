"""A caption to words, by the rules of the Penn Treebank as NLTK applies them.

The 2019 vocabularies were built with NLTK; importing it costs more than a whole search, so the rules
are restated here and held against NLTK on every real caption by the tests.

    >>> tokenize("A man's dog can't swim (yet).")
    ['a', 'man', "'s", 'dog', 'ca', "n't", 'swim', '(', 'yet', ')', '.']
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# Each rule puts spaces around what stands alone. Order matters: an opening quote is told from a
# closing one by what precedes it, and clitics are cut last, when every word ends in a space.
_OPENING = [
    (r"[«“‘„]|`+", r" \g<0> "),
    (r'^"', "``"),
    (r"``", r" \g<0> "),
    (r"(?<=[ (\[{<])(?:\"|'')", " `` "),
    (r"(?<!\w)'(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", "' "),
]
_PUNCTUATION = [
    # Only the very last full stop ends a sentence; those inside belong to abbreviations.
    (r"(?<=[^.])\.(?=[])}>\"'»”’ ]*+\s*$)", r" . "),
    (r"([:,])([^\d])", r" \1 \2"),
    (r"[:,]$", r" \g<0> "),
    (r"\.{2,}", r" \g<0> "),
    (r"[;@#$%&?!‒–—―]", r" \g<0> "),
    (r"(?<=[^'])' ", " ' "),
    (r"[][(){}<>*]", r" \g<0> "),
    (r"--", " -- "),
]
_CLOSING = [
    (r"[»”’]", r" \g<0> "),
    (r"''|\"", " '' "),
    (r"\s+", " "),
    (r"([^' ])('[smd]?) ", r"\1 \2 "),
    (r"([^' ])('ll|'re|'ve|n't) ", r"\1 \2 "),
]
_JOINED_WORDS = [
    (r"\b(can)(not)\b", r" \1 \2 "),
    (r"\b(d)('ye)\b", r" \1 \2 "),
    (r"\b(gim|lem)(me)\b", r" \1 \2 "),
    (r"\b(gon)(na)\b", r" \1 \2 "),
    (r"\b(got)(ta)\b", r" \1 \2 "),
    (r"\b(more)('n)\b", r" \1 \2 "),
    (r"\b(wan)(na)(?=\s)", r" \1 \2 "),
    (r" ('t)(is)\b", r" \1 \2 "),
    (r" ('t)(was)\b", r" \1 \2 "),  # a rule of its own: the one above makes spaces that this one needs
]


def _compile(rules: list[tuple[str, str]]) -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(pattern), replacement) for pattern, replacement in rules]


_BEFORE_PADDING = _compile(_OPENING + _PUNCTUATION)
_AFTER_PADDING = _compile(_CLOSING + _JOINED_WORDS)


def tokenize(caption: str) -> list[str]:
    """Lower-cased words and punctuation marks of one caption, in order."""
    text = caption.lower()
    for pattern, replacement in _BEFORE_PADDING:
        text = pattern.sub(replacement, text)
    text = f" {text} "
    for pattern, replacement in _AFTER_PADDING:
        text = pattern.sub(replacement, text)
    return text.split()


_CLOSES = frozenset([",", "!", "?", ";", ":", "%", ")", "]", "n't", "'s", "'m", "'d", "'ll", "'re", "'ve"])
_OPENS = frozenset(["(", "[", "$", "#"])


def join_words(words: Sequence[str]) -> str:
    """Words and punctuation marks as one writes them: `tokenize` takes them apart into the same words again.

    >>> join_words(["a", "man", "'s", "dog", ",", "(", "asleep", ")", "."])
    "a man's dog, (asleep)."
    """
    written, attach = "", True
    for place, word in enumerate(words):
        # A full stop within a caption would be taken for an abbreviation's.
        attach = attach or word in _CLOSES or (word == "." and place == len(words) - 1)
        written += word if attach else f" {word}"
        attach = word in _OPENS
    return written
