"""Words to ids and back, and every way a vocabulary file can be wrong."""

from __future__ import annotations

import itertools
import json
import pickletools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsrn.data.tokenizer import tokenize
from vsrn.data.vocabulary import (
    END,
    PAD,
    SPECIAL_WORDS,
    START,
    UNK,
    Vocabulary,
    build_vocabulary,
    read_vocabulary,
)
from vsrn.errors import VocabularyError

WORDS = ["a", "dog", "cat", "runs", "'s", "<start>", "<unk>"]
captions_of_few_words = st.lists(st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), max_size=12)

# Of the real Flickr30K test captions, against the real Flickr30K vocabulary.
UNKNOWN_WORDS, ALL_WORDS = 657, 67_713

# SCAN's layout: ids are the keys of an object, hence text.
SCAN = {
    "word2idx": {"<pad>": 0, "<start>": 1, "<end>": 2, "<unk>": 3, "dog": 4, "café": 5},
    "idx2word": {"3": "<unk>", "0": "<pad>", "1": "<start>", "2": "<end>", "5": "café", "4": "dog"},
    "idx": 6,
}
SPECIAL = json.dumps(list(SPECIAL_WORDS))[1:-1]
MALFORMED = {
    "empty": b"",
    "no JSON": b"word one\nword two\n",
    "cut short": b'{"words": ["<pad>", "<sta',
    "a pickle": b"\x80\x02c__main__\nVocabulary\nq\x00.",
    "not UTF-8": b'{"words": [' + SPECIAL.encode() + b', "caf\xe9"]}',
    "nested too deep": b"[" * 100_000,
    "half a surrogate pair": b'{"words": [' + SPECIAL.encode() + b', "\\ud800"]}',
    "a list": b'["<pad>", "<start>", "<end>", "<unk>"]',
    "a number": b"3",
    "neither layout": b'{"word2idx": {"<pad>": 0}}',
    "words that are no list": b'{"words": {"0": "<pad>"}}',
    "words without the special ones": b'{"words": ["dog", "cat"]}',
    "special words out of order": b'{"words": ["<start>", "<pad>", "<end>", "<unk>"]}',
    "no words": b'{"words": []}',
    "a word that is a number": b'{"words": [' + SPECIAL.encode() + b", 4]}",
    "a word that is null": b'{"words": [' + SPECIAL.encode() + b", null]}",
    "a word twice": b'{"words": [' + SPECIAL.encode() + b', "dog", "cat", "dog"]}',
    "a gap": b'{"idx2word": {"0": "<pad>", "1": "<start>", "2": "<end>", "3": "<unk>", "5": "dog"}}',
    "ids from one": b'{"idx2word": {"1": "<pad>", "2": "<start>", "3": "<end>", "4": "<unk>"}}',
    "an id that is no number": b'{"idx2word": {"0": "<pad>", "1": "<start>", "2": "<end>", "three": "<unk>"}}',
    "an id spelt twice": b'{"idx2word": {"0": "<pad>", "1": "<start>", "2": "<end>", "3": "<unk>", "03": "dog"}}',
}


def test_a_caption_becomes_start_words_end_and_unknown_words_unk() -> None:
    vocabulary = Vocabulary([*SPECIAL_WORDS, "dog", "a", "'s"])
    assert (PAD, START, END, UNK) == (0, 1, 2, 3)
    assert vocabulary.encode("A dog's zebra") == [START, 5, 4, 6, UNK, END]
    assert vocabulary.encode("") == [START, END]


def test_decoding_stops_at_end_and_leaves_out_start_and_padding() -> None:
    vocabulary = Vocabulary([*SPECIAL_WORDS, "dog", "a"])
    assert vocabulary.decode([START, 5, 4, UNK, END, 4, PAD]) == "a dog <unk>"
    assert vocabulary.decode([PAD, 4]) == "dog"
    assert vocabulary.decode([]) == ""


@given(captions=captions_of_few_words, min_count=st.integers(1, 4))
def test_a_built_vocabulary_has_the_frequent_words_ordered_by_count_then_alphabet(
    captions: list[str], min_count: int
) -> None:
    vocabulary = build_vocabulary(captions, min_count)
    counts = Counter(word for caption in captions for word in tokenize(caption))
    frequent = {word for word, count in counts.items() if count >= min_count} - set(SPECIAL_WORDS)
    learned = list(vocabulary.words[4:])
    assert tuple(vocabulary.words[:4]) == SPECIAL_WORDS
    assert set(learned) == frequent
    for one, next_one in itertools.pairwise(learned):
        assert counts[one] > counts[next_one] or (counts[one] == counts[next_one] and one < next_one)


@given(captions=captions_of_few_words)
def test_decoding_gives_back_a_caption_of_known_words(captions: list[str]) -> None:
    vocabulary = build_vocabulary(captions, min_count=1)
    for caption in captions:
        words = tokenize(caption)
        ids = vocabulary.encode(caption)
        assert (ids[0], ids[-1], len(ids)) == (START, END, len(words) + 2)
        assert vocabulary.decode(ids) == " ".join(words)


def test_special_words_in_captions_are_not_learned_a_second_time() -> None:
    vocabulary = build_vocabulary(["<start>"] * 9, min_count=1)
    assert list(vocabulary.words) == [*SPECIAL_WORDS, "<", ">", "start"]


@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), unique=True, max_size=20))
def test_our_json_gives_back_the_same_vocabulary(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> None:
    vocabulary = Vocabulary([*SPECIAL_WORDS, *(word for word in words if word not in SPECIAL_WORDS)])
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.json"
    path.write_bytes(vocabulary.to_json())
    read = read_vocabulary(path)
    assert list(read.words) == list(vocabulary.words)
    assert read.fingerprint == vocabulary.fingerprint
    assert json.loads(path.read_text(encoding="utf-8"))["words"] == list(vocabulary.words)


def test_scans_json_loads_in_the_order_of_its_ids(tmp_path: Path) -> None:
    path = tmp_path / "f30k_precomp_vocab.json"
    path.write_text(json.dumps(SCAN))
    vocabulary = read_vocabulary(path)
    assert vocabulary.ids == SCAN["word2idx"]
    assert vocabulary.encode("a café dog") == [START, UNK, 5, 4, END]


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_vocabulary_is_refused_naming_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_bytes(content)
    with pytest.raises(VocabularyError, match=r"vocabulary\.json"):
        read_vocabulary(path)


@settings(max_examples=300, deadline=None)
@given(cut=st.integers(0, 10_000), place=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_no_damage_to_a_file_gives_any_other_error(
    tmp_path_factory: pytest.TempPathFactory, cut: int, place: int, byte: int
) -> None:
    content = bytearray(json.dumps(SCAN).encode())
    content[place % len(content)] = byte
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.json"
    path.write_bytes(content[: cut % len(content)] if cut < len(content) else content)
    try:
        read_vocabulary(path)
    except VocabularyError as error:
        assert str(path) in str(error)


def test_a_missing_vocabulary_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match=r"there is no vocabulary .*none\.json; build one with `vsrn vocab"):
        read_vocabulary(tmp_path / "none.json")


@pytest.mark.parametrize(("name", "num_words"), [("coco", 10_006), ("f30k", 8_481), ("f8k", 3_178)])
def test_the_real_vocabularies_of_2019_load(shared: Path, name: str, num_words: int) -> None:
    path = shared / "legacy" / f"{name}_precomp_vocab.pkl"
    vocabulary = read_vocabulary(path)
    assert len(vocabulary) == num_words
    # Independently of any unpickler: the numbers and the texts in the order in which the file lists them.
    word2idx, idx2word = tables_in(path.read_bytes())
    assert vocabulary.ids == word2idx
    assert dict(enumerate(vocabulary.words)) == idx2word


def test_real_flickr30k_test_captions_have_unknown_words_in_this_share(shared: Path) -> None:
    vocabulary = read_vocabulary(shared / "legacy" / "f30k_precomp_vocab.pkl")
    captions = (shared / "captions" / "f30k_test_caps.txt").read_text(encoding="utf-8").splitlines()
    ids = [number for caption in captions for number in vocabulary.encode(caption)[1:-1]]
    assert (ids.count(UNK), len(ids)) == (UNKNOWN_WORDS, ALL_WORDS)
    assert vocabulary.unknown_share(captions) == UNKNOWN_WORDS / ALL_WORDS
    assert round(100 * vocabulary.unknown_share(captions), 2) == 0.97


def tables_in(pickled: bytes) -> tuple[dict[str, int], dict[int, str]]:
    """{word: id} and {id: word}, from a pickle that is only disassembled and never loaded."""
    values = [value for value in values_in(pickled) if value not in ("word2idx", "idx2word", "idx")]
    # The two tables are long runs of pairs; the one that begins with a number is idx2word.
    pairs = list(zip(values[::2], values[1::2], strict=False))
    return (
        {word: number for word, number in pairs if isinstance(word, str)},
        {number: word for number, word in pairs if isinstance(number, int)},
    )


def values_in(pickled: bytes) -> Iterator[Any]:
    """Numbers and texts in the order in which a pickle names them, memoised ones included."""
    memo: dict[int, Any] = {}
    latest: Any = None
    argument: Any
    for opcode, argument, _ in pickletools.genops(pickled):
        if "PUT" in opcode.name:
            memo[argument] = latest
        else:
            latest = memo[argument] if "GET" in opcode.name else argument
            is_value = "INT" in opcode.name or "UNICODE" in opcode.name or "STRING" in opcode.name
            if "GET" in opcode.name or is_value:
                # pickletools shows the bytes of a Python 2 string as Latin-1; they were UTF-8.
                latest = latest.encode("latin1").decode() if "STRING" in opcode.name else latest
                yield latest
