"""The shared report shows aggregates, shows names as text, and never invents a number."""

import copy
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from jinja2 import UndefinedError
from pydantic import ValidationError
from rich.console import Console

from clues.errors import DataError
from clues.report.arms import differences_table, headline
from clues.report.cells import DASH, band, clean, count
from clues.report.figures import score_bands
from clues.report.page import environment
from clues.report.shared import render_html, render_markdown
from clues.report.silos import absences_table, controls_table, ledger_table, silos_table
from clues.report.terminal import print_table
from clues.results.run import Results
from clues.wall.messages import round_count

DRAWS = True  # the pictures are looked at
HOSTILE = '<b>&"|[red]*x*'
ARM_KEYS = (
    "kept",
    "steps",
    "precision",
    "recall",
    "f1",
    "heldout_loss",
    "knowledge_accuracy",
    "knowledge_stderr",
    "seconds",
)
ARMS = {
    "mixed": (850, 240, 0.6, 1.0, 0.75, 2.3104, 0.42, 0.03, 31.24),
    "random": (512, 144, 0.601, 0.602, 0.601, 2.402, 0.385, 0.031, 19.9),
    "clues": (512, 144, 0.942, 0.946, 0.944, 2.187, 0.515, 0.031, 20.1),
    "oracle": (510, 144, 1.0, 1.0, 1.0, 2.153, 0.53, 0.031, 20.0),
}
LEDGER = [
    {"silo": "north", "direction": "out", "kind": "adapter", "messages": 20, "bytes": 6_553_600},
    {"silo": "north", "direction": "in", "kind": "recipe", "messages": 1, "bytes": 812},
]


def make_silo(rows: int, kept: int, *, labelled: bool = True) -> dict:
    silo = {"rows": rows, "kept": kept, "domain": "medicine-en", "threshold": -1.6}
    if labelled:
        silo |= {"precision": 0.917, "recall": 0.967, "f1": 0.941, "auc": 0.94}
        by_kind = {"cut": 0.99, "swap": 0.8}
        silo["detection"] = {
            "influence": {"auc": 0.94, "auc_by_kind": by_kind},
            "perplexity": {"auc": 0.903, "auc_by_kind": {}},
        }
    return silo


def make_arm(*figures: float) -> dict:
    shared = {"silos": 2, "energy_lost": 0.0, "against": {}}
    return dict(zip(ARM_KEYS, figures, strict=True)) | shared


def make_results() -> dict:
    """What results.json holds: every key that it always has, and labelled silos."""
    return {
        "results_version": 1,
        "name": "demo",
        "date": "2026-11-23",
        "machine": "2 CPU cores, 8 GB",
        "base_model": "built-in",
        "recipe_hash": "3f9a1c77b0e2",
        "recipe": {"seed": 42},
        "seeds": [42],
        "versions": {"clues": "0.1.0", "torch": "2.13.0"},
        "method": {
            "score": "influence",
            "form": "adam",
            "loss_weight": 0.5,
            "loss_under": "base",
            "alignment_weight": 0.25,
            "parts": "shortfall",
            "trajectory": "global",
            "layers": "all",
            "rule": "anchor_quantile",
            "combine": "fedavg",
            "aggregation": "ffa",
        },
        "arms": {name: make_arm(*figures) for name, figures in ARMS.items()},
        "silos": {"north": make_silo(173, 64), "south": make_silo(341, 297)},
        "absences": [],
        "stops": [],
        "curves": {},
        "threshold": {
            "value": -1.645,
            "rule": "anchor_quantile",
            "units": "anchor",
            "interval": [-1.9, -1.4],
            "confidence": 0.95,
            "n_anchors": 320,
            "assurance": 0.956,
            "quantile": 0.05,
            "anchor_quantiles": [
                *([0.0, -3.1], [0.05, -1.6], [0.25, -0.6], [0.5, 0.0], [0.75, 0.7], [1.0, 2.6])
            ],
        },
        "controls": {},
        "controls_kept": {},
        "questions": 200,
        "guessing": 0.25,
        "tasks": {},
        "judge": None,
        "seconds": {"train": 30.1, "score": 12.0, "select": 0.5},
    }


def results_of(content: dict) -> Results:
    """The type, of what the file would hold; unlike a file it may hold what is not finite."""
    return Results.model_validate_json(json.dumps(content))


def places(value: Any, *path: str | int) -> Iterator[tuple[str | int, ...]]:
    """Where a value, or anything inside it, stands."""
    inner = value.items() if isinstance(value, dict) else ()
    inner = enumerate(value) if isinstance(value, list) else inner
    for key, part in inner:
        yield from places(part, *path, key)
    if path:
        yield path


def changed(content: dict, path: tuple[str | int, ...], value: Any) -> dict:
    """A copy with something else in one place."""
    found = copy.deepcopy(content)
    inside: Any = found
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    return found


def is_results(content: dict) -> bool:
    try:
        results_of(content)
    except ValidationError:
        return False
    return True


def without_numbers(content: dict) -> dict:
    """The same results with every number not measured that the format allows to be missing."""
    for path in list(places(content)):
        if path[0] == "recipe":
            continue
        without = changed(content, path, None)
        content = without if is_results(without) else content
    return content


def terminal_text(content: dict) -> str:
    console = Console(file=io.StringIO(), width=80)
    print_table(results_of(content), console)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def page(content: dict) -> str:
    return render_html(results_of(content), ledger_summary=LEDGER)


def markdown(content: dict) -> str:
    return render_markdown(results_of(content))


def every_text(results: dict) -> list[str]:
    return [page(results), markdown(results), terminal_text(results)]


def test_page_needs_no_network_and_no_script():
    html = page(with_everything())
    assert not re.search(r"https?:|<script|<link|<img|@import|url\((?!#)|\son\w+=", html)
    assert "default-src 'none'" in html


def test_page_names_its_language_and_every_table_has_a_caption_and_scopes():
    html = page(make_results())
    assert '<html lang="en">' in html
    assert html.count("<table") == html.count("<caption") == 4
    assert not re.search(r"<th(?![^>]*scope=)[\s>]", html), "a header cell without a scope"


def test_names_stay_text_on_the_page():
    results = make_results()
    results["silos"] = {HOSTILE: make_silo(100, 50)}
    results["machine"] = results["name"] = HOSTILE
    results["arms"][HOSTILE] = results["arms"]["mixed"]
    ledger = [dict(LEDGER[0], silo=HOSTILE, kind=HOSTILE)]
    html = render_html(results_of(results), ledger_summary=ledger)
    assert "<b>" not in html
    assert html.count("&lt;b&gt;&amp;&#34;|[red]*x*") >= 6


def test_names_stay_text_in_markdown_and_on_the_terminal():
    results = make_results()
    results["silos"] = {HOSTILE: make_silo(100, 50)}
    text = markdown(results)
    assert "<b>" not in text
    assert r"\|\[red\]\*x\*" in text
    assert HOSTILE in terminal_text(results), "rich took a name for a style"


def test_control_and_direction_characters_in_names_are_replaced():
    assert clean("a\x1b[2J\nb\u202e") == "a\ufffd[2J\ufffdb\ufffd"


@pytest.mark.parametrize("n_rows", range(10))
def test_a_count_below_ten_is_not_shown(n_rows):
    assert count(n_rows) == "<10"


def test_a_count_is_rounded_to_tens_and_a_missing_one_is_a_dash():
    assert [count(n) for n in (10, 14, 15, 1234, None)] == [
        "10",
        "10",
        "20",
        "1,230",
        "\N{EN DASH}",
    ]


@pytest.mark.parametrize(("rows", "kept"), [(173, 7), (8, 8), (9, 0)])
def test_nothing_about_a_small_count_shows(rows, kept):
    results = make_results()
    results["silos"] = {"north": make_silo(rows, kept)}
    cells = silos_table(results_of(results)).rows[0]
    assert "<10" in cells
    assert not [cell for cell in cells if "%" in cell], "a keep rate narrows the count down"
    for text in every_text(results):
        for hidden in ("0.917", "0.967", "0.941", "0.903"):
            assert hidden not in text, "a ratio over a few rows shows how many they are"


def test_no_exact_row_count_shows():
    for text in every_text(make_results()):
        for exact in ("173", "341", "297", "512"):
            assert not re.search(rf"(?<![\d.]){exact}(?![\d.])", text), exact


@pytest.mark.slow
def test_two_runs_with_equal_rounded_counts_cannot_be_told_apart():
    one, other = make_results(), make_results()
    one["silos"]["north"] |= {"rows": 166, "kept": 55}
    other["silos"]["north"] |= {"rows": 174, "kept": 64}
    assert every_text(one) == every_text(other), "the keep rate shows more than the counts"


def test_keep_rates_are_all_that_the_rounded_counts_leave_open():
    results = make_results()
    silos = {"a": make_silo(100, 100), "b": make_silo(1000, 730), "c": make_silo(200, 10)}
    results["silos"] = silos | {"d": make_silo(40, 40)}
    bands = [row[4] for row in silos_table(results_of(results)).rows]
    assert [band.replace("\N{EN DASH}", "-") for band in bands] == [
        *("83-100 %", "71-75 %", "0-10 %", "63-100 %")
    ]


@pytest.mark.parametrize("up", range(10))
@pytest.mark.parametrize(("rows", "kept"), [(40, 35), (173, 64), (99, 98), (31, 11)])
def test_the_true_keep_rate_lies_in_what_is_shown(rows, kept, up):
    told = [round_count(n, up=u) for n, u in ((rows, up), (kept, 9 - up))]
    low, high = band(*told).removesuffix(" %").split("\N{EN DASH}")
    assert int(low) <= 100 * kept / rows <= int(high)


def test_detection_columns_show_only_where_labels_were_known():
    results = make_results()
    assert "Precision" in page(results)
    results["silos"] = {"north": make_silo(173, 64, labelled=False)}
    for arm in results["arms"].values():
        for key in ("precision", "recall", "f1"):
            del arm[key]
    for text in (page(results), markdown(results)):
        assert not re.search(r"<th[^>]*>Precision|Precision \|", text)
        assert "Detection by score" not in text
    assert "prec." not in terminal_text(results)


def test_a_missing_number_does_not_become_zero():
    results = without_numbers(make_results())
    # A figure has an axis, and that may have a zero.
    results["threshold"]["anchor_quantiles"] = []
    assert results["threshold"]["value"] is results["arms"]["mixed"]["heldout_loss"] is None
    for text in every_text(results):
        body = re.sub("<[^>]*>", " ", text[text.find("<body") :]) if "<body" in text else text
        body = re.sub(r"0\.500 is chance|0 to 1", "", body)
        body = body.replace(results["recipe_hash"], "").replace(results["date"], "")
        assert not re.search(r"(?<![\w.<])0(\.0+)?(?![\w.])", body)
        assert "None" not in body
        assert "nan" not in body


@pytest.mark.parametrize("key", [k for k in ARM_KEYS if k not in ("steps", "seconds")])
def test_any_number_of_an_arm_may_be_missing(key):
    results = changed(make_results(), ("arms", "mixed", key), None)
    every_text(results)
    results = changed(results, ("arms", "clues", key), None)
    every_text(results)
    if key in ("precision", "recall", "f1"):
        del results["arms"]["mixed"][key], results["arms"]["clues"][key]
        every_text(results)


def test_a_number_that_is_not_finite_is_called_so():
    results = make_results()
    results["arms"]["mixed"]["heldout_loss"] = float("nan")
    results["threshold"]["value"] = float("-inf")
    assert page(results).count("not finite") == 3


def test_an_undefined_name_in_the_template_is_an_error():
    template = environment().from_string("{{ nowhere }}")
    with pytest.raises(UndefinedError):
        template.render()


def test_a_ledger_entry_without_a_size_is_an_error():
    entry = {key: value for key, value in LEDGER[0].items() if key != "bytes"}
    with pytest.raises(DataError, match="'bytes' is missing"):
        render_html(results_of(make_results()), ledger_summary=[entry])


def test_markdown_tables_have_as_many_cells_in_every_line():
    results = make_results()
    results["silos"][HOSTILE] = make_silo(40, 3)
    blocks = re.findall(r"(?:^\|.*\n)+", markdown(results), flags=re.MULTILINE)
    assert len(blocks) == 3
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_terminal_tables_fit_in_80_columns_with_every_number_whole():
    results = make_results()
    results["silos"] = {"a-hospital-with-a-long-name": make_silo(123_456, 98_765)}
    big = (1_234_567, 98_765, 0.6, 1.0, 0.75, 12.31, 0.42, 0.03, 98_765.4)
    results["arms"]["mixed"] = make_arm(*big)
    text = terminal_text(results)
    assert max(map(len, text.splitlines())) <= 80
    for whole in ("123,460", "98,770", "79\N{EN DASH}81 %", "1,234,570", "98,765.4", "0.030"):
        assert whole in text, f"{whole} was cut"
    assert "\N{HORIZONTAL ELLIPSIS}" not in text


def test_headline_states_the_contrast_and_its_error():
    found, sure = headline(results_of(make_results()))
    assert (
        "answered 51.5 % of 200 questions right, against 42.0 % for training on all rows" in found
    )
    assert "9.5 points above mixed (2.2 standard errors)" in sure


def test_headline_says_so_when_the_selection_does_worse():
    results = make_results()
    results["arms"]["clues"]["knowledge_accuracy"] = 0.4
    assert "2.0 points below mixed (0.5 standard errors)" in headline(results_of(results))[1]


@pytest.mark.parametrize("arms", [(), ("mixed",)])
def test_a_selection_without_a_model_is_a_selection(arms):
    """What `clues init` gives to one silo trains nothing; its page must not deny what it kept."""
    results = make_results()
    results["arms"] = {name: results["arms"][name] for name in arms}
    silos = results["silos"].values()
    kept, rows = (count(sum(silo[key] for silo in silos)) for key in ("kept", "rows"))
    said = f"kept about {kept} of {rows} rows in {len(silos)} silos"
    assert said in headline(results_of(results))[0]
    html, text, terminal = every_text(results)
    assert said in html
    assert said in text
    assert "nothing to compare" not in html + text + terminal
    assert ("## Arms" in text, "Arms" in terminal) == (bool(arms), bool(arms))


def test_a_silos_cut_in_its_own_numbers_is_not_called_the_threshold():
    results = make_results()
    for n, silo in enumerate(results["silos"].values()):
        silo["threshold"] = -2.961 - n
    table = silos_table(results_of(results))
    assert "Threshold" not in [column.title for column in table.columns]
    assert "in the numbers of each silo's own scores" in table.note
    for silo in results["silos"].values():
        silo["threshold"] = results["threshold"]["value"]
    assert "own scores" not in silos_table(results_of(results)).note
    assert "-1 by definition" in page(results) or results["threshold"]["rule"] != "anchor_tolerance"


def test_a_promise_that_the_anchors_are_too_few_for_is_a_warning_in_colour():
    results = make_results()
    results["threshold"] |= {"assurance": 0.603, "confidence": 0.95, "n_anchors": 18}
    said = "warning: 18 anchor rows could be used, too few"
    assert said in " ".join(terminal_text(results).split())
    results["threshold"]["assurance"] = 0.97
    assert "warning" not in terminal_text(results)


def test_without_a_silo_nothing_was_selected():
    results = make_results()
    results["arms"], results["silos"] = {}, {}
    assert "made no selection" in headline(results_of(results))[0]


def with_everything() -> dict:
    """Results of a run that measured all that a page can show."""
    results = make_results()
    against = {
        "heldout_loss": {"value": -0.1234, "interval": [-0.21, -0.04]},
        "knowledge_accuracy": {"value": 0.095, "interval": [0.012, 0.181], "p_value": 0.03},
    }
    results["arms"]["clues"]["against"] = {"mixed": against, "random": against}
    loss = {"heldout_loss": against["heldout_loss"]}
    results["arms"]["oracle"]["against"] = {"mixed": against, "random": loss}
    results["arms"]["random"]["against"] = {"mixed": against}
    results["curves"] = {
        "warm-up": [[0, 3.0], [1, 2.6], [2, 2.5]],
        "clues": [[0, 3.0], [1, 2.4], [2, 2.2]],
    }
    bands = [[0.1, -2.5], [0.25, -1.1], [0.5, -0.2], [0.75, 0.6], [0.9, 1.4]]
    results["silos"]["north"]["score_bands"] = bands
    time = "2026-11-23T09:15:02+00:00"
    absence = {"silo": "west", "stage": "score", "time": time, "why": "silo west: no answer"}
    results["absences"], results["stops"] = [absence], [{**absence, "stage": "fit-clues"}]
    results["recipe"] = {"seed": 42, "model": {"name": "built-in"}}
    return results


def test_differences_carry_sign_scale_and_both_ends():
    table = differences_table(results_of(with_everything()))
    assert table is not None
    ours = next(row for row in table.rows if row[0] == "clues")
    assert ours[1:] == (
        *("-0.123 (-0.210 to -0.040)", "-0.123 (-0.210 to -0.040)"),
        *("+9.5 (1.2 to 18.1)", "+9.5 (1.2 to 18.1)"),
    )
    assert differences_table(results_of(make_results())) is None, (
        "made up where nothing was measured"
    )


def test_headline_takes_the_paired_interval_where_there_is_one():
    sure = headline(results_of(with_everything()))[1]
    assert "9.5 points above mixed (1.2 to 18.1) and 9.5 points above random" in sure
    results = with_everything()
    results["arms"]["clues"]["knowledge_accuracy"] = None
    assert "0.123 below mixed (0.040 to 0.210)" in headline(results_of(results))[1]


def test_absences_say_who_when_and_what_came_of_it():
    table = absences_table(results_of(with_everything()))
    assert table is not None
    assert [row[2:4] for row in table.rows] == [("score", "left out"), ("fit-clues", "run stopped")]
    assert table.rows[0][:2] == ("2026-11-23 09:15:02", "west")
    assert "Nobody: every silo" in page(make_results())


def test_the_ledger_table_counts_what_left_by_silo_and_kind():
    south = [dict(LEDGER[0], silo="south", bytes=1000), dict(LEDGER[1], silo="south")]
    lost = dict(LEDGER[1], direction="lost", messages=2)
    rows = ledger_table([*LEDGER, *south, lost]).rows
    assert rows[0] == ("north", "6.6 MB", "6.6 MB", "20", "812 B", "2")
    assert rows[-1] == ("all silos", "6.6 MB", "6.6 MB", "40", "1.6 kB", "2")


@pytest.mark.slow
def test_scores_of_a_silo_that_does_not_share_them_are_not_drawn():
    results = with_everything()
    html = page(results)
    assert "not shared: 1 of 2 silos" in html
    figure = score_bands(results_of(results))["wide"]
    assert ">north<" in figure
    assert ">south<" not in figure
    del results["silos"]["north"]["score_bands"]
    assert "not shared: 2 of 2 silos" in page(results)


def test_figures_of_equal_scores_and_of_no_scores_do_not_crash():
    results = make_results()
    results["threshold"]["anchor_quantiles"] = [[0.0, 1.0], [1.0, 1.0]]
    assert score_bands(results_of(results))
    results["threshold"]["anchor_quantiles"] = []
    assert score_bands(results_of(results)) == {}


def test_names_in_figures_stay_text_and_no_mathematics():
    results = with_everything()
    results["silos"]["$x^2$ <b>"] = results["silos"]["north"]
    results["curves"]["a $b$<i>"] = results["curves"]["clues"]
    html = page(results)
    assert "$x^2$ &lt;b&gt;" in html
    assert "a $b$&lt;i&gt;" in html
    assert "<b>" not in html
    assert "<i>" not in html


def test_rendering_leaves_the_results_as_they_were():
    results = results_of(with_everything())
    before = json.dumps(results.to_json())
    render_html(results, ledger_summary=LEDGER)
    render_markdown(results)
    assert json.dumps(results.to_json()) == before


def test_a_kind_of_damage_that_one_domain_lacks_is_a_dash_there() -> None:
    table = controls_table(
        {"domain a": {"cut": 0.9, "swap": 0.5}, "domain b": {"cut": 0.8}},
        {"domain a": {"cut": 0.25, "swap": 1.0}, "domain b": {"cut": 0.5}},
    )
    assert table is not None
    assert table.rows == (
        ("a", "told apart", "0.900", "0.500"),
        ("a", "kept", "25.0 %", "100.0 %"),
        ("b", "told apart", "0.800", DASH),
        ("b", "kept", "50.0 %", DASH),
    )
