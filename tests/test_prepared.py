"""What the coordinator has scored once is not scored again while silos are at work."""

from pathlib import Path

import numpy as np
import pytest
import torch
from federation_helpers import open_micro, run_micro, without_volatile, write_micro

from clues.coordinator import score as score_stage
from clues.coordinator.prepared import Kept
from clues.pipeline import run_until
from clues.selection.weighing import Controls
from clues.silo import silo as silo_side
from clues.wall.messages import ScoreRequest


def request(value: float = 1.0) -> ScoreRequest:
    return ScoreRequest(
        recipe_hash="a" * 64,
        learning_rates=[0.1],
        optimizer_steps=[3],
        probe_losses=[value],
        anchor_scores={"loss": [value, 2.0]},
        compared_forms={"adam": {"validation": [1.0, 2.0]}},
        compared_baselines={},
        weights={},
        cut=None,
        checkpoints=[{"w": torch.full((2,), value)}],
        directions=[{"validation": {"w": torch.ones(2)}}],
        first_moments=[{}],
        second_moments=[{}],
    )


CONTROLS = Controls({"loss": np.array([0.25, -1.5])}, ["cut", "mix"])


class Counted:
    """Does the work, and counts how often."""

    def __init__(self, controls: Controls | None = CONTROLS) -> None:
        self.n, self.controls = 0, controls

    def __call__(self):
        self.n += 1
        return request(), self.controls


def test_what_was_made_of_the_same_is_taken_again(tmp_path):
    kept, work = Kept(tmp_path / "prepared", "k"), Counted()
    for recipe_hash in ("a" * 64, "b" * 64):
        found, controls = kept.of("d", recipe_hash=recipe_hash, compute=work)
        assert (
            found.to_bytes()
            == ScoreRequest(**{**vars(request()), "recipe_hash": recipe_hash}).to_bytes()
        ), "another rule for the threshold changes the hash alone"
        assert controls is not None
        assert controls.to_json() == CONTROLS.to_json()
    assert work.n == 1
    Kept(tmp_path / "prepared", "other").of("d", recipe_hash="a" * 64, compute=work)
    kept.of("e", recipe_hash="a" * 64, compute=work)
    assert work.n == 3
    kept.forget()
    assert list((tmp_path / "prepared").iterdir()) == []
    kept.forget()


def test_without_copies_there_are_none(tmp_path):
    kept, work = Kept(tmp_path / "prepared", "k"), Counted(None)
    assert [kept.of("d", recipe_hash="a" * 64, compute=work)[1] for _ in range(2)] == [None, None]
    assert work.n == 1


@pytest.mark.parametrize("name", ["k-d.clues", "k-d.json"])
@pytest.mark.parametrize("damage", [b"", b"{}", b"[1, 2]", b"\x00\xff", None])
def test_a_damaged_file_is_made_again(tmp_path, name, damage):
    kept, work = Kept(tmp_path / "prepared", "k"), Counted()
    kept.of("d", recipe_hash="a" * 64, compute=work)
    path = tmp_path / "prepared" / name
    path.unlink() if damage is None else path.write_bytes(damage)
    found, controls = kept.of("d", recipe_hash="a" * 64, compute=work)
    assert work.n == 2
    assert found.to_bytes() == request().to_bytes()
    assert controls is not None


@pytest.mark.slow
def test_a_run_that_is_interrupted_while_silos_score_scores_its_anchors_once(
    micro_model, tmp_path, monkeypatch
):
    config = write_micro(tmp_path / "in", micro_model)
    whole = run_micro(config, tmp_path / "whole")
    made: list[str] = []
    real = score_stage._domain_request

    def counted(desk, domain, checkpoints):
        made.append(domain)
        return real(desk, domain, checkpoints)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(score_stage, "_domain_request", counted)
    with monkeypatch.context() as once:
        once.setattr(silo_side, "score", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_until(open_micro(config, tmp_path / "run"), "score")
    n_domains = len(made)
    assert n_domains == len(set(made)) > 0
    prepared = tmp_path / "run/coordinator/prepared"
    assert len(list(Path(prepared).iterdir())) == 2 * n_domains
    again = run_micro(config, tmp_path / "run")
    assert len(made) == n_domains, "public rows were scored again"
    assert without_volatile(again) == without_volatile(whole)
    assert list(Path(prepared).iterdir()) == []
