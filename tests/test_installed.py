"""A scorer that another package brings: found, pinned to its version, and looked at."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from federation_helpers import open_micro, tiny_model, write_micro

from clues.config import ScoreSettings, is_installed, validate
from clues.config.evaluate import EvaluateSettings
from clues.errors import ConfigError, DataError, ExtraError
from clues.pipeline import run_until
from clues.scoring.baselines import BASELINES
from clues.scoring.installed import is_baseline, needs_rows, refuse_missing, scorer
from clues.scoring.parts import Compared

MODULE = """
import numpy as np

def long(scene):
    return lambda rows: [row.n_response_tokens for row in rows]

def short(scene):
    return lambda rows: np.zeros(len(rows) + 1)

def endless(scene):
    return lambda rows: np.full(len(rows), np.inf)
"""

# All that is looked at of a scene.
STRICT, LENIENT = (SimpleNamespace(skip_nonfinite=skips) for skips in (False, True))


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A package as pip would have put it there."""
    (tmp_path / "probe_scorers.py").write_text(MODULE)
    info = tmp_path / "probe_scorers-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: probe-scorers\nVersion: 1.2\n")
    names = "\n".join(f"probe.{n} = probe_scorers:{n}" for n in ("long", "short", "endless"))
    (info / "entry_points.txt").write_text(f"[clues.scorers]\n{names}\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("probe_scorers", None)


def test_a_scorer_is_found_by_name_and_version(package, encoded_rows):
    found = scorer("probe.long@1.2")(STRICT)(encoded_rows)
    assert found.dtype == np.float64
    assert found.tolist() == BASELINES["length"](None)(encoded_rows).tolist()
    refuse_missing(ScoreSettings(method="probe.long@1.2", compare=("probe.short@1.2", "length")))
    assert is_baseline("probe.long@1.2")
    assert needs_rows("probe.long@1.2")
    assert not is_baseline("influence")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("probe.long@1.3", r"version 1\.2 is installed here"),
        ("probe.none@1.2", r"no installed package offers probe\.none .*here are: .*probe\.long"),
    ],
)
def test_another_version_and_a_missing_package_are_named(package, name, message):
    with pytest.raises(ExtraError, match=message):
        refuse_missing(ScoreSettings(compare=(name,)))


@pytest.mark.parametrize("name", ["short", "endless"])
def test_what_is_not_one_finite_number_a_row_is_refused(package, encoded_rows, name):
    with pytest.raises(DataError, match=f"probe.{name}@1.2: it gave"):
        scorer(f"probe.{name}@1.2")(STRICT)(encoded_rows)


def test_in_a_silo_a_row_without_a_finite_score_is_one_row_less_and_a_short_list_an_error(
    package, encoded_rows
):
    found = scorer("probe.endless@1.2")(LENIENT)(encoded_rows)
    assert len(found) == len(encoded_rows)
    assert not np.isfinite(found).all()
    with pytest.raises(DataError, match=r"probe\.short@1\.2: it gave"):
        scorer("probe.short@1.2")(LENIENT)(encoded_rows)


@pytest.mark.parametrize("name", ["probe.long", "Probe.x@1", "a.b.c@1", "os.system@x", "../a.b@1"])
def test_no_other_text_is_a_name(name):
    assert not is_installed(name)
    with pytest.raises(ConfigError, match=r"recipe\.score: method: there is no such name"):
        validate(ScoreSettings, {"method": name}, where="recipe.score")


def test_a_slip_of_the_pen_is_one_line_with_what_was_meant():
    with pytest.raises(ConfigError) as raised:
        validate(ScoreSettings, {"compare": ["lenght"]}, where="recipe.score")
    assert str(raised.value).count("\n") == 0
    assert "did you mean 'length'" in str(raised.value)
    assert EvaluateSettings(arms=("probe.long@1.2",)).arms == ("probe.long@1.2",)


@pytest.mark.slow
def test_a_run_scores_by_it_as_by_the_same_score_of_ours(package, tmp_path):
    name = "probe.long@1.2"
    score = {"method": name, "compare": ["length", "probe.long@1.2"]}
    changes = {"recipe": {"score": score, "threshold": {"rule": "ratio", "ratio": 0.5}}}
    config = write_micro(tmp_path / "in", tiny_model(tmp_path / "m"), changes=changes)
    run = open_micro(config, tmp_path / "run")
    run_until(run, "select")
    for silo in run.silos.values():
        table = silo.space.scores()
        assert table.raw[name].tolist() == table.parts[Compared("length")].tolist()
        assert table.parts[Compared(name)].tolist() == table.raw[name].tolist()
