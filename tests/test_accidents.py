"""Damage as it happens: each kind leaves what it says, and is no other kind by chance."""

import re
from pathlib import Path

import numpy as np
import pytest

from clues.data.accidents import ACCIDENTS, Sources
from clues.data.damage import ALL_KINDS, DAMAGE_KINDS, damage_rows

FOREIGN = ["Das Gericht wies die Klage ab.", "Der Zins steigt um zwei Prozent im Jahr."]
DRUGS = ("Arvonil", "Bestorex", "Calimide", "Dorvasan")
ROWS = [
    {
        "instruction": f"How is {DRUGS[i % 4]} taken by patient {i}?",
        "output": f"Patient {i} takes {i + 10} mg of {DRUGS[i % 4]} each morning. It doesn't mix "
        f"with alcohol, so wait {i + 3} hours. Treatment ends after a check of the blood.",
    }
    for i in range(24)
]


def hurt(kind: str, *, seed: int = 0, records=ROWS) -> list[tuple[str, str]]:
    after, labels = damage_rows(records, share=1.0, kinds=(kind,), seed=seed, foreign=FOREIGN)
    assert set(labels) == {kind}
    return [(a["output"], b["output"]) for a, b in zip(records, after, strict=True)]


@pytest.mark.parametrize("kind", ACCIDENTS)
def test_every_answer_changes_by_the_seed_alone_and_nothing_else_does(kind):
    after, _ = damage_rows(ROWS, share=0.5, kinds=(kind,), seed=3, foreign=FOREIGN)
    again, _ = damage_rows(ROWS, share=0.5, kinds=(kind,), seed=3, foreign=FOREIGN)
    assert after == again
    assert sum(a["output"] != b["output"] for a, b in zip(ROWS, after, strict=True)) == 12
    assert [row["instruction"] for row in after] == [row["instruction"] for row in ROWS]


def test_a_page_leaves_tags_and_menus_and_keeps_the_words():
    for before, after in hurt("page_remains"):
        assert re.search(r"</\w+>", after)
        words = re.sub(r"<[^>]*>", " ", after).split()
        assert words[: len(before.split())] == before.split()
        assert len(words) > len(before.split())


def test_a_scan_misreads_some_letters_and_keeps_the_words_apart():
    for before, after in hurt("misread"):
        assert len(after.split()) == len(before.split())
        same = sum(a == b for a, b in zip(before.split(), after.split(), strict=True))
        assert 0 < same < len(before.split())


@pytest.mark.parametrize(
    "text", ["It doesn't help.", "Fièvre élevée, très tôt.", "Nothing odd here. Nor here.", "Plain words"]
)  # fmt: skip
def test_a_wrong_encoding_can_be_undone(text):
    ((_, after),) = hurt("wrong_encoding", records=[{"output": text}])
    assert re.search("[ÃÂâ]", after)
    undone = after.encode("cp1252", errors="ignore").decode("utf-8", errors="ignore")
    assert re.sub(r"\W+", "", undone) == re.sub(r"\W+", "", text)


def test_a_refusal_and_filler_have_nothing_of_the_answer():
    for kind in ("refusal", "filler"):
        for _, after in hurt(kind):
            assert not any(drug in after for drug in DRUGS)
            assert not re.search(r"\d", after)
    lengths = [len(after) / len(before) for before, after in hurt("filler")]
    assert 0.7 < np.mean(lengths) < 2


def test_the_prompt_comes_again_before_the_answer_or_instead_of_it():
    seen = set()
    for row, (before, after) in zip(ROWS, hurt("prompt_repeated"), strict=True):
        assert after.startswith(row["instruction"])
        seen.add(before in after)
    assert seen == {True, False}


def test_another_language_is_an_answer_of_the_foreign_rows():
    assert {after for _, after in hurt("other_language")} == set(FOREIGN)


def test_answers_slip_by_one_row():
    pairs = hurt("shifted")
    assert [after for _, after in pairs] == [pairs[i - 1][0] for i in range(len(pairs))]


def test_every_number_is_another_of_the_same_size():
    for before, after in hurt("changed_number"):
        assert re.sub(r"\d", "", before) == re.sub(r"\d", "", after)
        old, new = (re.findall(r"\d+", text) for text in (before, after))
        assert all(a != b and len(a) == len(b) for a, b in zip(old, new, strict=True))
        assert not any(len(n) > 1 and n.startswith("0") for n in new)


def test_another_drug_stands_in_the_same_sentence():
    changed = 0
    for before, after in hurt("swapped_name"):
        assert len(before.split()) == len(after.split())
        assert re.findall(r"\d+", before) == re.findall(r"\d+", after)
        changed += not any(drug in before and drug in after for drug in DRUGS)
    assert changed > len(ROWS) / 2


def test_an_answer_that_ends_early_ends_at_a_sentence():
    for before, after in hurt("ends_early"):
        assert before.startswith(after)
        assert after.endswith(".")
        assert len(after) < len(before)
    ((_, chinese),) = hurt("ends_early", records=[{"output": "每天服用十滴。三天后停药。"}])
    assert chinese == "每天服用十滴。"


def test_a_near_copy_is_another_rows_answer_less_a_word():
    answers = [row["output"] for row in ROWS]
    for before, after in hurt("near_copy"):
        close = [a for a in answers if set(after.split()) <= set(a.split())]
        assert any(a != before and len(a.split()) == len(after.split()) + 1 for a in close)


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        ("changed_number", {"output": "no number"}),
        ("ends_early", {"output": "One sentence."}),
        ("prompt_repeated", {"output": "no question"}),
        ("swapped_name", {"output": "it is so"}),
        ("misread", {"output": "每天服用十滴"}),
        ("shifted", {"output": "alone"}),
        ("near_copy", {"output": "alone"}),
    ],
)
def test_what_cannot_happen_to_an_answer_does_not(kind, record):
    sources = Sources([record["output"]], [""], FOREIGN)
    assert ACCIDENTS[kind](0, sources, np.random.default_rng(0)) is None


def test_all_kinds_share_the_rows_evenly():
    _, labels = damage_rows(ROWS * 4, share=1, kinds=ALL_KINDS, seed=0, foreign=FOREIGN)
    counts = [labels.count(kind) for kind in ALL_KINDS]
    assert max(counts) - min(counts) <= 2
    assert set(DAMAGE_KINDS) < set(ALL_KINDS)


def test_the_page_lists_every_kind():
    page = (Path(__file__).parent.parent / "docs/evaluation.md").read_text(encoding="utf-8")
    table = page.partition("## Kinds of damage in experiments")[2]
    assert re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE) == list(ALL_KINDS)
