"""What a silo has answered is not forgotten: files deleted, copied back, linked; clocks; coordinators."""

import datetime
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from federation_helpers import (
    LastAsked,
    Recorder,
    files_of,
    merged,
    open_micro,
    tiny_model,
    write_micro,
)

from clues.config import PrivacySettings, SiloSettings
from clues.errors import CluesError, DataError
from clues.pipeline import ModelCache, run_until
from clues.progress import Silent
from clues.silo.budget import FILE as SPENT
from clues.silo.budget import Budget
from clues.silo.gate import Gate, KeptInside
from clues.silo.questions import FILE, Questions
from clues.silo.silo import Silo
from clues.wall.messages import REPLIES, REQUESTS, EvaluateRequest, Failure, from_bytes

KEY = "data.key"


class World(LastAsked):
    """A run in one process, whose requests a silo on a machine of its own is asked."""

    def __init__(self, folder: Path) -> None:
        config = write_micro(folder / "input", tiny_model(folder / "model"), silos=("north",))
        self.run = open_micro(config, folder / "run")
        self.recorder = Recorder(self.run)
        run_until(self.run, "select")
        self.cache = ModelCache()

    def gate(self, folder: Path, **changes) -> Gate:
        """Silo north as `clues join` opens it, in a folder of its own."""
        content = merged(self.run.silos["north"].settings.model_dump(by_alias=True), changes)
        settings = SiloSettings.model_validate(content)
        load = self.cache.load
        return Gate(
            "north",
            folder,
            lambda: Silo(settings, folder, load_model=load, progress=Silent()).answer,
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def ask(gate: Gate, request):
    allowed = {**REPLIES, Failure.kind: Failure}
    return from_bytes(gate.answer(request.to_bytes()), allowed=allowed, sender="north")


@pytest.fixture(scope="module")
def asked(world, tmp_path_factory) -> Path:
    """The folder of a silo that has answered three kinds of questions."""
    folder = tmp_path_factory.mktemp("asked") / "north"
    gate = world.gate(folder)
    for kind in ("hello", "train", "score"):
        assert ask(gate, world.request(kind)).kind == f"{kind}-reply"
    return folder


def deleted(path: Path) -> None:
    path.unlink()


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


LOSSES: dict[str, Callable[[Path], None]] = {
    "deleted": deleted,
    "a link that leads nowhere": dangling,
    "emptied": emptied,
    "a folder": a_folder,
}


@pytest.mark.parametrize("how", LOSSES)
@pytest.mark.parametrize("name", [FILE, KEY])
def test_a_silo_that_has_lost_its_count_or_its_key_answers_nothing(
    world, asked, tmp_path, name, how
):
    """The count is kept by rows, and the rows are known by a token that the key makes."""
    folder = shutil.copytree(asked, tmp_path / "north")
    LOSSES[how](folder / "private" / name)
    with pytest.raises(CluesError, match=name.replace(".", r"\.")):
        answer_or_reason(world, folder)


def answer_or_reason(world, folder: Path) -> None:
    """Ask one question more; what the silo keeps inside is raised."""
    # Where the ledger shows it, the gate does not open; else the first question fails inside.
    if (reply := ask(world.gate(folder), world.hello(seed=77))).kind == "failure":
        said = (folder / "private" / "errors.log").read_text()
        assert reply.reference in said
        raise DataError(said)


def test_without_the_ledger_answers_in_the_outbox_show_that_the_count_is_gone(
    world, asked, tmp_path
):
    folder = shutil.copytree(asked, tmp_path / "north")
    (folder / "ledger.jsonl").unlink()
    (folder / "private" / FILE).unlink()
    assert ask(world.gate(folder), world.request("hello")).kind == "failure"
    assert "answers have left this folder" in (folder / "private" / "errors.log").read_text()


def test_an_older_copy_of_the_count_is_found(world, asked, tmp_path):
    folder = shutil.copytree(asked, tmp_path / "north")
    older = (folder / "private" / FILE).read_bytes()
    gate = world.gate(folder)
    assert ask(gate, world.request("select")).kind == "select-reply"
    del gate
    (folder / "private" / FILE).write_bytes(older)
    with pytest.raises(DataError, match="older than the ledger beside it: 1 requests"):
        world.gate(folder)


def test_a_link_in_place_of_the_count_is_replaced_and_what_it_leads_to_is_not(
    world, asked, tmp_path
):
    folder = shutil.copytree(asked, tmp_path / "north")
    path, other = folder / "private" / FILE, tmp_path / "other.json"
    shutil.copy(path, other)
    path.unlink()
    path.symlink_to(other)
    before = other.read_bytes()
    assert ask(world.gate(folder), world.request("select")).kind == "select-reply"
    assert not path.is_symlink()
    assert other.read_bytes() == before


def test_a_whole_folder_that_is_copied_back_goes_on_as_it_was(world, asked, tmp_path):
    """Only the coordinator's ledger can show it, and `clues ledger OURS THEIRS --verify` does."""
    folder = shutil.copytree(asked, tmp_path / "north")
    assert ask(world.gate(folder), world.request("select")).kind == "select-reply"
    again = shutil.copytree(asked, tmp_path / "again")
    assert ask(world.gate(again), world.request("select")).kind == "select-reply"


def test_a_request_in_another_form_is_refused_before_it_is_counted(world, asked, tmp_path):
    """What is counted by its bytes must not come in two forms of the same content."""
    from test_messages import by_hand, with_checksum

    from clues.wall.container import read_header, read_text

    folder = shutil.copytree(asked, tmp_path / "north")
    before = (folder / "private" / FILE).read_bytes()
    text = read_text(read_header(world.request("select").to_bytes()))
    spaced = with_checksum(by_hand({}, json.dumps(text, indent=1)))
    gate = world.gate(folder)
    assert from_bytes(spaced, allowed=REQUESTS, sender="").kind == "select"
    reply = gate.answer(spaced)
    assert from_bytes(reply, allowed={"failure": Failure}, sender="").kind == "failure"
    assert (
        "not written as this program writes it" in (folder / "private" / "errors.log").read_text()
    )
    assert (folder / "private" / FILE).read_bytes() == before


def test_an_older_copy_of_the_privacy_budget_is_found(world, tmp_path):
    settings = world.run.silos["north"].settings.model_copy(
        update={
            "privacy": PrivacySettings(epsilon=8, delta=1e-5),
            "share_diagnostics": False,
            "labels": None,
        }
    )
    silo = Silo(settings, tmp_path, load_model=world.cache.load, progress=Silent())
    silo.private.mkdir(mode=0o700)
    Budget(silo.space).count(20, what="all", of="a")
    older = (silo.private / SPENT).read_bytes()
    Budget(silo.space).count(20, what="all", of="b")
    for damage in (
        lambda: (silo.private / SPENT).write_bytes(older),
        (silo.private / SPENT).unlink,
    ):
        damage()
        with pytest.raises(DataError, match=r"privacy\.json is missing or an older copy.* 2 were"):
            Budget(silo.space)


def test_two_coordinators_one_after_the_other_share_the_silos_budget(world, tmp_path):
    """The budget is the silo's: another run, with another recipe, finds what the first has spent."""
    first = world.gate(tmp_path / "north", max_selections=2)
    for kind in ("hello", "train"):
        ask(first, world.request(kind))
    del first
    second = world.gate(tmp_path / "north", max_selections=2)
    assert ask(second, world.hello(seed=11)).kind == "hello-reply"
    del second
    third = world.gate(tmp_path / "north", max_selections=2)
    assert ask(third, world.hello(seed=12)).kind == "failure"
    # The first goes on with what it was granted, and gets no question anew.
    assert ask(third, world.request("hello")).kind == "hello-reply"
    assert ask(third, world.request("score")).kind == "score-reply"
    bent = replace(world.request("train"), adapter={n: t + 1e-3 for n, t in first_adapter(world)})
    assert ask(third, bent).kind == "failure"
    assert "max_selections is 2" in (tmp_path / "north" / "private" / "errors.log").read_text()


def first_adapter(world):
    return world.request("train").adapter.items()


@pytest.mark.parametrize("days", [-20_000, 20_000])
def test_a_clock_that_jumps_gives_no_question_back(world, asked, tmp_path, monkeypatch, days):
    """Nothing here expires: the same answers, the same count, before 1972 and after 2080."""

    class Jumped(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime(2026, 11, 27, tzinfo=tz) + datetime.timedelta(days=days)

    monkeypatch.setattr("clues.wall.ledger.datetime", Jumped)
    monkeypatch.setattr("clues.silo.gate.datetime", Jumped)
    # No change of the clock reaches what limits are measured by.
    monkeypatch.setattr(time, "time", lambda: 86400.0 * days)
    folder = shutil.copytree(asked, tmp_path / "north")
    count = (folder / "private" / FILE).read_bytes()
    gate = world.gate(folder, max_selections=1)
    for kind in ("hello", "train", "score"):
        assert ask(gate, world.request(kind)).kind == f"{kind}-reply"
    assert ask(gate, world.hello(seed=5)).kind == "failure"
    assert (folder / "private" / FILE).read_bytes() == count
    space = Silo(
        world.run.silos["north"].settings, folder, load_model=world.cache.load, progress=Silent()
    ).space
    assert Questions(space).has_asked(world.request("hello").recipe_hash, "score")


def test_a_panic_of_a_library_stays_inside(tmp_path):
    """What Rust raises is no Exception, and would end the silo with a row's text on its terminal."""

    class Panic(BaseException):
        """As pyo3 derives it."""

    with KeptInside(tmp_path / "errors.log") as kept:
        raise Panic("zqxsecret")
    assert kept.reference
    assert "zqxsecret" in (tmp_path / "errors.log").read_text()
    for stop in (KeyboardInterrupt, SystemExit):
        with pytest.raises(stop), KeptInside(tmp_path / "errors.log"):
            raise stop


@pytest.mark.slow
def test_names_of_files_columns_and_labels_stay_inside(world, tmp_path, caplog):
    """A file without a header has a row for its column names, and a label may be a sentence."""
    marker = "zqxsecret"
    source = Path(world.run.silos["north"].settings.data)
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    data = tmp_path / f"{marker} of Mr {marker}.jsonl"
    data.write_text(
        "".join(
            json.dumps(
                {**row, f"{marker} column": marker, f"{marker} label": row["damage"] and marker}
            )
            + "\n"
            for row in rows
        )
    )
    folder = tmp_path / "north"
    gate = world.gate(folder, data=str(data), labels=f"{marker} label", share_diagnostics=True)
    replies = []
    evaluate = EvaluateRequest(
        recipe_hash=world.request("hello").recipe_hash, selection_token="", kinds=["cut"]
    )
    for kind in ("hello", "train", "score", "select"):
        replies.append(gate.answer(world.request(kind).to_bytes()))
    replies.append(gate.answer(evaluate.to_bytes()))
    told = from_bytes(replies[-1], allowed=REPLIES, sender="north")
    assert set(told.diagnostics["dropped_by_kind"]) == {"other"}
    # Once more, where every answer fails: the file has lost its columns.
    data.write_text(f'{{"{marker} is a question": "{marker}"}}\n')
    replies.append(gate.answer(world.request("hello").to_bytes()))
    assert from_bytes(replies[-1], allowed={"failure": Failure}, sender="").kind == "failure"
    outside = [p for p in files_of(folder) if "private" not in p.parts]
    assert len(outside) > 5
    assert not [p for p in outside if marker.encode() in p.read_bytes() or marker in p.name]
    assert marker.encode() not in b"".join(replies)
    assert marker not in caplog.text
