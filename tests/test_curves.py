"""A tracker of a silo's choice is told losses and counts, and nothing else, and only where it is asked for."""

import logging
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import pytest
import yaml
from federation_helpers import run_micro, write_micro

from clues.config import SiloSettings, TrainSettings
from clues.errors import ConfigError, ExtraError
from clues.silo.curves import OPENERS, Curve, reported

TOLD = {"loss", "learning_rate", "rows"}


class Fake:
    """Stands in for wandb: keeps what it is told, by the name of the run."""

    def __init__(self) -> None:
        self.begun: list[dict] = []
        self.told: dict[str, list[tuple[int, dict]]] = {}
        self.ended = 0

    def init(self, **how):
        self.begun.append(how)
        log = self.told.setdefault(how["name"], [])
        return SimpleNamespace(
            log=lambda values, step: log.append((step, values)), finish=self._finish
        )

    def _finish(self):
        self.ended += 1


def put(monkeypatch, name: str, **parts) -> None:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(parts)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def wandb(monkeypatch):
    fake = Fake()
    settings = lambda **how: how  # noqa: E731
    put(monkeypatch, "wandb", init=fake.init, Settings=settings, Error=RuntimeError)
    return fake


ALONE = {"evaluate": {"arms": ["clues"]}}


@pytest.mark.slow
def test_a_run_tells_losses_and_counts_of_its_trainings(wandb, micro_model, tmp_path) -> None:
    changes = {**ALONE, "compute": {"report_to": "wandb"}}
    run_micro(write_micro(tmp_path, micro_model, changes=changes), tmp_path / "run")
    names = {name.rpartition(" ")[0] for name in wandb.told}
    assert names == {"north warm-up", "south warm-up", "north clues", "south clues"}
    for name, told in wandb.told.items():
        assert {key for _, values in told for key in values} == TOLD, name
        assert [step for step, _ in told] == list(range(1, len(told) + 1)), "rounds are one curve"
        assert all(type(value) is float for _, values in told for value in values.values())
        assert all(0 < values["loss"] < 20 for _, values in told)
    assert wandb.ended == len(wandb.begun), "a run is left open"
    for how in wandb.begun:
        assert how.keys() == {"project", "name", "id", "resume", "dir", "settings"}
        assert how["settings"]["x_disable_meta"], "the machine's name and paths would be sent"
        assert str(tmp_path / "run" / "silos") in how["dir"]
        assert "private" in how["dir"]


@pytest.mark.slow
def test_a_silo_reports_where_its_own_file_says_so(wandb, micro_model, tmp_path) -> None:
    path = write_micro(tmp_path, micro_model, changes=ALONE)
    content = yaml.safe_load(path.read_text())
    content["silos"][1]["compute"] = {"report_to": "wandb"}
    path.write_text(yaml.safe_dump(content))
    run_micro(path, tmp_path / "run")
    assert {name.split()[0] for name in wandb.told} == {"south"}


def test_nobody_is_told_by_default(wandb, tmp_path) -> None:
    assert SiloSettings(name="a", data="a", domain="d").compute is None
    with reported("none", Curve("a", tmp_path), n_rows=3) as on_loss:
        assert on_loss is None
    assert not wandb.begun
    assert not list(tmp_path.iterdir())


def test_no_recipe_has_it() -> None:
    with pytest.raises(ValueError, match=r"set compute\.report_to"):
        TrainSettings.model_validate({"report_to": "wandb"})
    TrainSettings.model_validate({"report_to": "none"})


def test_losses_without_noise_do_not_go_with_privacy() -> None:
    content = {"name": "a", "data": "a.jsonl", "domain": "law"}
    content |= {"privacy": {"epsilon": 8.0, "delta": 1e-5}, "compute": {"report_to": "mlflow"}}
    with pytest.raises(ValueError, match="which privacy covers with noise"):
        SiloSettings.model_validate(content)


@pytest.mark.parametrize("kind", OPENERS)
def test_a_library_that_is_missing_is_one_line_before_any_work(
    kind, micro_model, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("clues.extras.find_spec", lambda name: None)
    path = write_micro(tmp_path, micro_model, changes={**ALONE, "compute": {"report_to": kind}})
    said = rf"silo north: compute\.report_to: {kind}: not installed: {kind}\. .*'\.\[{kind}\]'"
    with pytest.raises(ExtraError, match=said):
        run_micro(path, tmp_path / "run")
    assert not list((tmp_path / "run").glob("silos/*/private/curves"))


def test_a_tracker_that_does_not_begin_is_refused_with_its_reason(
    wandb, tmp_path, monkeypatch
) -> None:
    def refuse(**_):
        raise RuntimeError("nobody is logged in\nat length")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with (
        pytest.raises(ConfigError, match=r"wandb does not begin \(nobody is logged in\)"),
        reported("wandb", Curve("a", tmp_path), n_rows=3),
    ):
        pass


def test_trackio_keeps_to_itself_and_says_nothing_among_our_answers(
    monkeypatch, tmp_path, capsys
) -> None:
    fake = Fake()

    def init(**how):
        sys.stdout.write("a greeting")
        return fake.init(**how)

    put(monkeypatch, "trackio", init=init, finish=lambda: sys.stdout.write("a farewell"))
    with reported("trackio", Curve("a", tmp_path), n_rows=3) as on_loss:
        on_loss(1, 2.0, 0.1)
    assert fake.told == {"a": [(1, {"loss": 2.0, "learning_rate": 0.1, "rows": 3.0})]}
    assert not {"space_id", "server_url", "config"} & fake.begun[0].keys()
    assert not fake.begun[0]["auto_log_cpu"]
    assert capsys.readouterr().out == ""


class Client:
    """Stands in for MLflow's client; its server goes away after some numbers."""

    def __init__(self, uri, store, room=99):
        self.uri, self.store, self.room = uri, store, room

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id="7") if self.store["experiments"] else None

    def create_experiment(self, name):
        self.store["experiments"].append(name)
        return "7"

    def search_runs(self, experiments, where, max_results):
        key = where.split("'")[1]
        same = [n for n, tags in enumerate(self.store["runs"]) if tags["clues"] == key]
        return [SimpleNamespace(info=SimpleNamespace(run_id=str(n))) for n in same]

    def create_run(self, experiment, run_name, tags):
        self.store["runs"].append(tags)
        return SimpleNamespace(info=SimpleNamespace(run_id=str(len(self.store["runs"]) - 1)))

    def log_metric(self, run, name, value, step):
        if len(self.store["told"]) >= self.room:
            raise ConnectionError("gone")
        self.store["told"].append((run, name, value, step))

    def set_terminated(self, run):
        self.store["ended"].append(run)


@pytest.fixture
def mlflow(monkeypatch):
    store = {"experiments": [], "runs": [], "told": [], "ended": [], "uris": [], "room": 99}

    def client(uri):
        store["uris"].append(uri)
        return Client(uri, store, store["room"])

    put(monkeypatch, "mlflow", MlflowClient=client)
    put(monkeypatch, "mlflow.exceptions", MlflowException=ConnectionError)
    return store


def test_mlflow_keeps_a_curve_over_its_rounds_in_the_silos_folder(
    mlflow, tmp_path, monkeypatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for first in (1, 3):
        with reported("mlflow", Curve("a", tmp_path / "curves"), n_rows=3) as on_loss:
            on_loss(first, 2.0, 0.1)
            on_loss(first + 1, 1.0, 0.1)
    assert len(mlflow["runs"]) == 1, "a round is a run of its own"
    assert [step for _, name, _, step in mlflow["told"] if name == "loss"] == [1, 2, 3, 4]
    assert {name for _, name, _, _ in mlflow["told"]} == TOLD
    assert mlflow["uris"] == [f"sqlite:///{tmp_path / 'curves' / 'mlflow.db'}"] * 2
    assert mlflow["ended"] == ["0", "0"]


def test_a_tracker_that_goes_away_costs_no_training(mlflow, tmp_path, caplog) -> None:
    mlflow["room"] = 4
    with (
        caplog.at_level(logging.WARNING, "clues"),
        reported("mlflow", Curve("a", tmp_path), n_rows=3) as on_loss,
    ):
        for step in range(5):
            on_loss(step, 1.0, 0.1)
    assert len(mlflow["told"]) == 4
    assert [r.getMessage() for r in caplog.records] == [
        "mlflow takes no more of a (gone); the training goes on."
    ]


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="the extra `tensorboard` is not there")
def test_tensorboard_reads_what_was_written(tmp_path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with reported("tensorboard", Curve("a", tmp_path), n_rows=3) as on_loss:
        on_loss(1, 2.0, 0.5)
        on_loss(2, 1.5, 0.25)
    found = EventAccumulator(str(tmp_path / "tensorboard" / "a")).Reload()
    assert set(found.Tags()["scalars"]) == TOLD
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [(1, 2.0), (2, 1.5)]
