"""A silo lets one threshold a recipe at its rows, few in all, and waits for a person if told to."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from federation_helpers import Recorder, files_of, open_micro, tiny_model, write_micro

from clues.cli import program as cli
from clues.errors import ApprovalError, DataError, DegenerateSelectionError, RecipeMismatchError
from clues.pipeline import ModelCache, run_until
from clues.progress import Silent
from clues.rundir import read_record, write_record
from clues.silo.permission import approve, is_approved
from clues.silo.silo import Silo
from clues.wall.ledger import verify
from clues.wall.messages import REQUESTS, Refusal, from_bytes

SECRET = "Qvz-marker-"


class World:
    """A run that has selected, every private row of which carries a marker."""

    def __init__(self, folder: Path) -> None:
        self.config = write_micro(folder / "input", tiny_model(folder / "model"))
        for path in (folder / "input" / "silos").glob("*.jsonl"):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            marked = [{**row, "output": SECRET + row["output"]} for row in rows]
            path.write_text("".join(json.dumps(row) + "\n" for row in marked))
        self.root = folder / "run"
        self.run = open_micro(self.config, self.root)
        self.recorder = Recorder(self.run)
        run_until(self.run, "select")
        data, self.reply = self.recorder.last("north", "select")
        self.request = from_bytes(data, allowed=REQUESTS, sender="coordinator")
        self.cache = ModelCache()

    def silo(self, tmp_path: Path, **changes) -> Silo:
        folder = tmp_path / "north"
        if not folder.exists():
            shutil.copytree(self.root / "silos" / "north", folder)
        settings = self.run.silos["north"].settings.model_copy(update=changes)
        return Silo(settings, folder, load_model=self.cache.load, progress=Silent())


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def moved(request, by=0.01):
    threshold = {**request.threshold, "value": request.threshold["value"] + by}
    return replace(request, threshold=threshold)


def forget_answers(silo: Silo) -> None:
    shutil.rmtree(silo.outbox)


def test_a_second_threshold_under_one_recipe_is_refused_by_any_process(world, tmp_path):
    for _ in range(2):
        with pytest.raises(RecipeMismatchError, match=r"north.*already decided"):
            world.silo(tmp_path).answer(moved(world.request).to_bytes())
    silo = world.silo(tmp_path)
    forget_answers(silo)
    with pytest.raises(RecipeMismatchError, match="already decided"):
        silo.answer(moved(world.request, 1e-9).to_bytes())
    assert silo.answer(world.request.to_bytes()) == world.reply, "the same request is no second one"


def test_a_refused_threshold_has_been_tried_too(world, tmp_path):
    silo = world.silo(tmp_path)
    (silo.private / "thresholds.json").unlink()
    with pytest.raises(DegenerateSelectionError):
        silo.answer(moved(world.request, 1e9).to_bytes())
    with pytest.raises(RecipeMismatchError, match="already decided"):
        silo.answer(world.request.to_bytes())


def test_rows_meet_no_more_recipes_than_the_silo_allows(world, tmp_path):
    silo = world.silo(tmp_path, max_selections=2)
    path = silo.private / "thresholds.json"
    [(token, met)] = read_record(path, advice="").items()
    others = {f"recipe{k}": "x" for k in range(2)}
    write_record(path, {token: others})
    forget_answers(silo)
    with pytest.raises(DataError, match=r"north: 2 recipes .* max_selections is 2"):
        silo.answer(world.request.to_bytes())
    write_record(path, {"other rows": others, token: {}})
    silo.answer(world.request.to_bytes())
    stored = read_record(path, advice="")
    assert stored["other rows"] == others, "what other rows have met was forgotten"
    assert stored[token] == met


def test_without_approval_there_is_a_refusal_that_the_outbox_does_not_keep(world, tmp_path):
    silo = world.silo(tmp_path, approval=True)
    forget_answers(silo)
    reply = silo.answer(world.request.to_bytes())
    refusal = from_bytes(reply, allowed={Refusal.kind: Refusal}, sender="north")
    assert refusal == Refusal(recipe_hash=world.request.recipe_hash)
    assert not list(silo.outbox.glob("select-*"))
    assert approve(silo.folder) == ["north"]
    assert silo.answer(world.request.to_bytes()) == world.reply


def test_an_approval_is_for_the_scores_that_were_looked_at(world, tmp_path):
    silo = world.silo(tmp_path, approval=True)
    approve(silo.folder)
    assert is_approved(silo.private)
    with (silo.private / "scores.parquet").open("ab") as file:
        file.write(b"x")
    assert not is_approved(silo.private), "other scores were approved unseen"


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
    run = open_micro(config, root)
    run_until(run, "select")
    assert (stages / "score.json").stat().st_mtime_ns == before
    outside = [p for p in files_of(root) if "private" not in p.relative_to(root).parts]
    assert not [p for p in outside if SECRET.encode() in p.read_bytes()], "row text left the silo"
    assert SECRET not in "".join(capfd.readouterr())
    kinds = [entry.kind for entry in verify(root / "ledger.jsonl")]
    assert "refusal" in kinds


def test_no_refusal_shows_a_row(world, tmp_path):
    silo = world.silo(tmp_path, max_selections=1, min_kept=1000)
    errors = []
    for request in (moved(world.request), world.request):
        shutil.rmtree(silo.outbox, ignore_errors=True)
        with pytest.raises((RecipeMismatchError, DataError)) as raised:
            silo.answer(request.to_bytes())
        errors.append(str(raised.value))
    assert len(errors) == 2
    assert not [e for e in errors if SECRET in e]
