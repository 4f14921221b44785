"""Cards say what an adapter and a file of kept rows are made of, and give away no more."""

import json
from dataclasses import replace

import pytest
import yaml
from federation_helpers import edit_config, run_micro, tiny_model, write_micro
from test_report import HOSTILE, make_results, results_of

from clues.report.cards import DataFacts, adapter_card, data_card

MARKER = "ZQMARK"
FACTS = DataFacts(
    silo="north",
    domain="wards",
    license="cc-by-4.0",
    file="kept.jsonl",
    n_rows=173,
    n_kept=64,
    others={"refusal": 109},
    n_by_hand=3,
    base_model="base",
    score="influence",
    threshold=[("Value", "-1.000")],
    recipe_hash="0123456789ab",
)


def front_of(card: str) -> dict:
    _, front, _ = card.split("---\n", 2)
    return yaml.safe_load(front)


def test_an_adapter_card_can_be_read_by_a_hub():
    front = front_of(adapter_card(results_of(make_results()), license="apache-2.0"))
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "peft"
    assert front["base_model"] == make_results()["base_model"]


@pytest.mark.parametrize("exact", ["173", "64", "341", "297"])
def test_an_adapter_card_has_rounded_counts_and_rates_no_sharper(exact):
    card = adapter_card(results_of(make_results()))
    assert f" {exact} " not in card
    assert "28\N{EN DASH}43 %" in card


def test_a_data_card_counts_the_rows_beside_it_as_they_are():
    card = data_card(FACTS)
    assert front_of(card)["license"] == "cc-by-4.0"
    for line in ("Rows: 173", "Kept: 64", "Not kept: refusal: 109", "Decided by hand: 3"):
        assert f"- {line}\n" in card
    assert "- Kept: 4\n" in data_card(replace(FACTS, n_kept=4))


def test_a_name_that_looks_like_markup_stays_text_in_a_card():
    results = make_results()
    results["silos"][HOSTILE] = results["silos"]["north"]
    results["name"] = f"{HOSTILE}\n# another heading"
    assert "<b>" not in adapter_card(results_of(results))
    assert "\n# another" not in adapter_card(results_of(results))
    assert "\n# another" not in data_card(replace(FACTS, silo="north\n# another heading"))


@pytest.mark.walk
def test_a_run_writes_both_cards_and_no_row_stands_in_them(tmp_path):
    config = write_micro(
        tmp_path / "input",
        tiny_model(tmp_path / "model"),
        silo_changes={"license": "cc-by-4.0"},
    )
    edit_config(config, {"license": "apache-2.0"})
    path = tmp_path / "input/silos/north.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(r | {"output": r["output"] + MARKER}) + "\n" for r in rows))
    run_micro(config, tmp_path / "run")
    of_adapter = (tmp_path / "run/coordinator/adapter/README.md").read_text()
    of_rows = (tmp_path / "run/silos/north/private/card.md").read_text()
    assert front_of(of_adapter)["license"] == "apache-2.0"
    assert front_of(of_rows)["license"] == "cc-by-4.0"
    assert MARKER in (tmp_path / "run/silos/north/private/kept.jsonl").read_text()
    assert MARKER not in of_adapter + of_rows
