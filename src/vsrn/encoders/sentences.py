"""The half of `Encoder` that reads sentences: their embeddings, and what becomes of words that the model never read.

B captions, D numbers per embedding.
"""

from __future__ import annotations

import warnings
from collections.abc import Container, Iterable, Sequence

import numpy as np

from vsrn.data.stand_ins import ReadWords, in_their_place, names
from vsrn.data.tokenizer import tokenize
from vsrn.encoders.backend import BackEnd
from vsrn.encoders.inputs import ProgressOf, list_of_captions, reporting
from vsrn.errors import UnknownWordsWarning
from vsrn.metrics import FloatArray, IntArray

WORDS_NAMED = 10
# Words of a sentence whose spelling is looked up; each takes some hundredths of a second.
WORDS_SPELT = 5


class SentenceEncoder(BackEnd):
    """A model that reads sentences; `Encoder` is what people use of it."""

    def encode_captions(
        self,
        captions: str | Iterable[str],
        *,
        batch_size: int | None = None,
        progress: ProgressOf = False,
        stand_ins: bool = True,
    ) -> FloatArray:
        """B sentences -> (B, D) float32 embeddings; a single string is one sentence, (1, D).

        stand_ins  whether known words stand in for words that the model never read (`stand_ins` says which): the
                   embedding is then the mean over the sentence with each of them, as long as these are on average.
                   False reads such words as `<unk>`, as the field's protocol and `encode_split` do

        Warns once of each word that the model never read and that nothing stands in for (`UnknownWordsWarning`).
        Raises `DataError` where one of them is no string.
        """
        sentences = list_of_captions(captions)
        instead = self.stand_ins(sentences) if stand_ins else {}
        self._warn_of_words(sentences, instead)
        with reporting(progress, "encoding captions", len(sentences)) as advance:
            embeddings = self._encode_tokens(self._tokens(sentences), advance, batch_size)
        if instead:
            self._put_stand_ins(embeddings, sentences, instead, batch_size)
        return embeddings

    def _put_stand_ins(
        self, embeddings: FloatArray, sentences: list[str], instead: dict[str, tuple[str, ...]], batch_size: int | None
    ) -> None:
        """Replace the embeddings of those sentences that have words for which others stand in."""
        words = [tokenize(sentence) for sentence in sentences]
        places = [place for place, some in enumerate(words) if not instead.keys().isdisjoint(some)]
        count = max(map(len, instead.values()))
        tokens = [
            np.array(self.vocabulary.ids_of(in_their_place(words[place], instead, choice)))
            for place in places
            for choice in range(count)
        ]
        found = self._encode_tokens(tokens, lambda _: None, batch_size).reshape(len(places), count, -1)
        means = found.mean(axis=1)
        lengths = np.linalg.norm(found, axis=2).mean(axis=1) / np.maximum(np.linalg.norm(means, axis=1), 1e-12)
        embeddings[places] = means * lengths[:, None]

    def unknown_words(self, captions: str | Iterable[str]) -> list[str]:
        """Words of a caption, or of several, that tell the model nothing, each once, in the order they are met.

        It never read them and nothing stands in for them, so it takes each for `<unk>`.
        """
        captions = list_of_captions(captions)
        instead = self.stand_ins(captions)
        return [word for word in self.vocabulary.unknown_words(captions) if word not in instead]

    def stand_ins(self, captions: str | Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Each word of the captions that the model never read -> the known words that stand in for it, nearest first.

        Words that nothing stands in for are left out.
        """
        if not self.reads_stand_ins:
            return {}
        unknown = self.vocabulary.unknown_words(list_of_captions(captions))
        return {word: found for word in unknown if (found := self.standing_in.of(word))}

    def read_words(self, sentence: str) -> ReadWords:
        """What the model makes of the words of a sentence."""
        unknown, instead = self.unknown_words(sentence), self.stand_ins(sentence)
        looked_up = [word for word in unknown if names(word)][:WORDS_SPELT]
        spellings = {word: near for word in looked_up if (near := self.standing_in.spelling(word)) is not None}
        words = set(tokenize(sentence))
        naming = [word for word in words if names(word) and word not in unknown]
        return ReadWords(unknown, instead, spellings, bool(naming) or not words, len(naming))

    def _tokens(self, captions: Sequence[str]) -> list[IntArray]:
        """The token ids of each caption."""
        return [np.array(self.vocabulary.encode(caption)) for caption in captions]

    def _warn_of_words(self, captions: Sequence[str], instead: Container[str]) -> None:
        """Name the words that the model never read, those that nothing stands in for and no earlier call has named."""
        unknown = self.vocabulary.unknown_words(captions)
        new = [word for word in unknown if word not in instead and word not in self._named_words]
        if new:
            self._named_words |= set(new)
            more = f" and {len(new) - WORDS_NAMED:,} more" if len(new) > WORDS_NAMED else ""
            share = self.vocabulary.unknown_share(captions)
            warnings.warn(
                f"words the model never read: {', '.join(new[:WORDS_NAMED])}{more} ({share:.0%} of all words).",
                UnknownWordsWarning,
                stacklevel=3,
            )
