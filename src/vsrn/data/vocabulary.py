"""Words to ids and back: <pad> 0, <start> 1, <end> 2, <unk> 3, words after. A caption is <start> w1 ... wn <end>."""

from __future__ import annotations

import codecs
import hashlib
import importlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import msgspec

from vsrn.data.closed_pickle import read_pickled_words
from vsrn.data.tokenizer import tokenize
from vsrn.errors import VocabularyError, one_line
from vsrn.files import read_json

PAD, START, END, UNK = range(4)
SPECIAL_WORDS = ("<pad>", "<start>", "<end>", "<unk>")


@dataclass(frozen=True)
class Vocabulary:
    """Words in the order of their ids; the first four are `SPECIAL_WORDS`.

    >>> vocabulary = Vocabulary([*SPECIAL_WORDS, "dog"])
    >>> vocabulary.encode("dog dgo")
    [1, 4, 3, 2]
    """

    words: Sequence[str]

    def __post_init__(self) -> None:
        if tuple(self.words[:4]) != SPECIAL_WORDS:
            raise VocabularyError(f"a vocabulary must begin with {', '.join(SPECIAL_WORDS)}; this one does not.")
        if len(set(self.words)) != len(self.words):
            twice = next(word for word, count in Counter(self.words).items() if count > 1)
            raise VocabularyError(f"the vocabulary lists the word '{twice}' twice; ids must be unambiguous.")

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Word -> id."""
        return {word: number for number, word in enumerate(self.words)}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the words in order: two vocabularies are equal where this is."""
        return hashlib.sha256("\n".join(self.words).encode()).hexdigest()

    def encode(self, caption: str) -> list[int]:
        """The caption's token ids, from <start> to <end>."""
        return self.ids_of(tokenize(caption))

    def ids_of(self, words: Iterable[str]) -> list[int]:
        """The token ids of a caption that is cut into words, from <start> to <end>."""
        return [START, *(self.ids.get(word, UNK) for word in words), END]

    def decode(self, tokens: Iterable[int]) -> str:
        """Words up to <end>, joined by spaces; <start> and <pad> are left out."""
        kept = takewhile(lambda token: token != END, tokens)
        return " ".join(self.words[token] for token in kept if token not in (PAD, START))

    def knows(self, word: str) -> bool:
        """Whether a word, as `tokenize` gives it, is more than <unk> to the vocabulary."""
        return word in self.ids

    def unknown_words(self, captions: Iterable[str]) -> list[str]:
        """The captions' words that the vocabulary does not have, each once, in the order in which they are met."""
        return [word for word in _counted(captions) if not self.knows(word)]

    def unknown_share(self, captions: Iterable[str]) -> float:
        """Share, 0 to 1, of the captions' words that the vocabulary does not have."""
        words = _counted(captions)
        return sum(words[word] for word in words if not self.knows(word)) / max(1, words.total())

    def to_json(self) -> bytes:
        """The vocabulary file's content."""
        return msgspec.json.format(msgspec.json.encode({"format": 1, "words": list(self.words)}), indent=1)


@dataclass(frozen=True)
class SubwordVocabulary(Vocabulary):
    """The pieces of words of a pretrained text encoder, and the tokenizer that takes captions apart into them.

    words      pieces in the order of their ids, with `SPECIAL_WORDS` in place of the tokenizer's own special tokens
    tokenizer  content of its tokenizer.json, for the package tokenizers
    """

    tokenizer: str

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the pieces in order and of the tokenizer."""
        return hashlib.sha256("\n".join([*self.words, self.tokenizer]).encode()).hexdigest()

    @cached_property
    def _opened(self) -> Any:
        return open_tokenizer(self.tokenizer)

    def encode(self, caption: str) -> list[int]:
        """The caption's ids, from <start> to <end>; a special token that is typed in a caption is unknown."""
        # Half of a surrogate pair, which Python's strings may hold, is no text to the tokenizer.
        text = caption.encode("utf-8", "replace").decode()
        pieces = self._opened.encode(text, add_special_tokens=False).tokens
        return [START, *(max(UNK, self.ids.get(piece, UNK)) for piece in pieces), END]

    def decode(self, tokens: Iterable[int]) -> str:
        """Words up to <end>, put together of their pieces, with spaces between; <start> and <pad> are left out."""
        pieces = super().decode(tokens).split(" ")
        decoder = self._opened.decoder
        return " ".join(pieces) if decoder is None else str(decoder.decode(pieces)).strip()

    def knows(self, word: str) -> bool:
        """Whether the tokenizer finds pieces for all of a word."""
        return UNK not in self.encode(word)

    def to_json(self) -> bytes:
        """The vocabulary file's content."""
        page = {"format": 2, "words": list(self.words), "tokenizer": self.tokenizer}
        return msgspec.json.format(msgspec.json.encode(page), indent=1)


def open_tokenizer(content: str) -> Any:
    """A tokenizer of the package tokenizers that neither cuts nor pads. Raises `VocabularyError` where that fails."""
    try:
        tokenizers = importlib.import_module("tokenizers")
    except ImportError as error:
        raise VocabularyError(
            f"this model's captions need the package tokenizers ({error}); run `pip install '.[tokenizers]'` in the"
            " checkout."
        ) from error
    try:
        opened = tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # the package raises nothing narrower
        raise VocabularyError(f"the tokenizer cannot be read ({one_line(error)}).") from error
    opened.no_padding()
    opened.no_truncation()
    return opened


def build_vocabulary(captions: Iterable[str], min_count: int = 4) -> Vocabulary:
    """Words seen at least `min_count` times, the most frequent first, ties in alphabetical order."""
    counts = _counted(captions)
    kept = [word for word, count in counts.items() if count >= min_count and word not in SPECIAL_WORDS]
    return Vocabulary([*SPECIAL_WORDS, *sorted(kept, key=lambda word: (-counts[word], word))])


def _counted(captions: Iterable[str]) -> Counter[str]:
    """How often each word is in the captions, in the order in which they are met."""
    return Counter(word for caption in captions for word in tokenize(caption))


def read_vocabulary(path: Path | str) -> Vocabulary:
    """Read our JSON, the JSON that SCAN's data comes with, or a pickle of 2019 (safely: `vsrn.data.closed_pickle`).

    path  the file, or a model's folder, whose vocabulary.json it is; a name that ends in .json is read as JSON alone

    Raises `VocabularyError` naming the file where it is missing or in none of these layouts.
    """
    path = Path(path)
    path = path / "vocabulary.json" if path.is_dir() else path
    if not path.exists():
        raise VocabularyError(f"there is no vocabulary {path}; build one with `vsrn vocab DATA -o {path}`.")
    fields: dict[str, Any]
    if _is_pickle(path):
        fields = {"idx2word": read_pickled_words(path)}
    else:
        fields = read_json(path, dict[str, Any], "it is no JSON vocabulary.", VocabularyError)
    words, tokenizer = fields.get("words", fields.get("idx2word")), fields.get("tokenizer")
    try:
        if not isinstance(words, (list, dict)):
            raise VocabularyError('this is no vocabulary: it has neither "words" nor "idx2word".')
        ordered = _words_by_id(dict(enumerate(words)) if isinstance(words, list) else words)
        return SubwordVocabulary(ordered, tokenizer) if isinstance(tokenizer, str) else Vocabulary(ordered)
    except VocabularyError as error:
        raise VocabularyError(f"{path}: {error}") from error


def _is_pickle(path: Path) -> bool:
    """Whether a file is to be read as a pickle: its name does not end in .json, and it does not begin as JSON does."""
    if path.suffix.lower() == ".json" or not path.is_file():
        return False
    with path.open("rb") as file:
        return not file.read(64).removeprefix(codecs.BOM_UTF8).lstrip().startswith((b"{", b"["))


def is_vocabulary(path: Path) -> bool:
    """Whether a file is a vocabulary, to judge by its name or its layout, and not a file of captions."""
    if path.suffix.lower() in (".pkl", ".pickle"):
        return True
    try:
        return path.is_file() and path.read_bytes()[:1] in b"\x80{\xef" and bool(read_vocabulary(path))
    except VocabularyError:
        return False


def _words_by_id(word_of_id: dict[Any, Any]) -> list[str]:
    """Words by whole numbers, or by their digits -> words in order. Raises `VocabularyError` for anything else."""
    try:
        words = {int(number): word for number, word in word_of_id.items()}
    except (TypeError, ValueError) as error:
        raise VocabularyError("the vocabulary's ids are not whole numbers.") from error
    if sorted(words) != list(range(len(word_of_id))):
        raise VocabularyError("the vocabulary's ids have gaps.")
    ordered = [words[number] for number in range(len(words))]
    try:
        "".join(ordered).encode()
    except (TypeError, UnicodeEncodeError) as error:
        raise VocabularyError("the vocabulary holds a word that is not text.") from error
    return ordered
