"""A person's word against the score: exported, honoured, kept, counted, and never spread."""

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest
from federation_helpers import files_of, open_micro, run_micro, tiny_model, write_micro

from clues.cli import program as cli
from clues.errors import (
    ApprovalError,
    CluesError,
    ConfigError,
    DataError,
    DegenerateSelectionError,
    RecipeMismatchError,
    UsageError,
)
from clues.pipeline import overrule, run_until
from clues.silo.approval import approve
from clues.silo.overrides import read_overrides
from clues.wall.ledger import verify
from clues.wall.messages import HelloReply, from_bytes

SECRET = "Wkb-marker-"


class World:
    """A finished run and its inputs, copied for every test that changes something."""

    def __init__(self, folder: Path) -> None:
        self.config = write_micro(folder / "input", tiny_model(folder / "model"))
        self.root = folder / "run"
        self.results = run_micro(self.config, self.root)

    def copy(self, folder: Path) -> tuple[Path, Path]:
        shutil.copytree(self.root, folder / "run")
        return self.config, folder / "run"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def decisions(root: Path, silo: str = "north") -> list[dict[str, str]]:
    with (root / "silos" / silo / "private" / "decisions.csv").open() as file:
        return list(csv.DictReader(file))


def exported(root: Path, entries, silo: str = "north", **changes) -> Path:
    """What the page writes: `entries` are (id, keep) or (id, keep, reason)."""
    recipe = json.loads((root / "manifest.json").read_text())["recipe_hash"]
    content = {
        "format": "clues-overrides",
        "version": 1,
        "silo": silo,
        "recipe_hash": recipe,
        "overrides": [
            {"id": e[0], "keep": e[1], "reason": e[2] if len(e) > 2 else SECRET} for e in entries
        ],
        **changes,
    }
    path = root.parent / f"overrides-{silo}.json"
    path.write_text(json.dumps(content))
    return path


def call(*arguments: str | Path) -> None:
    """Run a verb in this process; errors come up as they are."""
    old, sys.argv = sys.argv, ["clues", *map(str, arguments)]
    try:
        cli.app(standalone_mode=False)
    finally:
        sys.argv = old


def select(config: Path, root: Path, *files: Path, **how: str) -> None:
    flags = [flag for file in files for flag in ("--overrides", str(file))]
    call("select", config, "--out", root, "-q", "--allow-degenerate", *flags, *how.get("more", ""))


def turned(root: Path, silo: str = "north") -> tuple[str, str]:
    """Ids of one kept and of one dropped row."""
    rows = decisions(root, silo)
    return tuple(next(r["id"] for r in rows if r["kept"] == kept) for kept in "10")  # pyright: ignore[reportReturnType]


@pytest.mark.walk
def test_a_person_wins_over_the_score_and_the_reason_is_on_record(world, tmp_path, capfd):
    config, root = world.copy(tmp_path)
    kept, dropped = turned(root)
    before = {row["id"]: row for row in decisions(root)}
    path = exported(root, [(kept, False, "wrong dose"), (dropped, True, "right, though terse")])
    select(config, root, path)
    after = {row["id"]: row for row in decisions(root)}
    assert (after[kept]["kept"], after[dropped]["kept"]) == ("0", "1")
    assert after[kept]["reason"].startswith("dropped by a person: wrong dose; score ")
    assert after[dropped]["reason"].startswith("kept by a person: right, though terse; score ")
    others = before.keys() - {kept, dropped}
    assert all(after[id_] == before[id_] for id_ in others), "a row nobody spoke of has changed"
    lines = (root / "silos/north/private/kept.jsonl").read_text().splitlines()
    assert len(lines) == sum(row["kept"] == "1" for row in after.values())
    assert "2 rows decided by a person" in capfd.readouterr().out


@pytest.mark.slow
def test_the_change_shows_in_the_ledger_and_the_results(world, tmp_path):
    config, root = world.copy(tmp_path)
    n_before = len(verify(root / "ledger.jsonl"))
    rows = decisions(root)
    chosen = [(r["id"], False) for r in rows if r["kept"] == "1"][:4]
    select(config, root, exported(root, chosen))
    after = run_micro(config, root)
    new = [entry.kind for entry in verify(root / "ledger.jsonl")[n_before:]]
    assert {"hello-reply", "select", "select-reply", "fit-reply"} <= set(new)
    assert not {"train", "train-reply", "score-reply"} & set(new[new.index("select") :])
    kept = {n: silo["kept"] for n, silo in after["silos"].items()}
    before = {n: silo["kept"] for n, silo in world.results["silos"].items()}
    assert kept == {**before, "north": before["north"] - 4}
    assert after["silos"]["north"]["by_hand"] == {"kept": 0, "dropped": 4}
    assert "by_hand" not in after["silos"]["south"]
    for arm in ("clues", "random"):
        assert after["arms"][arm]["heldout_loss"] != world.results["arms"][arm]["heldout_loss"]
    for arm in ("mixed", "oracle"):
        same = after["arms"][arm]["heldout_loss"] == world.results["arms"][arm]["heldout_loss"]
        assert same, "an arm that no person touches was trained otherwise"


@pytest.mark.slow
def test_neither_training_nor_scores_are_made_again(world, tmp_path):
    config, root = world.copy(tmp_path)
    stages = root / "coordinator" / "stages"
    kept = ("train", "score", "threshold", "fit-mixed", "fit-oracle")
    kept += ("measure-mixed", "measure-oracle")
    watched = [stages / f"{name}.json" for name in kept]
    watched.append(root / "silos/north/private/scores.parquet")
    before = [path.stat().st_mtime_ns for path in watched]
    select(config, root, exported(root, [(turned(root)[0], False)]))
    run_micro(config, root)
    assert [path.stat().st_mtime_ns for path in watched] == before


@pytest.mark.slow
def test_overrides_survive_a_rerun_and_a_new_file_replaces_them(world, tmp_path):
    config, root = world.copy(tmp_path)
    kept, dropped = turned(root)
    select(config, root, exported(root, [(kept, False)]))
    run_micro(config, root)
    run_until(open_micro(config, root), "select")
    assert {r["id"]: r["kept"] for r in decisions(root)}[kept] == "0"
    select(config, root, exported(root, [(dropped, True)]))
    now = {r["id"]: r["kept"] for r in decisions(root)}
    assert (now[kept], now[dropped]) == ("1", "1"), "the file before was not replaced"


def test_an_empty_file_takes_everything_back(world, tmp_path):
    config, root = world.copy(tmp_path)
    before = decisions(root)
    select(config, root, exported(root, [(turned(root)[0], False)]))
    assert decisions(root) != before
    select(config, root, exported(root, []))
    assert decisions(root) == before


@pytest.mark.walk
def test_every_row_of_the_same_text_follows(world, tmp_path):
    config = write_micro(tmp_path / "input", world.config.parent.parent / "model")
    path = tmp_path / "input/silos/north.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines(keepends=True)[0])
    root = tmp_path / "run"
    run_micro(config, root)
    first, last = decisions(root)[0], decisions(root)[-1]
    assert first["id"] == last["id"]
    select(config, root, exported(root, [(first["id"], first["kept"] == "0")]))
    after = decisions(root)
    assert after[0]["kept"] == after[-1]["kept"] != first["kept"]


def test_a_dry_run_shows_what_overrides_would_do_and_writes_nothing(world, tmp_path, capfd):
    config, root = world.copy(tmp_path)
    file = exported(root, [(turned(root)[0], False)])
    private = root / "silos/north/private"
    before = {path: path.read_bytes() for path in files_of(private)}
    capfd.readouterr()
    select(config, root, file, more=("--dry-run", "--json"))
    counts = json.loads(capfd.readouterr().out)
    n_kept = sum(r["kept"] == "1" for r in decisions(root))
    changed = {"kept_now": n_kept, "kept": n_kept - 1, "more": 0, "fewer": 1}
    assert counts["north"] == {"rows": 24, **changed, "by_hand": 1, "refused": ""}
    assert {path: path.read_bytes() for path in files_of(private)} == before


def broken(root: Path, case: str) -> Path:
    kept, dropped = turned(root)
    cases = {
        "unknown id": [("0" * 16, True)],
        "twice": [(kept, True), (kept, True)],
        "both ways": [(kept, True), (kept, False)],
        "no reason": [(kept, False, " ")],
        "not an id": [("../x", True)],
        "long reason": [(kept, False, "x" * 1001)],
    }
    if case == "not json":
        path = exported(root, [])
        path.write_text(f"{{{SECRET}")
        return path
    changes = {
        "other recipe": {"recipe_hash": "f" * 12},
        "unknown silo": {"silo": "elsewhere"},
        "other format": {"format": "kept-rows"},
        "later version": {"version": 2},
        "unknown key": {SECRET: SECRET},
        "unknown inner key": {
            "overrides": [{"id": dropped, "keep": True, "reason": "good", SECRET: SECRET}]
        },
        "no list": {"overrides": None},
    }
    return exported(root, cases.get(case, [(dropped, True)]), **changes.get(case, {}))


@pytest.mark.parametrize(
    ("case", "error", "message"),
    [
        ("unknown id", DataError, r"north: 1 id is \(0000000000000000\) not among its rows"),
        ("twice", DataError, "named twice"),
        ("both ways", DataError, "to be kept and to be dropped"),
        ("no reason", ConfigError, r"overrides\.0\.reason"),
        ("not an id", ConfigError, r"overrides\.0\.id"),
        ("long reason", ConfigError, "1000 characters"),
        ("not json", DataError, "not valid JSON"),
        ("other recipe", RecipeMismatchError, "made under recipe ffffffffffff"),
        ("unknown silo", UsageError, "silo 'elsewhere', which this run does not have"),
        ("other format", ConfigError, "format"),
        ("later version", ConfigError, "version"),
        ("unknown key", ConfigError, "the file: has an unknown key, which is not shown"),
        ("unknown inner key", ConfigError, r"overrides\.0: has an unknown key, which is not shown"),
        ("no list", ConfigError, "overrides"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(
    world, tmp_path, capfd, case, error, message
):
    config, root = world.copy(tmp_path)
    before = {p: p.read_bytes() for p in files_of(root / "silos/north/private")}
    with pytest.raises(error, match=message) as raised:
        select(config, root, broken(root, case))
    assert SECRET not in str(raised.value) + "".join(capfd.readouterr())
    after = {p: p.read_bytes() for p in files_of(root / "silos/north/private")}
    assert after == before


def test_a_missing_file_and_a_second_file_of_a_silo_are_named(world, tmp_path):
    config, root = world.copy(tmp_path)
    with pytest.raises(DataError, match=r"nothing\.json: there is no such file"):
        select(config, root, tmp_path / "nothing.json")
    file = exported(root, [])
    with pytest.raises(UsageError, match="second file of silo north"):
        select(config, root, file, file)


def test_files_of_two_silos_count_together_or_not_at_all(world, tmp_path):
    config, root = world.copy(tmp_path)
    good = exported(root, [(turned(root)[0], False)])
    bad = exported(root, [("0" * 16, True)], "south")
    before = decisions(root)
    with pytest.raises(DataError, match="south"):
        select(config, root, good, bad)
    run_until(open_micro(config, root), "select")
    assert decisions(root) == before, "half of it is in force"
    select(config, root, good, exported(root, [(turned(root, "south")[1], True)], "south"))
    by_hand = [r for s in ("north", "south") for r in decisions(root, s) if "person" in r["reason"]]
    assert len(by_hand) == 2


def test_too_few_rows_are_refused_also_where_a_person_wants_it(world, tmp_path):
    config, root = world.copy(tmp_path)
    run = open_micro(config, root, allow_degenerate=False)
    run_until(run, "threshold")
    silo = run.silos["north"]
    silo.space.settings = silo.space.settings.model_copy(update={"min_kept": 3})
    kept = [r["id"] for r in decisions(root) if r["kept"] == "1"]
    for left, message in ((2, "only 2 rows"), (0, "keeps no row")):
        file = exported(root, [(id_, False) for id_ in kept[left:]])
        with pytest.raises(DegenerateSelectionError, match=message):
            overrule(run, {"north": read_overrides(file)})
    assert not (root / "silos/north/private/overrides.json").exists()


@pytest.mark.walk
def test_a_row_that_could_not_be_scored_cannot_be_kept(world, tmp_path):
    model = world.config.parent.parent / "model"
    config = write_micro(tmp_path / "input", model)
    path = tmp_path / "input/silos/north.jsonl"
    long = {"instruction": "a", "output": f"{SECRET} b" * 90, "key": "x", "damage": ""}
    path.write_text(path.read_text() + json.dumps(long) + "\n")
    root = tmp_path / "run"
    run_micro(config, root)
    row = decisions(root)[-1]
    assert row["score"] == ""
    with pytest.raises(DataError, match=r"row 25 .*cannot be kept by hand") as raised:
        select(config, root, exported(root, [(row["id"], True)]))
    assert SECRET not in str(raised.value)
    select(config, root, exported(root, [(row["id"], False)]))


@pytest.mark.slow
def test_another_recipe_starts_without_them_and_the_old_one_has_them_again(world, tmp_path):
    config = shutil.copytree(world.config.parent, tmp_path / "input") / "clues.yaml"
    root = world.copy(tmp_path)[1]
    kept = turned(root)[0]
    select(config, root, exported(root, [(kept, False)]))
    usual = config.read_text()
    config.write_text(usual.replace("rule: anchor_mean", "rule: ratio"))
    run_until(open_micro(config, root), "select")
    assert not [r for r in decisions(root) if "person" in r["reason"]]
    config.write_text(usual)
    run_until(open_micro(config, root), "select")
    assert [r["id"] for r in decisions(root) if "person" in r["reason"]] == [kept]


def test_overrides_after_an_approval_need_another_one(world, tmp_path):
    config, root = world.copy(tmp_path)
    content = config.read_text().replace("min_kept: 1", "min_kept: 1\n  approval: true")
    waits = config.with_name("approval.yaml")
    waits.write_text(content)
    run_until(open_micro(waits, root), "select")
    with pytest.raises(ApprovalError, match="north waits"):
        select(waits, root, exported(root, [(turned(root)[0], False)]))
    approve(root / "silos/north")
    run_until(open_micro(waits, root), "select")
    assert [r for r in decisions(root) if "person" in r["reason"]]


@pytest.mark.slow
def test_nothing_but_counts_and_a_keyed_token_leaves_the_silo(world, tmp_path):
    config, root = world.copy(tmp_path)
    kept = turned(root)[0]
    select(config, root, exported(root, [(kept, False)]))
    run_micro(config, root)
    outside = [p for p in files_of(root) if "private" not in p.relative_to(root).parts]
    for mark in (SECRET, kept):
        leaks = [p.name for p in outside if mark.encode() in p.read_bytes()]
        assert not leaks, "a reason or an id left the silo"
    [hello] = (root / "silos/north/outbox").glob("hello-*")
    reply = from_bytes(hello.read_bytes(), allowed={"hello-reply": HelloReply}, sender="north")
    assert len(reply.overrides_token) == 16


@pytest.mark.parametrize("content", ["{", '{"x": {"silo": 3}}'])
def test_a_stored_file_that_was_touched_is_named(world, tmp_path, content):
    config, root = world.copy(tmp_path)
    recipe = json.loads((root / "manifest.json").read_text())["recipe_hash"]
    path = root / "silos/north/private/overrides.json"
    path.write_text(content.replace('"x"', f'"{recipe}"'))
    with pytest.raises(CluesError, match=r"overrides\.json"):
        run_until(open_micro(config, root), "select")
