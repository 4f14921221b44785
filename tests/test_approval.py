"""With `approval: true` a person approves one selection: that threshold, on these scores."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from federation_helpers import Recorder, files_of, open_micro, tiny_model, write_micro

from clues.cli import program as cli
from clues.errors import ApprovalError, DataError, UsageError
from clues.pipeline import ModelCache, run_until
from clues.progress import Silent
from clues.silo.approval import approve, is_approved
from clues.silo.questions import FILE
from clues.silo.silo import Silo
from clues.wall.ledger import verify
from clues.wall.messages import REPLIES, REQUESTS, Refusal, from_bytes

SECRET = "Qvz-marker-"


class World:
    """A run that has scored, every private row of which carries a marker."""

    def __init__(self, folder: Path) -> None:
        self.config = write_micro(folder / "input", tiny_model(folder / "model"))
        for path in (folder / "input" / "silos").glob("*.jsonl"):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            marked = [{**row, "output": SECRET + row["output"]} for row in rows]
            path.write_text("".join(json.dumps(row) + "\n" for row in marked))
        self.root = folder / "run"
        self.run = open_micro(self.config, self.root)
        self.recorder = Recorder(self.run)
        run_until(self.run)
        self.cache = ModelCache()

    def last(self, kind: str):
        data, _ = self.recorder.last("north", kind)
        return from_bytes(data, allowed=REQUESTS, sender="coordinator")

    def silo(self, tmp_path: Path) -> Silo:
        """Silo north before it has selected."""
        folder = tmp_path / "north"
        if not folder.exists():
            shutil.copytree(self.root / "silos" / "north", folder)
            shutil.rmtree(folder / "outbox")
            (folder / "private" / FILE).unlink()
            (folder / "private" / "selection.json").unlink()
        settings = self.run.silos["north"].settings.model_copy(update={"approval": True})
        return Silo(settings, folder, load_model=self.cache.load, progress=Silent())


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def moved(request, by):
    threshold = {**request.threshold, "value": request.threshold["value"] + by}
    return replace(request, threshold=threshold)


def ask(silo, request):
    return from_bytes(
        silo.answer(request.to_bytes()), allowed={**REPLIES, Refusal.kind: Refusal}, sender="north"
    )


@pytest.mark.walk
def test_a_selection_waits_for_a_person_who_is_told_what_it_keeps(world, tmp_path):
    silo, request = world.silo(tmp_path), world.last("select")
    assert isinstance(ask(silo, request), Refusal)
    assert not list(silo.outbox.glob("select-*")), "the outbox kept a refusal"
    assert not (silo.private / "selection.json").exists()
    [approved] = approve(silo.folder)
    assert (approved.silo, approved.selection.value) == ("north", request.threshold["value"])
    ask(silo, request)
    kept = json.loads((silo.private / "selection.json").read_text())["kept"]
    assert approved.selection.kept == len(kept)
    assert approved.selection.rows == len(silo.space.rows().samples)


def test_an_approval_of_one_threshold_is_none_of_another(world, tmp_path):
    silo, request = world.silo(tmp_path), world.last("select")
    ask(silo, request)
    approve(silo.folder)
    assert isinstance(ask(silo, moved(request, 0.3)), Refusal)
    assert not (silo.private / "selection.json").exists()
    # What waits now is the second one, and only that would be approved.
    [approved] = approve(silo.folder)
    assert approved.selection.value == request.threshold["value"] + 0.3
    assert isinstance(ask(silo, request), Refusal)


def test_what_comes_while_a_person_looks_is_not_approved(world, tmp_path):
    silo, request = world.silo(tmp_path), world.last("select")
    ask(silo, request)
    shown = []

    def looks(waiting):
        shown.extend(waiting)
        ask(silo, moved(request, 0.3))
        return True

    [approved] = approve(silo.folder, agreed=looks)
    assert [approved] == shown
    assert isinstance(ask(silo, moved(request, 0.3)), Refusal)
    assert not isinstance(ask(silo, request), Refusal)


def test_who_does_not_agree_has_approved_nothing(world, tmp_path):
    silo, request = world.silo(tmp_path), world.last("select")
    ask(silo, request)
    with pytest.raises(UsageError, match="Nothing was approved"):
        approve(silo.folder, agreed=lambda _: False)
    assert isinstance(ask(silo, request), Refusal)


def test_a_threshold_that_keeps_nothing_waits_like_any_other(world, tmp_path):
    silo, request = world.silo(tmp_path), world.last("select")
    assert isinstance(ask(silo, moved(request, 1e9)), Refusal)
    [approved] = approve(silo.folder)
    assert approved.selection.kept is None
    assert "keeps no row" in approved.selection.refused


def test_an_approval_is_for_the_scores_that_were_looked_at(world, tmp_path):
    silo, request = world.silo(tmp_path), world.last("select")
    ask(silo, request)
    approve(silo.folder)
    assert is_approved(silo.private, request)
    with (silo.private / "scores.parquet").open("ab") as file:
        file.write(b"x")
    assert not is_approved(silo.private, request), "other scores were approved unseen"
    with pytest.raises(UsageError, match="scores or overrides have changed"):
        approve(silo.folder)


def test_nothing_to_approve_is_an_error(world, tmp_path):
    with pytest.raises(UsageError, match="no selection waits"):
        approve(world.silo(tmp_path).folder)


@pytest.mark.parametrize("arm", ["mixed", "random", "clues", "oracle"])
def test_no_joint_model_trains_before_the_approval(world, tmp_path, arm):
    silo = world.silo(tmp_path)
    ask(silo, world.last("select"))
    with pytest.raises(DataError, match="nothing is selected yet"):
        silo.answer(replace(world.last("fit"), arm=arm, round=0).to_bytes())


@pytest.mark.parametrize("name", ["waiting.json", "approval.json"])
@pytest.mark.parametrize("content", ["", "[]", "null", "[" * 5000])
def test_damaged_files_say_what_to_do(world, tmp_path, name, content):
    silo, request = world.silo(tmp_path), world.last("select")
    ask(silo, request)
    approve(silo.folder)
    (silo.private / name).write_text(content)
    with pytest.raises((DataError, Exception)) as raised:
        approve(silo.folder) if name == "waiting.json" else ask(silo, request)
    assert name in str(raised.value)


@pytest.mark.slow
def test_a_run_waits_for_approval_and_goes_on_where_it_stopped(world, tmp_path, capfd):
    config = shutil.copytree(world.config.parent, tmp_path / "input") / "clues.yaml"
    content = config.read_text().replace("min_kept: 1", "min_kept: 1\n  approval: true")
    config.write_text(content)
    root = tmp_path / "run"
    with pytest.raises(ApprovalError, match=r"north, south waits for .*clues approve"):
        run_until(open_micro(config, root), "select")
    assert not (root / "coordinator" / "absences.json").exists(), "waiting is no absence"
    stages = root / "coordinator" / "stages"
    before = (stages / "score.json").stat().st_mtime_ns
    monkey = pytest.MonkeyPatch()
    monkey.setattr("sys.argv", ["clues", "approve", str(root)])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    monkey.undo()
    shown = capfd.readouterr()
    assert "north: approved. Threshold" in shown.out
    assert "of 24 rows" in shown.out
    run = open_micro(config, root)
    run_until(run, "select")
    assert (stages / "score.json").stat().st_mtime_ns == before
    outside = [p for p in files_of(root) if "private" not in p.relative_to(root).parts]
    assert not [p for p in outside if SECRET.encode() in p.read_bytes()], "row text left the silo"
    assert SECRET not in "".join([*shown, *capfd.readouterr()])
    kinds = [entry.kind for entry in verify(root / "ledger.jsonl")]
    assert "refusal" in kinds
