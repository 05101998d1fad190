"""Known words that stand in for unknown ones, and spellings."""

from __future__ import annotations

import pytest

from vsrn.data.stand_ins import StandIns
from vsrn.data.vocabulary import SPECIAL_WORDS, Vocabulary, read_vocabulary
from vsrn.pretrained import find_model


@pytest.fixture(scope="module")
def shipped() -> StandIns:
    """Of the model in the box."""
    return StandIns(read_vocabulary(find_model()))


@pytest.mark.parametrize(
    ("word", "wanted"), [("lion", "cat"), ("sunrise", "sunset"), ("violinist", "violin"), ("parrot", "bird")]
)
def test_words_that_were_never_read_are_stood_in_for_by_words_of_like_meaning(
    word: str, wanted: str, shipped: StandIns
) -> None:
    assert word not in shipped.vocabulary.ids
    assert wanted in shipped.of(word)
    assert all(other in shipped.vocabulary.ids for other in shipped.of(word))


@pytest.mark.parametrize("word", ["dog", "the", ",", "xyzzyq", "zwei"])
def test_known_words_function_words_marks_and_words_of_no_list_have_none(word: str, shipped: StandIns) -> None:
    assert shipped.of(word) == ()


def test_any_vocabulary_has_them_where_one_of_its_words_is_near() -> None:
    small = StandIns(Vocabulary([*SPECIAL_WORDS, "the", "dog", "boat"]))
    assert small.of("hound") == ("dog",)
    assert small.of("yacht") == ("boat",)
    assert small.of("theorem") == ()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("dgo", "dog"), ("snwo", "snow"), ("moutain", "mountain"), ("bycicle", "bicycle"), ("girafe", "giraffe")],
)
def test_a_misspelt_word_is_offered_as_the_word_that_is_near(typed: str, meant: str, shipped: StandIns) -> None:
    assert shipped.spelling(typed) == meant


@pytest.mark.parametrize("word", ["dog", "lion", "democracy", "xyzzyq", "", "12", "\u4e00\u53ea\u72d7"])
def test_what_is_a_word_or_near_none_has_no_other_spelling(word: str, shipped: StandIns) -> None:
    assert shipped.spelling(word) is None


def test_of_words_as_near_the_earlier_one_of_the_vocabulary_is_offered() -> None:
    assert StandIns(Vocabulary([*SPECIAL_WORDS, "bat", "hat"])).spelling("qat") == "bat"
    assert StandIns(Vocabulary([*SPECIAL_WORDS, "hat", "bat"])).spelling("qat") == "hat"
