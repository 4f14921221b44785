"""Names of silos, domains and validation sets: what may be one, and that no name is read apart."""

import json
import re

import pytest
import yaml
from federation_helpers import tiny_model, write_micro

from clues.config import check_name, load_config
from clues.coordinator.public import check_public_rows
from clues.errors import ConfigError
from clues.prepare.check import check_run
from clues.prepare.checklist import Role

BAD = ("en/medical", "a|b", "fold, 1", "a b", ".hidden", "-x", "", "x" * 64, "é", "a\n", "a/../b")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def micro(model, tmp_path):
    return write_micro(tmp_path, model, silos=("north",))


def rename(path, change):
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_a_name_is_refused_with_one_that_can(name):
    with pytest.raises(ValueError, match="cannot be a name") as refused:
        check_name(name)
    if suggested := re.search(r"Call it '(.*)', for instance", str(refused.value)):
        assert check_name(suggested[1]) == suggested[1]


@pytest.mark.parametrize("name", ["en/medical", "a|b"])
def test_a_set_a_domain_and_a_silo_with_such_a_name_are_refused_at_load(micro, name):
    def as_set(content):
        public = content["recipe"]["public"]["geography"]
        public["validation"] = {name: public["validation"]}

    def as_domain(content):
        content["recipe"]["public"][name] = content["recipe"]["public"]["geography"]

    def as_silo(content):
        content["silos"][0]["name"] = name

    before = micro.read_text()
    for change in (as_set, as_domain, as_silo):
        micro.write_text(before)
        with pytest.raises(ConfigError, match=f"{re.escape(repr(name))} cannot be a name"):
            load_config(rename(micro, change))


@pytest.mark.slow
@pytest.mark.parametrize("domain", ["geography", "silo-maps", "held-out", "anchors", "task"])
@pytest.mark.parametrize("name", ["validation", "anchors", "anchor", "silo", "held-out"])
def test_check_sees_anchors_equal_to_validation_rows_whatever_they_are_called(micro, domain, name):
    def change(content):
        public = content["recipe"]["public"].pop("geography")
        public["validation"] = {name: public["anchor"]}
        content["recipe"]["public"] = {domain: public}
        content["silos"][0]["domain"] = domain

    config = load_config(rename(micro, change))
    found = check_run(config, n_shown=0)
    assert [f.role for f in found.files] == [
        Role.SILO,
        Role.VALIDATION,
        Role.ANCHORS,
        Role.HELD_OUT,
    ]
    assert sum("share 12 rows" in error for error in found.errors) == 1
    with pytest.raises(ConfigError, match="12 rows are both anchors and rows of validation set"):
        check_public_rows(config.recipe, config.evaluate)


@pytest.mark.walk
def test_the_silos_own_sets_are_told_apart_by_type(micro, model, tmp_path):
    from federation_helpers import run_micro

    def change(content):
        public = content["recipe"]["public"]["geography"]
        public["validation"] = {"anchor": public["validation"]}
        content["evaluate"] = {"arms": []}

    plain = run_micro(micro, tmp_path / "plain")
    renamed = run_micro(rename(micro, change), tmp_path / "renamed")
    assert json.dumps(plain["silos"]["north"]["kept"]) == json.dumps(
        renamed["silos"]["north"]["kept"]
    )
    values = [found["threshold"]["value"] for found in (plain, renamed)]
    assert values[0] == pytest.approx(values[1], abs=1e-12)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ({"layers": [999]}, "recipe.score.layers: block 999 does not exist"),
        ({"projections": ["nope"]}, "recipe.score.projections: 'nope' has no LoRA"),
        ({"factors": "A"}, "recipe.score.factors: A, but"),
        ({"method": "perplexity", "layers": [999]}, ""),
    ],
)
def test_check_names_a_block_or_a_projection_that_the_model_lacks(micro, score, message):
    config = load_config(rename(micro, lambda c: c["recipe"].update(score=score)))
    errors = [e for e in check_run(config, n_shown=0).errors if "recipe.score" in e]
    assert [message in error for error in errors] == [True] * bool(message)
