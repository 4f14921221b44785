"""Shards on a cluster: dealt out, lost, brought home. A stand-in for Ray runs the workers here."""

import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from clues.cluster import connection, scoring, worker
from clues.cluster.connection import check_answers, refuse_code
from clues.cluster.scoring import RayEngine
from clues.config import ComputeSettings, Recipe, load_config
from clues.data.batching import token_budget_of
from clues.errors import ClusterError, ConfigError, NumericsError
from clues.model.adapters import Checkpoint
from clues.scoring import job as jobs
from clues.scoring import shards
from clues.scoring.job import Job
from clues.scoring.shards import score_in_shards, scores_of
from clues.silo.curves import Piece
from clues.silo.workspace import Workspace

RECIPE = Recipe.model_validate(
    {"public": {"d": {"validation": {"v": {"path": "v"}}, "anchor": {"path": "a"}}}}
)


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Ref:
    def __init__(self, value: Any) -> None:
        self.value = value


class Ray:
    """Runs every call at once, in this process; `lose` says which of them a worker dies of."""

    exceptions = SimpleNamespace(
        RayError=RayError,
        RayTaskError=RayTaskError,
        ObjectStoreFullError=type("Full", (RayError,), {}),
        OutOfDiskError=type("NoDisk", (RayError,), {}),
    )

    def __init__(self) -> None:
        self.lose: Callable[[str, tuple[Any, ...]], bool] = lambda name, arguments: False
        self.silent, self.reason = False, "The actor died unexpectedly.\nA long story."
        self.n_hired, self.killed = 0, []

    def remote(self, kind: type) -> Any:
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: self._hire(kind)))

    def _hire(self, kind: type) -> Any:
        self.n_hired += 1
        return Actor(self, kind(), self.n_hired)

    def put(self, value: Any) -> Ref:
        return Ref(value)

    def get(self, ref: Ref) -> Any:
        if isinstance(ref.value, RayError):
            raise ref.value
        return ref.value

    def wait(self, refs: list[Ref], **_: Any) -> tuple[list[Ref], list[Ref]]:
        return ([], refs) if self.silent else (refs[:1], refs[1:])

    def kill(self, actor: Any) -> None:
        self.killed.append(actor)

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}


class Actor:
    def __init__(self, ray: Ray, inside: Any, number: int) -> None:
        self.ray, self.inside, self.number, self.dead = ray, inside, number, False

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: self._call(name, arguments))

    def _call(self, name: str, arguments: tuple[Any, ...]) -> Ref:
        if self.dead or self.ray.lose(name, (self.number, *arguments)):
            self.dead = True
            return Ref(RayError(self.ray.reason))
        try:
            return Ref(getattr(self.inside, name)(*arguments))
        except ArithmeticError as error:
            return Ref(RayTaskError(error))


@pytest.fixture
def ray(monkeypatch, make_lora) -> Ray:
    """Two rows a shard, workers with the tests' own model, and no Ray."""
    found = Ray()
    monkeypatch.setattr(scoring, "connect", lambda settings: found)
    monkeypatch.setattr(worker, "fetched", lambda ref: ref.value)
    monkeypatch.setattr(worker.LoraModel, "load", lambda *a, **k: make_lora())
    monkeypatch.setattr(worker.torch, "set_num_threads", lambda n: None)
    monkeypatch.setattr(jobs, "ROWS_PER_SHARD", 2)
    return found


@pytest.fixture
def job(make_lora, encoded_rows) -> tuple[Any, Job]:
    """A model, and seven rows with two directions: four shards."""
    model = make_lora()
    draw = torch.Generator().manual_seed(2)
    directions = [
        {n: torch.randn(p.shape, generator=draw) for n, p in model.parameters().items()}
        for _ in range(2)
    ]
    checkpoint = Checkpoint(1, 0.1, model.state(), {})
    return model, Job(list(encoded_rows), checkpoint, directions, "sgd", "side_branch")


def on_cluster(job: tuple[Any, Job], folder: Path, **how: Any) -> Any:
    settings = ComputeSettings(engine="ray", **{"workers": 2, "wait_s": 0.05, **how})
    with RayEngine(settings, RECIPE) as engine:
        return score_in_shards(*job, folder, engine=engine)


def same(a: Any, b: Any) -> bool:
    return np.array_equal(a.products, b.products) and np.array_equal(a.losses, b.losses)


def test_workers_give_the_scores_of_one_process_bit_by_bit(ray, job, tmp_path, caplog):
    alone = score_in_shards(*job, tmp_path / "alone")
    assert same(on_cluster(job, tmp_path / "ray"), alone)
    assert not caplog.records
    assert len(ray.killed) == 2, "at the end the workers go"
    ours, theirs = (
        {p.name: p.read_bytes() for p in tmp_path.glob(f"{n}/*/*")} for n in ("alone", "ray")
    )
    assert ours == theirs, "the shards' files differ"


def test_losses_are_dealt_out_like_scores(ray, job, tmp_path):
    model, whole = job
    losses = Job.of_losses(whole.rows, model.state())
    alone = score_in_shards(model, losses, tmp_path / "alone")
    assert same(on_cluster((model, losses), tmp_path / "ray"), alone)


def test_a_lost_worker_is_replaced_and_its_shards_are_done_by_others(ray, job, tmp_path, caplog):
    alone = score_in_shards(*job, tmp_path / "alone")
    lost = []

    def lose(name, arguments):
        dies = name == "score" and arguments[0] == 1 and not lost
        lost.extend([1] * dies)
        return dies

    ray.lose = lose
    assert same(on_cluster(job, tmp_path / "ray"), alone)
    assert ray.n_hired == 3
    assert "is lost (RayError); its shards go to others" in caplog.text


def test_a_shard_that_ends_every_worker_stops_the_job_and_keeps_the_rest(ray, job, tmp_path):
    bad = job[1].plan[2].tolist()
    ray.lose = lambda name, a: name == "score" and list(a[1].positions) == bad
    with pytest.raises(ClusterError, match="4 workers were lost one after the other") as raised:
        on_cluster(job, tmp_path, workers=1)
    assert "the same command goes on" in str(raised.value)
    assert len(list(tmp_path.glob("*/shard-*"))) >= 1
    ray.lose = lambda *_: False
    assert same(on_cluster(job, tmp_path), score_in_shards(*job, tmp_path / "alone"))


def test_a_worker_with_another_torch_is_refused_by_name(ray, job, tmp_path, monkeypatch, caplog):
    real, asked = worker.versions, []

    def versions():
        asked.append(1)
        return real() | ({"torch": "1.0"} if len(asked) == 1 else {})

    monkeypatch.setattr(worker, "versions", versions)
    alone = score_in_shards(*job, tmp_path / "alone")
    assert same(on_cluster(job, tmp_path / "ray"), alone), "the other worker does it"
    assert "it has torch 1.0, and this silo torch" in caplog.text
    assert worker.gethostname() in caplog.text
    asked.clear()
    with pytest.raises(ClusterError, match=r"no worker of the cluster can be used.*torch 1\.0"):
        on_cluster(job, tmp_path / "one", workers=1)


def test_a_node_that_asks_for_no_token_is_refused(ray, job, tmp_path, monkeypatch):
    monkeypatch.setenv(connection.AUTH_MODE, "token")
    real = worker.Scorer.begin
    monkeypatch.setattr(worker.Scorer, "begin", lambda *a: real(*a) | {"auth": ""})
    with pytest.raises(ClusterError, match="started without RAY_AUTH_MODE=token"):
        on_cluster(job, tmp_path)


def test_a_worker_without_the_models_folder_is_refused(ray, job, tmp_path, monkeypatch):
    missing = RECIPE.model.model_copy(
        update={"name": str(tmp_path / "no-model"), "files": {"x": "0" * 64}}
    )
    recipe = RECIPE.model_copy(update={"model": missing})
    settings = ComputeSettings(engine="ray")
    with (
        RayEngine(settings, recipe) as engine,
        pytest.raises(ClusterError, match="there is no such model folder"),
    ):
        score_in_shards(*job, tmp_path, engine=engine)


def test_a_worker_that_sees_no_file_gets_its_rows_by_ray(ray, job, tmp_path, monkeypatch, caplog):
    def unseen(path, hash_):
        raise worker.DataError("no such file")

    monkeypatch.setattr(worker, "TokenRows", unseen)
    assert same(on_cluster(job, tmp_path / "ray"), score_in_shards(*job, tmp_path / "alone"))
    assert "does not see" in caplog.text


def test_another_file_under_the_same_path_is_not_believed(ray, job, tmp_path, monkeypatch):
    whole = job[1]
    other = Job(whole.rows[::-1], whole.checkpoint, whole.directions, whole.form, whole.way)
    real = worker.TokenRows
    from clues.data.tokenfile import write_rows

    wrong = write_rows(other.rows, tmp_path / "elsewhere")
    monkeypatch.setattr(worker, "TokenRows", lambda path, hash_: real(wrong.path, hash_))
    assert same(on_cluster(job, tmp_path / "ray"), score_in_shards(*job, tmp_path / "alone"))


def test_memory_that_runs_out_halves_the_batches_and_is_said_once(
    ray, job, tmp_path, monkeypatch, caplog
):
    alone = score_in_shards(*job, tmp_path / "alone")
    most = token_budget_of(torch.device("cpu")) // 4

    def crowded(model, job, rows, *, token_budget=None):
        if token_budget is None or token_budget > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried too much")
        return scores_of(model, job, rows, token_budget=token_budget)

    monkeypatch.setattr(worker, "scores_of", crowded)
    tight = on_cluster(job, tmp_path / "ray")
    np.testing.assert_allclose(tight.products, alone.products, rtol=1e-4, atol=1e-6)
    said = [
        r.getMessage() for r in caplog.records if r.name == "clues" and "memory" in r.getMessage()
    ]
    assert any(f"{most} tokens" in text for text in said)


def test_a_worker_that_ray_ends_for_memory_leaves_its_shard_to_smaller_batches(
    ray, job, tmp_path, caplog
):
    alone, asked = score_in_shards(*job, tmp_path / "alone"), []

    def lose(name, arguments):
        task = arguments[1]
        if name == "score" and task.positions == job[1].plan[0].tolist():
            asked.append(task.halvings)
            return task.halvings < 2
        return False

    ray.lose = lose
    ray.reason = "The actor died because its node was running low on memory."
    tight = on_cluster(job, tmp_path / "ray", workers=1)
    np.testing.assert_allclose(tight.products, alone.products, rtol=1e-4, atol=1e-6)
    assert asked == [0, 1, 2]
    assert "its machine ran out of memory; shard 0 goes on in batches half as large" in caplog.text


def test_a_score_that_is_not_finite_is_named_as_in_one_process(ray, job, tmp_path, monkeypatch):
    odd = job[1].rows[3]

    def poisoned(model, job, rows, **how):
        if odd in list(rows):
            raise NumericsError(f"the score of 1 of 2 rows is not finite: {odd.id}")
        return scores_of(model, job, rows, **how)

    monkeypatch.setattr(worker, "scores_of", poisoned)
    with pytest.raises(NumericsError, match=odd.id):
        on_cluster(job, tmp_path)


def test_what_our_code_never_expected_is_one_line(ray, job, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(worker, "scores_of", broken)
    with pytest.raises(ClusterError, match=r"stopped \(ZeroDivisionError: division by zero\)"):
        on_cluster(job, tmp_path)


def test_a_full_object_store_is_one_line(ray, job, tmp_path, monkeypatch):
    def full(value):
        raise ray.exceptions.ObjectStoreFullError("...")

    monkeypatch.setattr(ray, "put", full)
    with pytest.raises(ClusterError, match="object store is full"):
        on_cluster(job, tmp_path)


def test_without_a_ready_worker_it_ends_in_time(ray, job, tmp_path):
    ray.silent = True
    with pytest.raises(
        ClusterError, match=r"no worker was ready for 0 s\. Each needs 1 CPUs"
    ) as raised:
        on_cluster(job, tmp_path)
    assert "0 of 4 shards are done" in str(raised.value)


# --- reaching a cluster


def test_an_address_where_nothing_answers_is_one_line():
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(ClusterError, match=f"127.0.0.1:{port}: no Ray answers there"):
            check_answers(f"127.0.0.1:{port}", wait_s=1)


@pytest.mark.parametrize(
    ("answer", "said"),
    [(b"HTTP/1.1 400 Bad Request\r\n\r\n", "is not Ray"), (b"", "within 0 s")],
)
def test_another_program_at_the_address_is_not_waited_for(answer, said):
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        server.settimeout(5)
        held = []

        def talk():
            held.append(server.accept()[0])
            if answer:
                held[0].sendall(answer)

        thread = Thread(target=talk, daemon=True)
        thread.start()
        port = server.getsockname()[1]
        with pytest.raises(ClusterError, match=said):
            check_answers(f"127.0.0.1:{port}", wait_s=0.3)
        thread.join(5)
        held[0].close()


def test_a_job_that_brings_code_is_refused():
    refuse_code({"env_vars": {"X": "1"}})
    with pytest.raises(ClusterError, match="brings pip, working_dir with it"):
        refuse_code({"working_dir": "gcs://x", "pip": ["y"]})


def test_whatever_ray_raises_while_it_connects_is_one_line():
    with (
        pytest.raises(ClusterError, match=r"here: Ray cannot be used \(it is broken\)"),
        connection._Connecting("here"),
    ):
        raise Exception("it is broken\nand the rest")


# --- the setting


def test_the_setting_stands_in_a_silos_file_or_in_the_runs(tmp_path, micro_model):
    from federation_helpers import edit_config, write_micro

    config = write_micro(tmp_path, micro_model)
    assert {s.compute.engine for s in load_config(config).silos} == {"local"}
    edit_config(config, {"compute": {"engine": "ray", "workers": 3}})
    assert {s.compute.workers for s in load_config(config).silos} == {3}
    edit_config(config, {"compute": "ray"})
    assert {s.compute.engine for s in load_config(config).silos} == {"ray"}
    content = load_config(config)
    assert "compute" not in content.recipe.model_dump()
    assert "compute" not in content.silos[0].agreed(), "where it computes changes no answer"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"workers": 2}, "workers is of engine ray"),
        ({"engine": "ray", "address": "ray://head:10001"}, "Ray's client"),
        ({"engine": "ray", "address": "head"}, "a host and a port"),
        ({"engine": "ray", "address": "head:0"}, "a host and a port"),
        ({"engine": "ray", "worker": 2}, "unknown key"),
        ({"engine": "slurm"}, "engine"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(setting, said):
    from clues.config import validate

    with pytest.raises(ConfigError, match=said):
        validate(ComputeSettings, setting, where="compute")


def test_a_silo_whose_cluster_is_gone_says_so_at_hello(tmp_path, monkeypatch):
    settings = SimpleNamespace(
        name="north", compute=ComputeSettings(engine="ray", address="127.0.0.1:1", wait_s=1)
    )
    space: Any = Workspace.__new__(Workspace)
    space.settings = settings
    monkeypatch.setattr("clues.silo.workspace.require", lambda *_, **__: None)
    with pytest.raises(ClusterError, match="no Ray answers there"):
        space.check_compute()


def test_every_shard_is_told_to_who_watches(ray, job, tmp_path):
    import json

    from clues.scoring.watch import Watch

    watch = Watch(tmp_path / "progress.json", "ray")
    with RayEngine(ComputeSettings(engine="ray"), RECIPE, on_workers=watch.workers) as engine:
        shards.score_in_shards(*job, tmp_path, engine=engine, watch=watch)
    found = json.loads((tmp_path / "progress.json").read_text())
    assert (found["part"], found["parts"], found["parts_done"]) == ("shard", 4, 4)
    assert (found["rows"], found["rows_done"], found["rows_found"]) == (7, 7, 0)
    assert (found["engine"], found["workers"], found["last_error"]) == ("ray", 1, "")


@pytest.mark.parametrize(
    ("workers", "observer", "where"),
    [(1, None, "here"), (2, None, "cluster"), (2, object(), "here")],
)
def test_a_training_goes_to_the_cluster_where_the_setting_says(
    tmp_path, monkeypatch, workers, observer, where, caplog
):
    from clues.progress import Silent
    from clues.silo import workspace

    monkeypatch.setattr(workspace, "train", lambda *a, **k: "here")
    monkeypatch.setattr("clues.cluster.training.train_on_cluster", lambda *a, **k: "cluster")
    compute = ComputeSettings(engine="ray", train_workers=workers)
    space: Any = Workspace.__new__(Workspace)
    space.settings = SimpleNamespace(name="north", compute=compute)
    space.private, space.progress = tmp_path, Silent()
    space.memory = {"recipe": RECIPE, "model": None}
    how = {"n_steps": 3} | ({"observer": observer} if observer else {})
    assert space.train([], Piece("warm-up", 1, 1), **how) == where
    assert ("in-run scores are taken in one process" in caplog.text) == (observer is not None)


def test_noise_is_made_in_one_process():
    from clues.config import SiloSettings, validate

    silo = {
        "name": "north",
        "data": "rows.jsonl",
        "domain": "d",
        "privacy": {"epsilon": 8, "delta": 1e-5},
        "compute": {"engine": "ray", "train_workers": 2},
    }
    with pytest.raises(ConfigError, match="noise in one process"):
        validate(SiloSettings, silo, where="north.yaml")
