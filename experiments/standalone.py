"""Tables of experiments that are no recipe: rows that others judged, rejected rows, kinds. No torch."""

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clues.config import BUILT_IN
from experiments.statistics import over_seeds, shown, silo_means
from experiments.stored import StoredRun

HERE = Path(__file__).parent
# Published models are made of files with 4-bit weights: `make base`.
DEQUANTISED = ("smollm2-135m-instruct", "gemma3-270m-it")
Runs = Sequence[StoredRun]  # one per seed


@dataclass(frozen=True)
class Standalone:
    """One of them.

    Attributes:
        name: of its folder.
        title: heading of its tables.
        asks: the question, in a sentence or two.
        table: what it shows of a base model's seeds.
        again: the command that makes them.
    """

    name: str
    title: str
    asks: str
    table: "Callable[[Stored], list[str]]"
    again: str


@dataclass(frozen=True)
class Stored:
    """What is stored of one base model.

    Attributes:
        runs: by name of the run, one per seed; experiments of one run per seed have one name.
        contents: the files themselves, for what is no run.
    """

    runs: Mapping[str, Runs]
    contents: Sequence[Mapping[str, Any]]

    @property
    def first(self) -> Runs:
        """The runs that come first."""
        return next(iter(self.runs.values()))


def detection_table(runs: Runs) -> list[str]:
    """AUC of every score, mean over silos and seeds, best first."""
    names = next(iter(runs[0].results.silos.values())).detection
    found = {name: silo_means(runs, name) for name in names}
    found = {name: values for name, values in found.items() if values}
    lines = ["| score | AUC |", "| :--- | ---: |"]
    for name in sorted(found, key=lambda n: -statistics.fmean(found[n])):
        lines.append(f"| {name} | {shown(over_seeds(found[name]))} |")
    return lines


def kept_table(by_name: Mapping[str, Runs], *, first: str) -> list[str]:
    """Of good and of bad rows, the share that is kept, by name of the run; means over silos.

    Known bad rows are the damaged copies of anchors and, where there are any, rejected rows.
    """
    lines = [
        f"| {first} | AUC | good rows kept | bad rows kept | known bad rows kept |",
        "| :--- | ---: | ---: | ---: | ---: |",
    ]
    for name, runs in by_name.items():
        silos = [silo for run in runs for silo in run.results.silos.values()]
        good = [silo.recall for silo in silos if silo.recall is not None]
        bad = [1 - x for silo in silos for x in silo.dropped_by_kind.values()]
        copies = [
            aims[run.results.threshold.aim].copies_kept
            for run in runs
            if (aims := run.results.threshold.aims)
        ]
        shares = (f"{statistics.fmean(x):.0%}" if x else "" for x in (good, bad, copies))
        auc = shown(over_seeds(silo_means(runs, "selection score")))
        lines.append(f"| {name} | {auc} | {' | '.join(shares)} |")
    return lines


def arms_table(by_name: Mapping[str, Runs]) -> list[str]:
    """Rows, held-out loss and share of right answers of every arm, by name of the run."""
    lines = [
        "| trained on | rows | right answers | held-out loss |",
        "| :--- | ---: | ---: | ---: |",
    ]
    words = {
        "mixed": "all rows",
        "random": "as many random rows as are kept",
        "oracle": "the rows with right labels",
    }
    for name, runs in by_name.items():
        for arm in runs[0].arms:
            every = [run.arms[arm] for run in runs]
            known = [a.knowledge_accuracy for a in every if a.knowledge_accuracy is not None]
            losses = [a.heldout_loss for a in every if a.heldout_loss is not None]
            rows = statistics.fmean(a.kept or 0 for a in every)
            said = words.get(arm, f"the kept rows, aim {name}")
            figures = (shown(over_seeds(x)) if x else "" for x in (known, losses))
            lines.append(f"| {said} | {rows:.0f} | {' | '.join(figures)} |")
    return lines


def left_out_table(contents: Sequence[Mapping[str, Any]]) -> list[str]:
    """AUC by kind of damage, by which copies the weights of the parts were found on."""
    found: dict[str, dict[str, list[float]]] = {}
    counts: dict[str, int] = defaultdict(int)
    for content in contents:
        for kind, figures in content["left out"].items():
            counts[kind] += figures["rows"]
            for way, value in figures["auc"].items():
                found.setdefault(kind, {}).setdefault(way, []).append(value)
    ways = list(next(iter(found.values())))
    lines = [f"| kind | rows | {' | '.join(ways)} |", "| :--- |" + " ---: |" * (1 + len(ways))]
    for kind, by_way in sorted(found.items()):
        cells = " | ".join(f"{statistics.fmean(by_way[way]):.3f}" for way in ways)
        lines.append(f"| `{kind}` | {counts[kind]} | {cells} |")
    means = (
        statistics.fmean(statistics.fmean(by_way[way]) for by_way in found.values()) for way in ways
    )
    total = " | ".join(f"{mean:.3f}" for mean in means)
    return [*lines, f"| mean over kinds | {sum(counts.values())} | {total} |"]


def _grades(found: Stored) -> list[str]:
    return [*detection_table(found.first), "", *kept_table(found.runs, first="aim")]


def _wrong_labels(found: Stored) -> list[str]:
    kept = kept_table(found.runs, first="aim")
    return [*detection_table(found.first), "", *kept, "", *arms_table(found.runs)]


def _rejected(found: Stored) -> list[str]:
    kept = kept_table(found.runs, first="rejected rows")
    return [*kept, "", *detection_table(found.runs["without"])]


def _kinds(found: Stored) -> list[str]:
    return [*left_out_table(found.contents), "", *kept_table(found.runs, first="aim")]


ALL = (
    Standalone(
        "grades",
        "People's grades: answers that medical experts found excellent, and incorrect",
        "Nothing is damaged: experts have graded real answers to real health questions. Which "
        "score tells grade 4 from grade 1?",
        _grades,
        "python -m experiments.grades.run --data train.jsonl.gz",
    ),
    Standalone(
        "robustft",
        "Wrong labels made by others: sentences from financial news",
        "FPB with 30, 50, 70 and 0 % wrong answers in four silos, as RobustFT (arXiv 2412.14922) "
        "made them. Are they found, and what does training on the others give?",
        _wrong_labels,
        "python -m experiments.robustft.run --data FOLDER",
    ),
    Standalone(
        "rejected",
        "Rejected rows: advertising in true answers",
        "Half of the rows end with a sentence of advertising. What do forty rejected rows add to "
        "the score?",
        _rejected,
        "python -m experiments.rejected.run --data medical_medquad_en.jsonl.gz",
    ),
    Standalone(
        "kinds",
        "Kinds left out: weights of the parts without the damage they are tested on",
        "Half of the rows are damaged in sixteen ways. The weights are found on copies of anchors with "
        "all kinds, without the kind of the line, and without all kinds like it. AUC by kind.",
        _kinds,
        "python -m experiments.kinds.run --medquad FILE --spanish FILE",
    ),
)


def section(one: Standalone) -> list[str]:
    """Tables of one of them for its page, or that it has not run."""
    lines: list[str] = []
    groups = stored(one.name)
    if not groups:
        return ["", "Not run yet."]
    # What a published base model shows comes first.
    for model, found in sorted(groups.items(), key=lambda group: group[0] == BUILT_IN):
        runs = [run for several in found.runs.values() for run in several]
        own = found.first
        seeds = ", ".join(str(run.results.seeds[0]) for run in own)
        dates = ", ".join(sorted({run.results.date for run in runs}))
        weights = "; ".join(
            f"{f'{name}: ' if name else ''}{', '.join(map(_weights, several))}"
            for name, several in found.runs.items()
        )
        source = ", dequantised from 4-bit" if model in DEQUANTISED else ""
        lines += [
            "",
            f"## {model}{source}",
            "",
            f"Seeds {seeds}; {dates}; {own[0].results.machine}; torch "
            f"{own[0].results.versions['torch']}. Weights of the parts beside the influence, by "
            f"run and seed: {weights}.",
            "",
            *one.table(found),
        ]
    return lines


def stored(name: str) -> dict[str, Stored]:
    """What is stored, by base model."""
    runs: dict[str, dict[str, list[StoredRun]]] = defaultdict(lambda: defaultdict(list))
    contents: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for file in sorted((HERE / name / "results").glob("*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        several = {"": content} if "results_version" in content else content
        model = ""
        for run_name, run in several.items():
            if "results_version" in run:
                read = StoredRun.from_json(run, where=str(file))
                model = read.results.base_model
                runs[model][run_name].append(read)
        contents[model].append(content)
    return {model: Stored(dict(by_name), contents[model]) for model, by_name in runs.items()}


def _weights(run: StoredRun) -> str:
    method = run.results.method
    parts = {
        "loss": method.loss_weight,
        "alignment": method.alignment_weight,
        "rejected rows": method.reject_weight,
    }
    return " and ".join(f"{name} {weight:g}" for name, weight in parts.items() if weight) or "none"
