"""Masks against TRL: its training templates say with marks where an assistant speaks.

`make oracle-trl` installs TRL beside the project; without it there is nothing to compare with.
"""

import datetime
import importlib.util
from itertools import groupby
from pathlib import Path

import jinja2
import pytest

from clues.config import TokenSettings
from clues.data.samples import Message, Sample
from clues.data.tokens import EncodedRow, RowEncoder
from clues.errors import DataError

FOUND = importlib.util.find_spec("trl")  # nothing of it is imported
FOLDER = Path(FOUND.submodule_search_locations[0] if FOUND else "") / "chat_templates"  # pyright: ignore[reportOptionalSubscript]
MARKED = sorted(path.name for path in FOLDER.glob("*_training.jinja")) if FOUND else []
PLAIN = [n for n in MARKED if (FOLDER / n.replace("_training", "")).exists()]
pytestmark = pytest.mark.skipif(not FOUND, reason="TRL is not installed: make oracle-trl")
CHAT = (
    ("user", "Which organ pumps blood?"),
    ("assistant", "The heart."),
    ("user", "And what makes insulin?"),
    ("assistant", "The pancreas, behind the stomach."),
)
CONVERSATIONS = {
    "one turn": CHAT[:2],
    "several": CHAT,
    "system": (("system", "Answer briefly."), *CHAT),
}
# Written without a mark, the turn ends where the next one begins, so there is no stop to be trained.
NO_STOP = {"glm4moe_training.jinja"}


@pytest.fixture(scope="module")
def tokenizer_of(make_tokenizer):
    tokenizer = make_tokenizer()

    def call(name: str):
        tokenizer.chat_template = (FOLDER / name).read_text(encoding="utf-8")
        return tokenizer

    return call


def encoded(tokenizer, turns) -> EncodedRow:
    # A template that writes today's date is told the same day on both sides.
    today = datetime.datetime.now().astimezone().date()
    settings = TokenSettings(template="chat", max_length=8192, date=today)
    sample = Sample(0, tuple(Message(role, text) for role, text in turns))
    return RowEncoder(tokenizer, settings).encode(sample)


def theirs(tokenizer, turns) -> tuple[list[int], list[bool]] | None:
    """Tokens and mask as transformers makes them; None where the template refuses these turns."""
    said = [{"role": role, "content": text} for role, text in turns]
    how = {"return_dict": True, "return_assistant_tokens_mask": True}
    try:
        found = tokenizer.apply_chat_template(said, **how)
    except jinja2.TemplateError:
        return None
    return list(found["input_ids"]), [bool(m) for m in found["assistant_masks"]]


def runs(tokenizer, row: EncodedRow) -> list[str]:
    """The trained text, stretch by stretch."""
    pairs = groupby(zip(row.ids, row.mask, strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([i for i, _ in own]) for trained, own in pairs if trained]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", MARKED)
def test_where_a_template_marks_answers_the_mask_is_that_of_transformers(
    tokenizer_of, name, conversation
) -> None:
    """But for white space behind what ends a turn: nothing is to be learnt from it."""
    tokenizer, turns = tokenizer_of(name), CONVERSATIONS[conversation]
    answers = [text for role, text in turns if role == "assistant"]
    expected = theirs(tokenizer, turns)
    if expected is None or answers[0] not in tokenizer.decode(expected[0]):
        # It refuses a system turn, or wants texts as lists of parts.
        with pytest.raises(DataError, match="chat template"):
            encoded(tokenizer, turns)
        return
    row, (ids, mask) = encoded(tokenizer, turns), expected
    assert list(row.ids) == ids
    assert not [n for n, (a, b) in enumerate(zip(row.mask, mask, strict=True)) if a and not b]
    left = [i for i, a, b in zip(ids, row.mask, mask, strict=True) if b and not a]
    assert tokenizer.decode(left).strip() == "", "text that TRL trains is left out"
    stretches = runs(tokenizer, row)
    assert len(stretches) == len(answers)
    for stretch, answer in zip(stretches, answers, strict=True):
        assert stretch.count(answer) == 1, "a stretch is not the answer's"
        assert stretch.rstrip() == stretch


@pytest.mark.parametrize("name", PLAIN)
def test_without_marks_the_same_answers_are_found_with_what_ends_them(tokenizer_of, name) -> None:
    """What stands in front of an answer is the template's, and whether to train it is a choice."""
    marked = tokenizer_of(name)
    answers = [text for role, text in CHAT if role == "assistant"]
    expected = theirs(marked, CHAT)
    if expected is None or answers[0] not in marked.decode(expected[0]):
        pytest.skip("the template wants texts as lists of parts")
    whole = runs(marked, encoded(marked, CHAT))
    plain = tokenizer_of(name.replace("_training", ""))
    found = runs(plain, encoded(plain, CHAT))
    assert len(found) == len(whole) == len(answers)
    for own, other, answer in zip(found, whole, answers, strict=True):
        assert answer in own
        if name in NO_STOP:
            assert own.strip() == answer
        else:
            assert other.strip().endswith(own.strip()), "the end of the turn is another"
