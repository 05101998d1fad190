"""A caption to words as NLTK's `word_tokenize` does it: to sentences by Punkt, then by the rules of the Penn Treebank.

The 2019 vocabularies were built with NLTK, whose import costs more than a whole search. Characters of scripts that put
no space between words (Chinese, Japanese, Thai, Lao, Burmese, Khmer), which NLTK leaves together, are a word each.

    >>> tokenize("A man's dog can't swim (yet). It barks.")
    ['a', 'man', "'s", 'dog', 'ca', "n't", 'swim', '(', 'yet', ')', '.', 'it', 'barks', '.']
    >>> tokenize("一只狗")
    ['一', '只', '狗']
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import zip_longest


def _compile(*rules: tuple[str, str]) -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(pattern), replacement) for pattern, replacement in rules]


# Each rule puts spaces around what stands alone. Order matters: an opening quote is told from a
# closing one by what precedes it, and clitics are cut last, when every word ends in a space.
_RULES = _compile(
    (r"[«“‘„]|`+", r" \g<0> "),
    (r'^"', "``"),
    (r"``", r" \g<0> "),
    (r"(?<=[ (\[{<])(?:\"|'')", " `` "),
    (r"(?<!\w)'(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", "' "),
    # Only the very last full stop of a sentence stands alone; those inside belong to abbreviations.
    (r"(?<=[^.])\.(?=[])}>\"'»”’ ]*+\s*$)", r" . "),
    (r"([:,])([^\d])", r" \1 \2"),
    (r"[:,]$", r" \g<0> "),
    (r"\.{2,}", r" \g<0> "),
    (r"[;@#$%&?!‒–—―]", r" \g<0> "),
    (r"(?<=[^'])' ", " ' "),
    (r"[][(){}<>*]", r" \g<0> "),
    (r"--", " -- "),
    (r"\A|\Z", " "),  # from here on every word stands between spaces
    (r"[»”’]", r" \g<0> "),
    (r"''|\"", " '' "),
    (r"\s+", " "),
    (r"([^' ])('[smd]?) ", r"\1 \2 "),
    (r"([^' ])('ll|'re|'ve|n't) ", r"\1 \2 "),
    (r"\b(can)(not)\b", r" \1 \2 "),
    (r"\b(d)('ye)\b", r" \1 \2 "),
    (r"\b(gim|lem)(me)\b", r" \1 \2 "),
    (r"\b(gon)(na)\b", r" \1 \2 "),
    (r"\b(got)(ta)\b", r" \1 \2 "),
    (r"\b(more)('n)\b", r" \1 \2 "),
    (r"\b(wan)(na)(?=\s)", r" \1 \2 "),
    (r" ('t)(is)\b", r" \1 \2 "),
    (r" ('t)(was)\b", r" \1 \2 "),  # a rule of its own: the one above makes spaces that this one needs
)
# What Punkt's English model (NLTK's `punkt`) takes for abbreviations: the full stop behind one ends no sentence.
_ABBREVIATIONS = frozenset(
    """
    a.a a.c a.d a.g a.h a.m a.m.e a.s a.t adm ala ariz aug ave b.f b.v bros c c.i.t c.o.m.b c.v calif chg cie co
    col colo conn corp cos ct d d.c d.h d.w dec dr e e.f e.h e.l e.m f f.g f.j feb fla fri ft g g.d g.f g.k ga gen
    h h.c h.f h.m i.m.s ill inc j.b j.c j.j j.k j.p j.r jan jr k kan ky l l.a l.f l.p lt ltd m m.b.a m.d.c m.j maj
    messrs mg mich minn mr mrs ms n n.c n.d n.h n.j n.m n.v n.y nev nov oct ok okla ore p p.a.m p.m pa ph.d prof r
    r.a r.h r.i r.j r.k r.t rep reps s s.a s.a.y s.c s.g s.p.a s.s sen sep sept sr st sw t t.j tenn tues u.k u.n
    u.s u.s.a u.s.s.r v va vs vt w w.c w.r w.va w.w wash wed wis yr
    """.split()  # noqa: SIM905 - 155 quotes would hide the words
)
_CLOSING = re.compile(r"""["')\]}‘’“”«»]+?(?=\s|--|$)""")
_MARKS = frozenset(")\";}]*:@'({[‘’“”«»?!")
_INITIAL_OR_NUMBER = re.compile(r"[^\W\d]|-?[.,]?\d[\d,.-]*")
_WORD_STARTS = re.compile(r"[(\"`{\[:;&#*@)}\],]")
# What is written without a space before it, and without one behind it.
_CLOSES = frozenset([",", "!", "?", ";", ":", "%", ")", "]", "n't", "'s", "'m", "'d", "'ll", "'re", "'ve"])
_OPENS = frozenset(["(", "[", "$", "#"])
# A character, with the marks that stand on it, of a script without spaces between words.
_UNSPACED = re.compile(
    "[\u3040-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
    "\u0e01-\u0e30\u0e32\u0e33\u0e40-\u0e46\u0e81-\u0eb0\u0eb2\u0eb3\u0ebd-\u0ec6\u1000-\u102a\u103f\u1050-\u1055\u1780-\u17b3]"
    "[\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ecd\u102b-\u103e\u1056-\u1059\u17b4-\u17d3\u3099\u309a]*"
)


def tokenize(caption: str) -> list[str]:
    """Lower-cased words and punctuation marks of one caption, in order."""
    return [word for sentence in _sentences(caption.lower()) for word in _words(_UNSPACED.sub(r" \g<0> ", sentence))]


def _sentences(text: str) -> list[str]:
    """Lower-cased text, cut behind each mark that ends a sentence (Punkt's rules, for text without capitals)."""
    sentences, start = [], 0
    chunks = list(re.finditer(r"\S+", text))
    for chunk, following in zip_longest(chunks, chunks[1:]):
        end = _last_mark(text, chunk, following)
        if end is None or not _ends_sentence(text[chunk.start() : end], text[end : chunk.end()] or following.group()):
            continue
        # Closing quotes and brackets belong to the sentence that they close.
        closing = _CLOSING.match(text, end) or _CLOSING.match(text, following.start() if following else end)
        end = closing.end() if closing else end
        if end > start:
            sentences.append(text[start:end])
            start = following.start() if following and text[end : following.start()].isspace() else end
    return [*sentences, text[start:]]


def _last_mark(text: str, chunk: re.Match[str], following: re.Match[str] | None) -> int | None:
    """Where the last full stop, ? or ! of a chunk ends that another mark or, behind a space, another word follows."""
    for place in range(chunk.end() - 1, chunk.start() - 1, -1):
        is_last = place == chunk.end() - 1
        if text[place] in ".?!" and (following is not None if is_last else text[place + 1] in _MARKS):
            return place + 1
    return None


def _ends_sentence(words: str, following: str) -> bool:
    """Whether the mark at the end of these characters ends a sentence, where more text follows."""
    if not words.endswith("."):
        return True
    if words.endswith(".."):
        return False
    word = _WORD_STARTS.split(words[:-1])[-1]
    if word in _ABBREVIATIONS or word.rpartition("-")[2] in _ABBREVIATIONS:
        return False
    return _INITIAL_OR_NUMBER.fullmatch(word) is None or not (following[0].islower() or following[0] in ";:,!?")


def _words(sentence: str) -> list[str]:
    for pattern, replacement in _RULES:
        sentence = pattern.sub(replacement, sentence)
    return sentence.split()


def join_words(words: Sequence[str]) -> str:
    """Words and punctuation marks as one writes them: `tokenize` takes them apart into the same words again.

    >>> join_words(["a", "man", "'s", "dog", ",", "(", "asleep", ")", ".", "it", "dreams", "."])
    "a man's dog, (asleep). it dreams."
    """
    written, attach = "", True
    for before, word, following in zip(["", *words], words, [*words[1:], ""], strict=False):
        # A full stop that ends no sentence would be taken for an abbreviation's.
        stop = word == "." and (not following or _ends_sentence(f"{before}.", following))
        unspaced = _UNSPACED.fullmatch(before) and _UNSPACED.fullmatch(word)
        written += word if attach or word in _CLOSES or stop or unspaced else f" {word}"
        attach = word in _OPENS
    return written
