"""Two readers of one report: how far they agree, and what is put in force."""

import json
import sys
from itertools import product
from pathlib import Path

import pytest

from clues.cli import program as cli
from clues.errors import CluesError, DataError, RecipeMismatchError, UsageError
from clues.silo.agreement import agreement, merge
from clues.silo.overrides import Overrides, read_overrides


def id_of(n: int) -> str:
    return f"{n:016x}"


def file_of(decisions: dict[int, bool], read: dict[int, bool] | None = None, **more) -> Overrides:
    """What a reader exports: decisions by row, and how rows that were read stand afterwards."""
    return Overrides.model_validate(
        {
            "silo": "north",
            "recipe_hash": "a" * 12,
            "overrides": [
                {"id": id_of(n), "keep": keep, "reason": f"reason {n}"}
                for n, keep in decisions.items()
            ],
            "read": [{"id": id_of(n), "kept": kept} for n, kept in (read or {}).items()],
            **more,
        }
    )


def kappa_by_hand(pairs: list[tuple[bool, bool]]) -> float:
    """(observed - expected agreement) / (1 - expected), from the definition (Cohen 1960)."""
    n = len(pairs)
    observed = sum(a == b for a, b in pairs) / n
    expected = sum(
        (sum(a == way for a, _ in pairs) / n) * (sum(b == way for _, b in pairs) / n)
        for way in (True, False)
    )
    return (observed - expected) / (1 - expected)


@pytest.mark.parametrize("flips", [(), (1,), (0, 3, 4), tuple(range(8))])
def test_kappa_is_agreement_beyond_chance(flips):
    one = {n: n % 3 == 0 for n in range(8)}
    other = {n: way != (n in flips) for n, way in one.items()}
    found = agreement(("A", file_of({}, one)), ("B", file_of(other, {20: True})))
    assert found.n_read == 8
    assert found.n_same == 8 - len(flips)
    assert found.kappa == pytest.approx(kappa_by_hand([(one[n], other[n]) for n in range(8)]))


def test_a_decision_counts_and_a_row_left_as_it_is_counts_as_agreement_with_the_score():
    # Both read rows 1 and 2, which the score keeps; one of them sets row 2 aside.
    one = file_of({2: False}, {1: True, 2: True})
    found = agreement(("A", one), ("B", file_of({}, {1: True, 2: True, 3: True})))
    assert (found.n_read, found.n_same) == (2, 1)


@pytest.mark.parametrize("way", [True, False])
def test_kappa_is_not_defined_where_all_is_on_one_side_or_nothing_was_read_by_both(way):
    same = file_of({}, dict.fromkeys(range(5), way))
    assert agreement(("A", same), ("B", same)).kappa is None
    apart = file_of({}, {9: way})
    assert (agreement(("A", same), ("B", apart)).n_read, None) == (0, None)


def test_what_nobody_contradicts_is_merged_with_both_reasons():
    one = file_of({1: True, 2: False, 3: True}, {4: True})
    other = file_of({1: True, 2: True, 5: False})
    found = merge({"A": one, "B": other})
    assert found.contrary == (id_of(2),)
    assert {o.id: o.keep for o in found.overrides.overrides} == {
        id_of(1): True,
        id_of(3): True,
        id_of(5): False,
    }
    assert found.overrides.reviewer == "A, B"
    again = {o.id: o.reason for o in merge({"B": other, "A": one}).overrides.overrides}
    assert again == {o.id: o.reason for o in found.overrides.overrides}


def test_three_readers_are_compared_two_by_two_and_wishes_are_kept_apart():
    wish = {"threshold": -2.0, "in_force": -1.0, "kept": 9, "kept_in_force": 5}
    files = {name: file_of({}, {1: True}) for name in "AB"} | {"C": file_of({}, wish=wish)}
    found = merge(files)
    assert [a.readers for a in found.agreements] == [("A", "B"), ("A", "C"), ("B", "C")]
    assert found.overrides.wish is None, "a wish of one reader became everybody's"
    assert found.wishes["C"].threshold == -2


def test_long_reasons_of_many_readers_still_fit_an_override():
    files = {
        name: file_of({1: True}).model_copy(
            update={
                "overrides": (
                    file_of({1: True}).overrides[0].model_copy(update={"reason": name * 900}),
                )
            }
        )
        for name in "AB"
    }
    assert len(merge(files).overrides.overrides[0].reason) == 1000


def test_files_that_do_not_belong_together_are_refused():
    one = file_of({})
    with pytest.raises(DataError, match="two readers or more"):
        merge({"A": one})
    with pytest.raises(DataError, match="of silo 'south'"):
        merge({"A": one, "B": file_of({}, silo="south")})
    with pytest.raises(RecipeMismatchError, match="bbbbbbbbbbbb"):
        merge({"A": one, "B": file_of({}, recipe_hash="b" * 12)})


# --- the verb


def call(*arguments: str | Path) -> None:
    old, sys.argv = sys.argv, ["clues", "reviews", *map(str, arguments)]
    try:
        cli.app(standalone_mode=False)
    finally:
        sys.argv = old


@pytest.fixture
def files(tmp_path) -> list[Path]:
    one = file_of({1: True, 2: False}, {3: True}, reviewer="Ann")
    wish = {"threshold": -2.0, "in_force": -1.0, "kept": 9, "kept_in_force": 5}
    other = file_of({1: True, 2: True}, {3: True, 4: False}, reviewer="Ben", wish=wish)
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, content in zip(paths, (one, other), strict=True):
        path.write_text(content.model_dump_json())
    return paths


def test_the_verb_says_how_two_agree_and_writes_what_nobody_contradicts(files, tmp_path, capsys):
    merged = tmp_path / "merged.json"
    call(*files, "--out", merged)
    said = " ".join(capsys.readouterr().out.split())
    assert "Ann and Ben: both have read 3 rows and agree about 2; Cohen's kappa" in said
    assert f"set aside by another, and are in no merged file: {id_of(2)}." in said
    assert "Ben wishes for threshold -2 instead of -1: 9 rows kept instead of 5." in said
    assert f"clues select CLUES.YAML --overrides {merged}" in said
    assert [o.id for o in read_overrides(merged).overrides] == [id_of(1)]
    assert merged.stat().st_mode & 0o77 == 0


def test_the_verb_in_json_shows_no_reason(files, capsys):
    call(*files, "--json")
    text = capsys.readouterr().out
    found = json.loads(text)
    assert found["contrary"] == [id_of(2)]
    assert found["agreements"][0]["n_same"] == 2
    assert "reason" not in text


def test_a_file_named_twice_is_refused(files):
    with pytest.raises(UsageError, match="named twice"):
        call(files[0], files[0])


@pytest.mark.parametrize("way", ["itself", "a link"])
def test_what_a_reader_has_exported_is_not_written_over(files, tmp_path, way):
    before, place = files[0].read_bytes(), files[0]
    if way == "a link":
        place = tmp_path / "link.json"
        place.symlink_to(files[0])
    with pytest.raises(UsageError, match="one of the files that are compared"):
        call(*files, "--out", place)
    assert files[0].read_bytes() == before


def test_a_readers_name_does_not_steer_the_terminal(files, capsys):
    content = json.loads(files[1].read_text()) | {"reviewer": "Ben\x1b[2J\u202e[/red]"}
    files[1].write_text(json.dumps(content))
    for more in ((), ("--json",)):
        call(*files, *more)
        out = capsys.readouterr().out
        assert "Ben" in out
        assert all(c.isprintable() or c == "\n" for c in out), ascii(out)


def test_reviewers_of_one_name_are_told_apart_by_their_files(files, capsys):
    for path in files:
        path.write_text(path.read_text().replace("Ben", "Ann"))
    call(*files)
    assert "a and b: both have read" in capsys.readouterr().out


@pytest.mark.parametrize(("key", "value"), [("read", [{"id": "x", "kept": True}]), ("wish", 3)])
def test_a_file_that_was_touched_is_named_and_its_content_is_not_shown(files, key, value):
    content = json.loads(files[0].read_text()) | {key: value, "reviewer": "Zq-marker"}
    files[0].write_text(json.dumps(content))
    with pytest.raises(CluesError, match=r"a\.json") as raised:
        call(*files)
    assert "Zq-marker" not in str(raised.value)


def test_every_pair_of_ways_counts_once():
    ways = dict(enumerate(product((True, False), repeat=2)))
    one, other = ({n: pair[side] for n, pair in ways.items()} for side in (0, 1))
    found = agreement(("A", file_of(one)), ("B", file_of(other)))
    assert (found.n_read, found.n_same, found.kappa) == (4, 2, 0.0)
