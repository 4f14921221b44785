"""Scores survive kills, crowded memory and bad rows, and do not depend on who computed them."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from federation_helpers import edit_config, open_micro, tiny_model, write_micro, write_rows

from clues.data.formats import read_rows
from clues.errors import DataError, NumericsError
from clues.model.adapters import Checkpoint
from clues.pipeline import run_until
from clues.scoring import batches, influence, shards
from clues.scoring import job as jobs
from clues.scoring.forms import form_scores
from clues.scoring.gradients import transformed_products
from clues.scoring.influence import RowScores, influence_scores
from clues.scoring.job import Job
from clues.scoring.shards import Team, compute_shard, read_shard, score_in_shards, spread


@pytest.fixture
def small(monkeypatch) -> None:
    """Two rows a shard."""
    monkeypatch.setattr(jobs, "ROWS_PER_SHARD", 2)


@pytest.fixture
def make_job(make_lora, encoded_rows):
    """A model and a job of seven rows and two directions."""

    def make(rows=encoded_rows, form="sgd", way="side_branch", **how):
        model = make_lora()
        generator = torch.Generator().manual_seed(2)
        directions = [
            {n: torch.randn(p.shape, generator=generator) for n, p in model.parameters().items()}
            for _ in range(2)
        ]
        first = {n: torch.zeros_like(p) for n, p in model.parameters().items()}
        second = {n: torch.ones_like(p) for n, p in model.parameters().items()}
        checkpoint = Checkpoint(1, 0.1, model.state(), second, first, optimizer_steps=1)
        return model, Job(rows, checkpoint, directions, form, way, **how)

    return make


def same(a: RowScores, b: RowScores) -> bool:
    return np.array_equal(a.products, b.products) and np.array_equal(a.losses, b.losses)


def test_shards_give_the_scores_of_one_piece(make_job, tmp_path, small) -> None:
    model, job = make_job()
    whole = form_scores(
        model, job.rows, job.checkpoint, job.directions, form="sgd", way="side_branch"
    )
    found = score_in_shards(model, job, tmp_path)
    np.testing.assert_allclose(found.products, whole.products, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.losses, whole.losses, rtol=1e-5)


@pytest.mark.parametrize(
    ("form", "way"), [("sgd", "side_branch"), ("less", "gradients"), ("sgd", "finite_difference")]
)
def test_rows_are_told_as_they_finish_and_once_each(
    make_job, tmp_path, monkeypatch, form, way
) -> None:
    """A shard of long rows takes minutes; found ones are told at once."""
    monkeypatch.setattr("clues.scoring.influence.token_budget_of", lambda *_: 1)
    monkeypatch.setattr("clues.scoring.gradients.token_budget_of", lambda *_: 1)
    model, job = make_job(form=form, way=way)
    told: list[int] = []
    score_in_shards(model, job, tmp_path, on_rows=told.append)
    assert sum(told) == len(job.rows)
    assert len(told) == len(job.rows) or way == "finite_difference"
    again: list[int] = []
    score_in_shards(model, job, tmp_path, on_rows=again.append)
    assert again == [len(rows) for rows in job.plan]


def test_any_first_part_of_the_shards_takes_about_its_share_of_the_time() -> None:
    lengths = [400 * 0.9**n for n in range(40)]  # of a job's shards, long rows first
    order = spread(range(40))
    assert sorted(order) == list(range(40))
    done = np.cumsum([lengths[n] for n in order]) / sum(lengths)
    shares = np.arange(1, 41) / 40
    assert np.abs(done - shares).max() < 0.1
    in_turn = np.cumsum(lengths) / sum(lengths)
    assert np.abs(in_turn - shares).max() > 0.4
    assert spread([7]) == [7]
    assert spread([]) == []


def test_the_order_of_rows_changes_no_bit(make_job, tmp_path, small, encoded_rows) -> None:
    model, job = make_job()
    _, turned = make_job(rows=encoded_rows[::-1])
    found = score_in_shards(model, job, tmp_path)
    other = score_in_shards(model, turned, tmp_path)
    assert np.array_equal(found.products, other.products[::-1])


def test_a_finished_shard_is_not_computed_again(make_job, tmp_path, small, monkeypatch) -> None:
    model, job = make_job()
    first = score_in_shards(model, job, tmp_path)
    files = sorted((tmp_path / job.key).glob("shard-*"))
    assert len(files) == 4
    counted = []
    real = shards.form_scores
    monkeypatch.setattr(shards, "form_scores", lambda *a, **k: counted.append(1) or real(*a, **k))
    assert same(score_in_shards(model, job, tmp_path), first)
    assert not counted
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:40])
    files[2].write_bytes(files[3].read_bytes())
    assert same(score_in_shards(model, job, tmp_path), first)
    assert len(counted) == 3, "an absent, a damaged and a foreign shard are done again"


def test_another_adapter_or_row_is_another_job(make_job, encoded_rows) -> None:
    model, job = make_job()
    keys = {job.key, make_job()[1].key}
    assert len(keys) == 1, "equal jobs have equal keys"
    other = {n: t + 1e-3 for n, t in job.checkpoint.adapter.items()}
    keys.add(Job(job.rows, Checkpoint(1, 0.1, other, {}), job.directions, "sgd", "gradients").key)
    keys.add(Job(job.rows, Checkpoint(1, 0.1, other, {}), job.directions, "sgd", "side_branch").key)
    keys.add(make_job(rows=encoded_rows[:6])[1].key)
    assert len(keys) == 4
    del model


def test_a_job_survives_the_disk(make_job, tmp_path, small) -> None:
    model, job = make_job(skip_nonfinite=True)
    job.write(tmp_path)
    back = Job.read(tmp_path)
    assert back.key == job.key
    assert back.rows == tuple(job.rows) or list(back.rows) == list(job.rows)
    assert same(compute_shard(model, back, 1, tmp_path), read_shard(tmp_path, 1, job))
    (tmp_path / "job.safetensors").write_bytes(b"rubbish")
    with pytest.raises(DataError, match="cannot be read"):
        Job.read(tmp_path)


def test_two_that_share_the_work_give_the_scores_of_one(make_job, tmp_path, small) -> None:
    model, job = make_job()
    alone = score_in_shards(model, job, tmp_path / "alone")
    for number in (1, 3):  # what process 1 of 2 would have written
        compute_shard(model, job, number, tmp_path / "two" / job.key)
    assert same(score_in_shards(model, job, tmp_path / "two", team=Team(0, 2)), alone)


def test_what_a_dead_helper_leaves_is_done_here(
    make_job, tmp_path, small, monkeypatch, caplog
) -> None:
    model, job = make_job()
    alone = score_in_shards(model, job, tmp_path / "alone")
    monkeypatch.setattr(shards, "PATIENCE_S", 0.1)
    assert same(score_in_shards(model, job, tmp_path / "two", team=Team(0, 2)), alone)
    assert "no other process brought 2 shards" in caplog.text


def _score_slowly(model, job, folder) -> None:
    torch.set_num_threads(1)
    real = shards.form_scores

    def slow(*args, **how):
        time.sleep(0.05)
        return real(*args, **how)

    shards.form_scores = slow
    score_in_shards(model, job, folder)


@pytest.mark.slow
def test_killed_at_ten_random_moments_the_table_is_the_same(make_job, tmp_path, small) -> None:
    model, job = make_job()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = score_in_shards(model, job, tmp_path / "alone")
        fork = multiprocessing.get_context("fork")
        rng = random.Random(4)
        n_killed = 0
        for _ in range(10):
            process = fork.Process(target=_score_slowly, args=(model, job, tmp_path / "killed"))
            process.start()
            time.sleep(rng.uniform(0.01, 0.15))
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                n_killed += 1
            process.join()
        assert n_killed > 0, "nothing was killed, so nothing was tested"
        assert same(score_in_shards(model, job, tmp_path / "killed"), alone)
    finally:
        torch.set_num_threads(before)


# --- memory


def crowded(real, most: int):
    """A loss that runs out of memory with more than `most` rows."""

    def losses(model, batch, **options):
        if len(batch.ids_NT) > most:
            raise torch.OutOfMemoryError("pretended")
        return real(model, batch, **options)

    return losses


def test_a_batch_that_does_not_fit_is_halved_and_said(make_job, monkeypatch, caplog) -> None:
    model, job = make_job()
    how = {"adapter": job.checkpoint.adapter, "directions": job.directions}
    plain = influence_scores(model, job.rows, **how)
    monkeypatch.setattr(influence, "row_losses", crowded(influence.row_losses, 2))
    done = []
    tight = influence_scores(model, job.rows, on_rows=done.append, **how)
    np.testing.assert_allclose(tight.products, plain.products, rtol=1e-4, atol=1e-6)
    assert sum(done) == len(job.rows)
    assert "out of memory with 3 rows" in caplog.text


def test_a_row_that_does_not_fit_alone_is_named(make_job, monkeypatch) -> None:
    model, job = make_job()
    monkeypatch.setattr(influence, "row_losses", crowded(influence.row_losses, 0))
    with pytest.raises(DataError, match=r"row [0-9a-f]{16}: its \d+ tokens do not fit"):
        influence_scores(model, job.rows, adapter=job.checkpoint.adapter, directions=job.directions)


def test_memory_that_runs_out_on_the_way_back_counts_nothing_twice(make_job) -> None:
    model, job = make_job()
    how = {"adapter": job.checkpoint.adapter, "directions": job.directions}
    plain = transformed_products(model, job.rows, transforms={"": None}, **how)[""]
    seen = []

    def crowded_transform(name, gradient):
        seen.append(name)
        if len(gradient) > 2 and len(seen) > 3:
            raise torch.OutOfMemoryError("pretended")
        return gradient

    tight = transformed_products(model, job.rows, transforms={"": crowded_transform}, **how)[""]
    np.testing.assert_allclose(tight.products, plain.products, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(tight.norms, plain.norms, rtol=1e-4)


def test_all_rows_are_done_once_however_often_memory_runs_out(encoded_rows) -> None:
    rng = random.Random(1)
    rows, done = list(encoded_rows) * 6, []

    def compute(batch):
        if len(batch) > 1 and rng.random() < 0.5:
            raise torch.OutOfMemoryError("pretended")
        done.extend(batch)

    batches.each_batch(rows, compute, token_budget=400)
    assert sorted(done) == list(range(len(rows)))


# --- rows that cannot be scored


def poisoned(real, row_id: str):
    def scores(model, rows, *args, skip_nonfinite=False, **how):
        found = real(model, rows, *args, skip_nonfinite=skip_nonfinite, **how)
        for n, row in enumerate(rows):
            if row.id == row_id:
                found.products[n] = np.nan
        batches.refuse_nonfinite(rows, found.products, skip=skip_nonfinite)
        return found

    return scores


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.mark.walk
def test_a_row_without_a_finite_score_is_named_or_dropped(model, tmp_path, monkeypatch) -> None:
    config = write_micro(tmp_path, model, changes={"evaluate": {"arms": ["clues"]}})
    bad = read_rows(tmp_path / "silos/north.jsonl").samples[5].id
    monkeypatch.setattr(shards, "form_scores", poisoned(shards.form_scores, bad))
    with pytest.raises(NumericsError, match=f"score of 1 row is not finite: {bad}") as raised:
        run_until(open_micro(config, tmp_path / "run"))
    assert "--skip-nonfinite" in str(raised.value)
    run = open_micro(config, tmp_path / "run", skip_nonfinite=True)
    results = run_until(run).results
    assert results is not None
    assert results.silos["north"].rows == 24
    decisions = (tmp_path / "run/silos/north/private/decisions.csv").read_text().splitlines()
    assert decisions[6] == f"5,6,{bad},,0,unscored,not scored,its score is not finite,"
    assert len(decisions) == 25, "every row has a decision"


# --- several processes


def big_micro(folder, model):
    """One silo of 600 rows: three shards."""
    config = write_micro(folder, model, silos=("north",))
    rows = [
        {"instruction": f"Question {n} of many?", "output": f"Answer {n * n}.", "damage": ""}
        for n in range(600)
    ]
    write_rows(folder / "silos/north.jsonl", rows)
    edit_config(config, {"combine": {"rounds": 1}})
    return config


@pytest.mark.long
def test_two_launched_processes_give_the_scores_of_one(model, tmp_path) -> None:
    config = big_micro(tmp_path, model)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run_until(open_micro(config, tmp_path / "one"), "score")
    # What `accelerate launch` starts for several GPUs; for several CPU processes it wants MPI.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launch += ["--nproc-per-node", "2", "-m", "clues", "score", str(config)]
    subprocess.run(
        [*launch, "--out", str(tmp_path / "two")],
        env=environment,
        check=True,
        capture_output=True,
        timeout=300,
    )
    tables = [
        (tmp_path / name / "silos/north/private/scores.parquet").read_bytes()
        for name in ("one", "two")
    ]
    assert tables[0] == tables[1]
    (done,) = (tmp_path / "two/workers").glob("*-1.json")
    assert json.loads(done.read_text()) == {"shards": 2}, "one shard at each of two checkpoints"
    assert not (tmp_path / "two/silos/north/private/shards").exists()


def test_a_helper_writes_its_own_shards_and_goes_home(
    make_job, tmp_path, small, monkeypatch
) -> None:
    from clues.config import Recipe
    from clues.silo import helpers as workers

    model, job = make_job()
    private = tmp_path / "silos/north/private"
    public = {"d": {"validation": {"v": {"path": "v"}}, "anchor": {"path": "a"}}}
    private.mkdir(parents=True)
    (private / "recipe.json").write_text(Recipe(public=public).model_dump_json())
    place = private / "shards" / job.key
    job.write(place)
    calls = []

    def sleep(_: float) -> None:
        calls.append(1)
        if len(calls) > 1:
            workers.finish(tmp_path)

    monkeypatch.setattr(workers.time, "sleep", sleep)
    n = workers.help_scoring(tmp_path, Team(1, 2), models={}, load=lambda _: model, local_rank=1)
    assert n == 2
    assert sorted(p.name for p in place.glob("shard-*")) == [
        "shard-1.safetensors",
        "shard-3.safetensors",
    ]
    assert same(read_shard(place, 1, job), compute_shard(model, job, 1, tmp_path / "again"))


def test_process_0_looks_alone_to_other_libraries(monkeypatch) -> None:
    from clues.silo.helpers import team_of_environment

    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert team_of_environment() == (Team(1, 2), 1)
    assert "WORLD_SIZE" not in os.environ
    assert team_of_environment() == (Team(0, 1), 0)
