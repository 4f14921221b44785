"""A silo answers once, refuses what does not fit, and sends no more than its messages say."""

import csv
import gzip
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from federation_helpers import (
    N_ROWS,
    Recorder,
    merged,
    open_micro,
    tiny_model,
    write_micro,
    write_rows,
)

from clues.config import SiloSettings, short
from clues.data.formats import read_rows
from clues.errors import CluesError, DataError, DegenerateSelectionError, RecipeMismatchError
from clues.pipeline import ModelCache, run_until
from clues.progress import Silent
from clues.scoring.table import ScoreTable
from clues.selection.threshold import Threshold
from clues.silo.select import each_decision
from clues.silo.silo import Silo
from clues.wall.messages import (
    REPLIES,
    REQUESTS,
    EvaluateRequest,
    FitRequest,
    ScoreRequest,
    from_bytes,
    round_count,
)

N_LONG = 1  # rows of silo north that do not fit into max_length


class World:
    """A finished run, and copies of one of its silos to ask."""

    def __init__(self, folder: Path) -> None:
        self.model = tiny_model(folder / "model")
        # So that every kind of request comes; the two silos have no question in common.
        looks = {"recipe": {"duplicates": {}}}
        self.config_path = write_micro(folder / "data", self.model, changes=looks)
        self.data = folder / "data/silos/north.jsonl"
        long = {"instruction": "Why?", "output": "So. " * 200, "key": "long", "damage": ""}
        with self.data.open("a") as file:
            file.write(json.dumps(long) + "\n")
        self.run = open_micro(self.config_path, folder / "run")
        self.recorder = Recorder(self.run)
        run_until(self.run)
        self.settings = self.run.silos["north"].settings
        self.cache = ModelCache()

    def silo(self, tmp_path: Path, **changes: object) -> Silo:
        """A copy of silo north as a new process would open it, with some settings changed."""
        folder = tmp_path / "silo"
        if not folder.exists():
            shutil.copytree(self.run.run_dir.silo("north"), folder)
        content = merged(self.settings.model_dump(by_alias=True), changes)
        return Silo(
            SiloSettings.model_validate(content),
            folder,
            load_model=self.cache.load,
            progress=Silent(),
            allow_degenerate=True,
        )

    def request(self, kind: str):
        """The last request of a kind that silo north got."""
        data, _ = self.recorder.last("north", kind)
        return from_bytes(data, allowed=REQUESTS, sender="coordinator")

    def threshold(self) -> Threshold:
        return Threshold.from_json(self.request("select").threshold)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def reply_of(silo: Silo, request):
    return from_bytes(silo.answer(request.to_bytes()), allowed=REPLIES, sender="silo north")


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(REQUESTS))
def test_a_request_answered_before_gets_the_same_bytes_without_any_work(world, tmp_path, kind):
    request, reply = world.recorder.last("north", kind)
    silo = world.silo(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in silo.folder.rglob("*") if p.is_file()}

    def no_model(recipe):
        pytest.fail("a stored answer needs no model")

    silo.space.load_model = no_model
    assert silo.answer(request) == reply
    after = {p: p.stat().st_mtime_ns for p in silo.folder.rglob("*") if p.is_file()}
    assert before == after, "something was written to answer a second time"


@pytest.mark.parametrize("kind", sorted(REQUESTS))
def test_a_request_answered_anew_gets_the_same_bytes_too(world, tmp_path, kind):
    request, reply = world.recorder.last("north", kind)
    silo = world.silo(tmp_path)
    for stored in silo.outbox.glob("*.clues"):
        stored.unlink()
    assert silo.answer(request) == reply, f"{kind} depends on something besides request and rows"


def test_the_outbox_holds_every_reply_that_was_sent_and_nothing_else(world, tmp_path):
    silo = world.silo(tmp_path)
    sent = {reply for name, _, reply in world.recorder.crossed if name == "north"}
    assert len(sent) > len(REQUESTS), "no kind was answered twice: nothing could be lost"
    assert {path.read_bytes() for path in silo.outbox.rglob("*.clues")} == sent
    answering = [path.name.partition("-")[0] for path in silo.outbox.glob("*.clues")]
    assert sorted(answering) == sorted(REQUESTS), "one of each kind answers again, the last one"


def test_an_answer_is_taken_from_the_outbox(world, tmp_path):
    silo = world.silo(tmp_path)
    before = {path.name: path.read_bytes() for path in silo.outbox.glob("*.clues")}
    for kind in REQUESTS:
        request, reply = world.recorder.last("north", kind)
        assert silo.answer(request) == reply, f"{kind} is worked out again"
    assert {path.name: path.read_bytes() for path in silo.outbox.glob("*.clues")} == before


def test_a_coordinator_of_another_version_is_refused_in_one_sentence(world, tmp_path):
    silo, request = world.silo(tmp_path), world.request("hello")
    with pytest.raises(RecipeMismatchError, match=r"north: the coordinator runs clues 9\.9, and h"):
        silo.answer(replace(request, version="9.9").to_bytes())


@pytest.mark.parametrize("kind", sorted(set(REQUESTS) - {"hello"}))
def test_a_request_under_another_recipe_is_refused(world, tmp_path, kind):
    silo, request = world.silo(tmp_path), world.request(kind)
    with pytest.raises(RecipeMismatchError, match=r"north.*000000000000"):
        silo.answer(replace(request, recipe_hash="000000000000").to_bytes())


def test_a_silo_that_has_heard_no_hello_does_nothing(world, tmp_path):
    silo = world.silo(tmp_path)
    shutil.rmtree(silo.folder)
    with pytest.raises(RecipeMismatchError, match="hello first"):
        silo.answer(world.request("train").to_bytes())


def test_a_recipe_that_does_not_have_the_hash_it_claims_is_refused(world, tmp_path):
    request = world.request("hello")
    changed = merged(request.recipe, {"train": {"learning_rate": 0.5}})
    before = (world.silo(tmp_path).private / "recipe.json").read_bytes()
    with pytest.raises(RecipeMismatchError, match="hash it claims"):
        world.silo(tmp_path).answer(replace(request, recipe=changed).to_bytes())
    assert (world.silo(tmp_path).private / "recipe.json").read_bytes() == before


def test_public_rows_with_a_wrong_hash_are_refused(world, tmp_path):
    request = world.request("hello")
    name = sorted(request.public_files)[0]
    flipped = request.public_files[name].clone()
    flipped[3] ^= 1
    for files in (
        {**request.public_files, name: flipped},
        {**request.public_files, "../" + name: request.public_files[name]},
        {**request.public_files, "0" * 64 + ".jsonl": torch.zeros(3, dtype=torch.uint8)},
    ):
        with pytest.raises(DataError, match="public rows"):
            world.silo(tmp_path).answer(replace(request, public_files=files).to_bytes())


def test_public_rows_that_the_recipe_names_and_nobody_sent_are_missed_at_once(world, tmp_path):
    request = world.request("hello")
    with pytest.raises(DataError, match="left out public rows"):
        world.silo(tmp_path).answer(replace(request, public_files={}).to_bytes())


def test_a_silo_of_a_domain_that_the_recipe_does_not_know_says_so(world, tmp_path):
    silo = world.silo(tmp_path, domain="astronomy")
    with pytest.raises(DataError, match=r"north.*astronomy.*geography"):
        silo.answer(world.request("hello").to_bytes())


def test_a_silo_with_another_base_model_is_refused_and_one_with_a_copy_is_not(world, tmp_path):
    copy = shutil.copytree(world.model, tmp_path / "copy")
    hello = world.request("hello")
    assert reply_of(world.silo(tmp_path, model=str(copy)), hello).n_rows == 20
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    other = world.silo(tmp_path, model=str(copy))
    for stored in other.outbox.glob("hello-*"):
        stored.unlink()
    with pytest.raises(RecipeMismatchError, match="base model"):
        other.answer(hello.to_bytes())


def test_a_threshold_that_keeps_fewer_rows_than_the_silo_demands_is_refused(world, tmp_path):
    n_kept = len(world.silo(tmp_path).select(world.threshold()).kept)
    assert 1 < n_kept < N_ROWS
    picky = world.silo(tmp_path, min_kept=n_kept + 1)
    with pytest.raises(DegenerateSelectionError, match=rf"north.*only {n_kept} rows"):
        picky.answer(world.request("select").to_bytes())
    assert world.silo(tmp_path, min_kept=n_kept).select(world.threshold()).kept


@pytest.mark.parametrize(("value", "what"), [(1e9, "no row"), (-1e9, "every row")])
def test_a_threshold_that_decides_nothing_is_refused_unless_allowed(world, tmp_path, value, what):
    silo, threshold = world.silo(tmp_path), replace(world.threshold(), value=value)
    silo.allow_degenerate = False
    with pytest.raises(DegenerateSelectionError, match=rf"north.*{what}"):
        silo.select(threshold)


def test_selecting_before_scoring_is_refused(world, tmp_path):
    silo = world.silo(tmp_path)
    (silo.private / "scores.parquet").unlink()
    with pytest.raises(DataError, match="no scores yet"):
        silo.select(world.threshold())


def test_fitting_kept_rows_before_selecting_is_refused(world, tmp_path):
    silo = world.silo(tmp_path)
    (silo.private / "selection.json").unlink()
    with pytest.raises(DataError, match="nothing is selected yet"):
        silo.arm_rows("clues")


def test_a_threshold_from_another_recipe_is_refused(world, tmp_path):
    silo = world.silo(tmp_path)
    other = replace(world.threshold(), recipe_hash="000000000000")
    with pytest.raises(RecipeMismatchError, match=r"north.*000000000000"):
        silo.select(other)


def test_scores_from_another_recipe_are_refused(world, tmp_path):
    silo, hello = world.silo(tmp_path), world.request("hello")
    content = json.loads((silo.private / "recipe.json").read_text())
    changed = merged(content, {"train": {"learning_rate": 0.5}, "duplicates": None})
    (silo.private / "recipe.json").write_text(json.dumps(changed))
    current = world.silo(tmp_path).space.recipe().hash
    assert current != hello.recipe_hash
    with pytest.raises(RecipeMismatchError, match=f"north.*{short(current)}"):
        silo.select(replace(world.threshold(), recipe_hash=current))


def test_a_threshold_without_units_for_the_group_of_a_silo_is_refused(world, tmp_path):
    units = {g: u for g, u in world.threshold().units.items() if "geography" not in g}
    assert units
    with pytest.raises(RecipeMismatchError, match=r"north.*domain geography"):
        world.silo(tmp_path).select(replace(world.threshold(), units=units))


def as_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


WRITERS = {
    ".jsonl": write_rows,
    ".jsonl.gz": lambda path, rows: path.write_bytes(
        gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    ),
    ".json": lambda path, rows: path.write_text(json.dumps(rows)),
    ".csv": as_csv,
    ".parquet": lambda path, rows: pq.write_table(pa.Table.from_pylist(rows), path),
}


@pytest.mark.parametrize("suffix", sorted(WRITERS))
def test_kept_and_dropped_files_are_in_the_format_of_the_input_and_hold_every_row(
    world, tmp_path, suffix
):
    rows = [json.loads(line) for line in world.data.read_text().splitlines()]
    path = tmp_path / f"north{suffix}"
    WRITERS[suffix](path, rows)
    silo = world.silo(tmp_path, data=str(path))
    shutil.rmtree(silo.outbox)
    for old in silo.private.glob("*.jsonl"):
        old.unlink()
    silo.answer(world.request("select").to_bytes())
    files = ("kept", "dropped", "unscored")
    parts = {name: read_rows(silo.private / f"{name}{suffix}") for name in files}
    assert [p.name for p in silo.private.glob(f"*{suffix}")], f"nothing is written as {suffix}"
    found = {}
    for name, part in parts.items():
        assert part.table.columns == tuple(rows[0]), "a column is lost, renamed or moved"
        found[name] = list(part.table.read(part.table.columns))
    order = {row["key"]: n for n, row in enumerate(rows)}
    for part in found.values():
        assert part == sorted(part, key=lambda row: order[row["key"]]), "rows are out of order"
    together = sorted(
        (row for part in found.values() for row in part), key=lambda r: order[r["key"]]
    )
    assert together == rows, "a row is lost, doubled or changed"
    assert found["kept"], "this test needs kept rows"


def test_lines_of_a_jsonl_file_keep_their_bytes(world):
    private = world.run.run_dir.silo("north") / "private"
    lines = world.data.read_bytes().splitlines(keepends=True)
    parts = [
        (private / f"{name}.jsonl").read_bytes().splitlines(keepends=True)
        for name in ("kept", "dropped", "unscored")
    ]
    assert sorted(lines) == sorted(line for part in parts for line in part)
    assert len(parts[2]) == N_LONG, "a row that nothing speaks against is among the dropped"


def test_decisions_that_are_not_a_line_for_each_row_are_refused_by_name(world):
    space = world.run.silos["north"].space
    path = space.private / "decisions.csv"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    other = whole.replace(b"reason", b"motive", 1)
    try:
        for odd in (b"", b"".join(lines[:-1]), whole + lines[-1], other):
            path.write_bytes(odd)
            with pytest.raises(DataError, match=r"decisions\.csv: damaged \(not a line for each"):
                list(each_decision(space))
        path.unlink()
        with pytest.raises(DataError, match=r"decisions\.csv: cannot be read \(No such file"):
            list(each_decision(space))
    finally:
        path.write_bytes(whole)
    assert len(list(each_decision(space))) == space.rows().n_rows


def test_decisions_name_every_row_with_a_decision_and_a_reason(world):
    private = world.run.run_dir.silo("north") / "private"
    with (private / "decisions.csv").open(newline="") as file:
        decisions = list(csv.DictReader(file))
    samples = read_rows(world.data).samples
    assert [int(d["row"]) for d in decisions] == list(range(len(samples)))
    assert [int(d["number"]) for d in decisions] == list(range(1, len(samples) + 1))
    table = ScoreTable.read(private / "scores.parquet")
    joined = {int(d["row"]): d["id"] for d in decisions}
    assert [joined[row] for row in table.row.tolist()] == list(table.id), "a join is off by one"
    assert [d["id"] for d in decisions] == [s.id for s in samples]
    kept = {int(d["row"]) for d in decisions if d["kept"] == "1"}
    assert sorted(kept) == json.loads((private / "selection.json").read_text())["kept"]
    value = world.threshold().value
    for decision in decisions[:-N_LONG]:
        assert (float(decision["score"]) >= value) == (decision["kept"] == "1")
        below = f"score {float(decision['score']):.4g} is"
        words = {"0": "text: loss|another question|something else than the checked rows", "1": "^"}
        assert re.search(f"({words[decision['kept']]}).*{below}", decision["reason"])
        assert (decision["file"], decision["why"]) == (
            ("kept" if decision["kept"] == "1" else "dropped"),
            "score",
        )
    long = decisions[-1]
    assert (long["score"], long["kept"], long["file"]) == ("", "0", "unscored")
    assert "longer than 384 tokens" in long["reason"]


def test_an_unlabelled_silo_cannot_take_part_in_the_oracle_arm(world, tmp_path):
    silo = world.silo(tmp_path, labels=None)
    request = replace(world.request("fit"), arm="oracle")
    with pytest.raises(DataError, match=r"north.*oracle needs labels"):
        silo.answer(request.to_bytes())


def test_a_column_of_labels_that_is_not_there_is_named(world, tmp_path):
    silo = world.silo(tmp_path, labels="dirt")
    for ask in (lambda: silo.arm_rows("oracle"), silo.diagnostics):
        with pytest.raises(DataError, match="no column dirt"):
            ask()


def test_an_arm_that_does_not_exist_is_refused(world, tmp_path):
    request: FitRequest = replace(world.request("fit"), arm="best")
    with pytest.raises(DataError, match=r"north: arm 'best': there is no such arm"):
        world.silo(tmp_path).answer(request.to_bytes())


def test_every_arm_gets_the_rows_it_is_named_after(world, tmp_path):
    silo = world.silo(tmp_path)
    rows = {arm: silo.arm_rows(arm) for arm in ("mixed", "random", "clues", "oracle")}
    labels = [json.loads(line)["damage"] for line in world.data.read_text().splitlines()]
    kept = json.loads((silo.private / "selection.json").read_text())["kept"]
    assert [r.row for r in rows["mixed"]] == list(range(N_ROWS)), "mixed must be all that fit"
    assert [r.row for r in rows["clues"]] == kept
    assert len(rows["random"]) == len(kept), "random must have the budget of clues"
    assert [r.row for r in rows["random"]] != kept
    clean = [n for n, label in enumerate(labels[:N_ROWS]) if not label]
    assert [r.row for r in rows["oracle"]] == clean
    again = [r.row for r in world.silo(tmp_path).arm_rows("random")]
    assert again == [r.row for r in rows["random"]]


def test_diagnostics_stay_at_home_unless_the_silo_shares_them(world, tmp_path):
    request: EvaluateRequest = world.request("evaluate")
    assert reply_of(world.silo(tmp_path), request).diagnostics["rows"] == N_ROWS + N_LONG
    closed = world.silo(tmp_path, share_diagnostics=False)
    shared = reply_of(closed, request).diagnostics
    assert shared == {}, "a stored answer from before the silo stopped sharing was sent again"


def test_diagnostics_of_an_unlabelled_silo_are_counts_alone(world, tmp_path):
    silo = world.silo(tmp_path, labels=None)
    # A silo that shares diagnostics shares rounded bands of its scores too.
    assert set(silo.diagnostics()) == {"rows", "kept", "threshold", "score_bands"}


def test_counts_in_messages_are_rounded(world, tmp_path):
    silo = world.silo(tmp_path)
    replies = {
        kind: from_bytes(world.recorder.last("north", kind)[1], allowed=REPLIES, sender="north")
        for kind in REQUESTS
    }
    n_kept = len(json.loads((silo.private / "selection.json").read_text())["kept"])
    assert replies["hello"].n_rows == round_count(N_ROWS) == 20
    assert replies["train"].weight == 20
    assert replies["select"].n_kept == round_count(n_kept)
    assert replies["fit"].weight == round_count(N_ROWS // 2), "the last arm is the oracle"


def test_the_data_token_follows_the_text_and_is_keyed(world, tmp_path):
    token = world.silo(tmp_path).space.data_token()
    moved = shutil.copy(world.data, tmp_path / "moved.jsonl")
    assert world.silo(tmp_path, data=str(moved)).space.data_token() == token
    lines = world.data.read_text().splitlines(keepends=True)
    changed = tmp_path / "changed.jsonl"
    for text in (
        "".join(lines[1:]),
        "".join([lines[1], lines[0], *lines[2:]]),
        "".join([lines[0].replace('"output": "', '"output": "x', 1), *lines[1:]]),
    ):
        changed.write_text(text)
        found = world.silo(tmp_path, data=str(changed)).space.data_token()
        assert found != token, "changed rows would get the old scores"
    # As a new folder would be.
    (tmp_path / "silo/private/data.key").unlink()
    shutil.rmtree(tmp_path / "silo/outbox")
    assert world.silo(tmp_path).space.data_token() != token, "equal rows must not show as equal"


def test_changed_rows_are_not_answered_from_the_outbox(world, tmp_path):
    lines = world.data.read_text().splitlines(keepends=True)
    changed = tmp_path / "changed.jsonl"
    changed.write_text("".join(lines[: len(lines) // 2]))
    silo, hello = world.silo(tmp_path, data=str(changed)), world.request("hello")
    old = from_bytes(world.recorder.last("north", "hello")[1], allowed=REPLIES, sender="north")
    new = reply_of(silo, hello)
    assert new.data_token != old.data_token
    assert new.n_rows == round_count(len(lines) // 2)


def test_what_is_no_message_leaves_no_trace_and_no_reply(world, tmp_path):
    silo = world.silo(tmp_path)
    before = sorted(p.name for p in silo.outbox.iterdir())
    for data in (b"", b"\0" * 100, world.recorder.last("north", "hello")[1]):
        with pytest.raises(CluesError, match="coordinator"):
            silo.answer(data)
    assert sorted(p.name for p in silo.outbox.iterdir()) == before


def test_a_silo_whose_model_answers_otherwise_does_not_score(world, tmp_path) -> None:
    data, _ = world.recorder.last("north", "score")
    request = from_bytes(data, allowed=REQUESTS, sender="coordinator")
    assert isinstance(request, ScoreRequest)
    assert len(request.probe_losses) == 2
    silo = world.silo(tmp_path)
    other = replace(request, probe_losses=[loss + 0.1 for loss in request.probe_losses])
    with pytest.raises(RecipeMismatchError, match="The base models differ"):
        silo.answer(other.to_bytes())
    with pytest.raises(DataError, match="do not fit together"):
        silo.answer(replace(request, probe_losses=[]).to_bytes())
    assert silo.answer(data)
