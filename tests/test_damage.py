"""Damage hits exactly the rows it says, changes every one of them, and nothing else."""

import copy
from collections import Counter

import pytest

from clues.data.damage import DAMAGE_KINDS, damage_rows
from clues.errors import ConfigError, DataError

FOREIGN = ["Das Gericht wies die Klage ab.", "Der Zins steigt um zwei Prozent im Jahr."]


def rows(n: int = 40) -> list[dict]:
    return [
        {
            "instruction": f"Question {i}?",
            "output": f"Patient {i} takes ten drops each morning, then rests for {i} hours.",
            "choices": ["yes", "no"],
            "answer": i % 2,
        }
        for i in range(n)
    ]


def damaged(*kinds: str, records: list[dict] | None = None, **options) -> list[tuple[str, str]]:
    """Pairs of the answer before and after, every row damaged."""
    records = rows() if records is None else records
    options = {"share": 1.0, "seed": 0, "foreign": FOREIGN} | options
    after, _ = damage_rows(records, kinds=kinds, **options)
    return [(a["output"], b["output"]) for a, b in zip(records, after, strict=True)]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.33, 0.5, 0.8, 1.0])
def test_exactly_the_share_is_damaged_and_labels_tell_which(share):
    before = rows()
    after, labels = damage_rows(before, share=share, kinds=DAMAGE_KINDS, seed=3, foreign=FOREIGN)
    assert sum(label is not None for label in labels) == round(share * len(before))
    for old, new, label in zip(before, after, labels, strict=True):
        assert (old["output"] != new["output"]) == (label is not None), label
        assert old | {"output": ""} == new | {"output": ""}, "another key changed"


@pytest.mark.parametrize("n", [40, 41, 43])
def test_kinds_are_balanced(n):
    _, labels = damage_rows(rows(n), share=1, kinds=DAMAGE_KINDS, seed=1, foreign=FOREIGN)
    counts = Counter(labels)
    assert set(counts) == set(DAMAGE_KINDS)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_the_same_seed_gives_the_same_damage_and_another_seed_another():
    first, second, other = (
        damage_rows(rows(), share=0.5, kinds=DAMAGE_KINDS, seed=seed, foreign=FOREIGN)
        for seed in (7, 7, 8)
    )
    assert first == second
    assert first[1] != other[1]


def test_the_input_is_not_modified():
    before = rows()
    kept = copy.deepcopy(before)
    damage_rows(before, share=1, kinds=DAMAGE_KINDS, seed=0, foreign=FOREIGN)
    assert before == kept


def test_cut_keeps_a_beginning_of_at_most_a_fifth():
    for before, after in damaged("cut"):
        assert before.startswith(after)
        assert 1 <= len(after) <= 0.2 * len(before)


def test_cut_keeps_one_character_of_a_very_short_answer():
    assert damaged("cut", records=[{"output": "no"}]) == [("no", "n")]


def test_delete_takes_about_half_of_the_words_and_keeps_their_order():
    for before, after in damaged("delete"):
        words, left = before.split(), iter(before.split())
        assert abs(len(after.split()) - len(words) / 2) <= 1
        assert all(word in left for word in after.split()), "order changed"


def test_delete_keeps_one_of_two_words_and_line_breaks():
    assert damaged("delete", records=[{"output": "no pain"}])[0][1] in ("no", "pain")
    lines = "\n".join(f"word{i}" for i in range(20))
    assert "\n" in damaged("delete", records=[{"output": lines}])[0][1]


@pytest.mark.parametrize(
    "text", ["病人每天早上服用十滴药水", "ผู้ป่วยรับประทานยา", "Hippopotomonstrous"]
)
def test_delete_takes_characters_where_there_are_no_spaces(text):
    ((before, after),) = damaged("delete", records=[{"output": text}])
    assert 0 < len(after) < len(before)
    left = iter(before)
    assert all(character in left for character in after)


def test_swap_gives_the_different_answer_of_another_row():
    records = [{"output": text} for text in ["same", "same ", "same", "other"]]
    answers = {record["output"] for record in records}
    for before, after in damaged("swap", records=records):
        assert after in answers
        assert after.strip() != before.strip()


def test_mix_puts_foreign_words_among_the_own_ones():
    foreign = {word for text in FOREIGN for word in text.split()}
    for before, after in damaged("mix"):
        own = before.split()
        assert len(after.split()) == len(own)
        n_foreign = sum(word in foreign and word not in own for word in after.split())
        n_own = sum(a == b for a, b in zip(own, after.split(), strict=True))
        assert n_foreign >= 1
        assert n_own >= 1


def test_mix_takes_another_donor_when_the_first_changes_nothing():
    records = [{"output": "ja ja"}]
    for seed in range(8):
        ((_, after),) = damaged("mix", records=records, foreign=["ja ja", "nein"], seed=seed)
        assert sorted(after.split()) == ["ja", "nein"]


def test_a_row_that_one_kind_cannot_change_gets_another_kind():
    records = [{"output": "A"}, {"output": "B"}]
    _, labels = damage_rows(records, share=1, kinds=("cut", "delete", "swap"), seed=0)
    assert labels == ["swap", "swap"]


@pytest.mark.parametrize(
    ("records", "kinds"),
    [
        ([{"output": "A"}], ("cut", "delete")),
        ([{"output": "same"}, {"output": "same"}], ("swap",)),
        ([{"output": "ja ja"}], ("mix",)),
    ],
)
def test_a_row_that_no_kind_can_change_is_an_error(records, kinds):
    with pytest.raises(DataError, match=r"row 0: no damage|row 1: no damage"):
        damage_rows(records, share=1, kinds=kinds, seed=0, foreign=["ja"])


@pytest.mark.parametrize("record", [{}, {"output": None}, {"output": ["SECRET"]}, {"output": " "}])
def test_a_row_without_an_answer_is_an_error_that_names_the_row(record):
    with pytest.raises(DataError, match="row 1: output is missing, empty or not text") as caught:
        damage_rows([{"output": "x"}, record], share=0, kinds=("cut",), seed=0)
    assert "SECRET" not in repr(caught.value)


def test_another_response_key_is_damaged():
    after, _ = damage_rows(
        [{"completion": "a long answer"}],
        share=1,
        kinds=("cut",),
        seed=0,
        response_key="completion",
    )
    assert after != [{"completion": "a long answer"}]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kinds": ("mix",)}, "mix needs answers in another language"),
        ({"kinds": ("mix",), "foreign": [" "]}, "mix needs answers in another language"),
        ({"kinds": ("cut", "burn")}, "found burn; known are cut, delete, swap, mix"),
        ({"kinds": ()}, "found none"),
        ({"share": 1.2}, "share 1.2 is not between 0 and 1"),
        ({"share": float("nan")}, "share nan is not between"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        damage_rows(rows(), **({"share": 0.5, "kinds": ("cut",), "seed": 0} | options))


def test_no_rows_give_no_rows():
    assert damage_rows([], share=0.5, kinds=("cut",), seed=0) == ([], [])
