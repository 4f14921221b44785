"""Markdown tables of one experiment from its stored files. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from clues.results.run import Method
from clues.results.tasks import TaskArm
from experiments.base.origins import ORIGINS
from experiments.statistics import (
    losses_of,
    over_seeds,
    paired_bootstrap,
    share_of_gain,
    shown,
    shown_interval,
    silo_means,
)
from experiments.stored import StoredRun, StoredSeed

# Seconds. Files from before rounds kept theirs have next to none where another variant trained an arm.
TAKEN_OVER = 0.5
DASH = "\N{EN DASH}"
HEADS = {
    "selection score": "**selection score**",
    "perplexity": "perplexity (base)",
    "perplexity, trained": "perplexity (along the checkpoints)",
}


def experiment_tables(seeds: Sequence[StoredSeed]) -> list[str]:
    """All tables of one experiment at one scale with one base model."""
    lines = [_heading(seeds)]
    variants = list(seeds[0].variants)
    for found in (arms_table(seeds), tasks_table(seeds)):
        lines += ["", *found] if found else []
    for block in (scores_table, rules_table, anchors_table, length_table):
        # Variants of the threshold or of the merge have the same scores: one table, all names.
        alike: dict[tuple[str, ...], list[str]] = {}
        for name in variants:
            found = block([seed.variants[name] for seed in seeds])
            alike.setdefault(tuple(found), []).append(name)
        for table, names in alike.items():
            title = [f"**{', '.join(names)}**", ""] if len(alike) > 1 else []
            lines += ["", *title, *table] if table else []
    return [*lines, *_remarks(seeds)]


def arms_table(seeds: Sequence[StoredSeed]) -> list[str]:
    """One line an arm of a variant: what it kept, how well it trained, and paired differences.

    An arm that a variant did not train is taken from the first variant on the same rows.
    """
    variants = list(seeds[0].variants)
    first = [seed.first for seed in seeds]
    lines: list[str] = []
    for name in variants:
        runs = [seed.variants[name] for seed in seeds]
        # Arms that the variant did not train itself.
        others = first if runs[0].arms and _same_rows(runs, first) else runs
        known = [_with_arms(run, other) for run, other in zip(runs, others, strict=True)]
        prefix = f"{name}: " if len(variants) > 1 else ""
        lines += _arm_lines(known, list(runs[0].arms), prefix)
    if not lines:
        return []
    return [
        "| arm | rows | AUC | clean recall | held-out loss (sd) | minus mixed [95 %] "
        "| minus random [95 %] | knowledge (sd) | share of the oracle's gain | training, s |",
        "| :--- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *lines,
    ]


def tasks_table(seeds: Sequence[StoredSeed]) -> list[str]:
    """Share of questions that each arm's model answers right, by task; mean and sd over seeds."""
    lines: list[str] = []
    for name in seeds[0].variants:
        runs = [seed.variants[name] for seed in seeds]
        prefix = f"{name}: " if len(seeds[0].variants) > 1 else ""
        for task, figures in runs[0].results.tasks.items():
            head, questions = figures.headline, figures.questions
            guessing = f"{figures.guessing:.3f}"
            lines.append(f"| {prefix}{task} | guessing | {questions} | {guessing} | | |")
            for arm in figures.arms:
                own = [run.results.tasks[task].arms[arm] for run in runs]
                errors = [answers.figure(f"{head}_stderr") for answers in own]
                cells = (
                    _spread([answers.figure(head) for answers in own]),
                    _mean(errors, 3),
                    _minus_mixed(own),
                )
                lines.append(f"| {prefix}{task} | {arm} | {questions} | {' | '.join(cells)} |")
    if not lines:
        return []
    return [
        "| task | arm | questions | accuracy (sd over seeds) | standard error of a seed "
        "| minus mixed, lowest and highest seed |",
        "| :--- | :--- | ---: | ---: | ---: | ---: |",
        *lines,
    ]


def _minus_mixed(own: Sequence[TaskArm]) -> str:
    gaps = [answers.minus_mixed.value for answers in own if answers.minus_mixed]
    return f"{min(gaps):+.3f}, {max(gaps):+.3f}" if gaps else DASH


def _same_rows(runs: Sequence[StoredRun], first: Sequence[StoredRun]) -> bool:
    return all(
        {n: (silo.rows, silo.clean) for n, silo in run.results.silos.items()}
        == {n: (silo.rows, silo.clean) for n, silo in other.results.silos.items()}
        for run, other in zip(runs, first, strict=True)
    )


def _with_arms(run: StoredRun, other: StoredRun) -> StoredRun:
    """The run with arms of another one where it has none of that name."""
    results = run.results.model_copy(update={"arms": {**other.arms, **run.arms}})
    losses = {**other.heldout_losses, **run.heldout_losses}
    return replace(run, results=results, heldout_losses=losses)


def _arm_lines(runs: Sequence[StoredRun], arms: Sequence[str], prefix: str) -> list[str]:
    lines: list[str] = []
    for arm in arms:
        own = [run.arms[arm] for run in runs]
        cells = [
            _mean([found.kept for found in own], 0),
            _mean([found.auc for found in own], 3),
            _mean([found.recall for found in own], 3),
            _spread([found.heldout_loss for found in own]),
            _difference(runs, arm, "mixed"),
            _difference(runs, arm, "random"),
            _spread([found.knowledge_accuracy for found in own]),
            _share(runs, arm),
            _mean([found.seconds for found in own if found.seconds >= TAKEN_OVER], 0),
        ]
        shown_name = f"**{arm}**" if arm == "clues" else arm
        lines.append(f"| {prefix}{shown_name} | " + " | ".join(cells) + " |")
    return lines


def scores_table(runs: Sequence[StoredRun]) -> list[str]:
    """AUC by score and by kind of damage, mean over silos and then over seeds."""
    silos = [silo for run in runs for silo in run.results.silos.values() if silo.detection]
    if not silos:
        return []
    kinds = sorted({k for s in silos for k in s.detection["selection score"].auc_by_kind})
    if not kinds:
        return []
    lines = [
        f"| score | AUC | {' | '.join(kinds)} |",
        "| :--- | ---: |" + " ---: |" * len(kinds),
    ]
    for name in silos[0].detection:
        per_seed = silo_means(runs, name)
        cells = [shown(over_seeds(per_seed)) if per_seed else DASH]
        for kind in kinds:
            values = silo_means(runs, name, kind)
            cells.append(f"{sum(values) / len(values):.3f}" if values else DASH)
        lines.append(f"| {HEADS.get(name, name)} | " + " | ".join(cells) + " |")
    return lines


def rules_table(runs: Sequence[StoredRun]) -> list[str]:
    """Every threshold rule on the same scores: what it keeps and what it drops."""
    found = [run.analysis["rules"] for run in runs if run.analysis]
    if not found:
        return []
    kinds = sorted(
        {k for rules in found for r in rules.values() if r for k in r if k.startswith("dropped ")}
    )
    if not kinds:
        return []
    heads = " | ".join(kinds)
    lines = [
        f"| rule | clean recall | lowest silo | precision | kept | {heads} |",
        "| :--- | ---: | ---: | ---: | ---: |" + " ---: |" * len(kinds),
    ]
    for rule in found[0]:
        own = [rules[rule] for rules in found if rules.get(rule)]
        keys = ("recall", "lowest recall", "precision", "share", *kinds)
        lines.append(f"| {rule} | " + " | ".join(_mean(_under(own, key), 3) for key in keys) + " |")
    return lines


def anchors_table(runs: Sequence[StoredRun]) -> list[str]:
    """Clean recall and kept share when fewer anchors, drawn anew, set the threshold."""
    found = [run.analysis.get("anchors") for run in runs if run.analysis]
    found = [draws for draws in found if draws]
    if not found:
        return []
    lines = [
        "| anchors | rule | clean recall | lowest to highest | kept | lowest to highest |",
        "| ---: | :--- | ---: | ---: | ---: | ---: |",
    ]
    for n in found[0]:
        for rule in found[0][n]:
            own = [draws[n][rule] for draws in found if rule in draws.get(n, {})]
            cells: list[str] = []
            for key in ("recall", "share"):
                spreads = [o[key] for o in own if o[key]]
                cells.append(f"{_average([s['mean'] for s in spreads]):.3f}")
                low, high = min(s["min"] for s in spreads), max(s["max"] for s in spreads)
                cells.append(f"{low:.2f} to {high:.2f}")
            lines.append(f"| {n} | {rule} | " + " | ".join(cells) + " |")
    return lines


def length_table(runs: Sequence[StoredRun]) -> list[str]:
    """How much of each score is length."""
    found = [run.analysis["length"] for run in runs if run.analysis]
    if not found:
        return []
    lines = [
        "| score | rank correlation with length, clean rows | AUC at equal length |",
        "| :--- | ---: | ---: |",
    ]
    for name in found[0]:
        own = [scores[name] for scores in found if name in scores]
        cells = (_mean(_under(own, "spearman"), 2), _mean(_under(own, "auc at equal length"), 3))
        lines.append(f"| {HEADS.get(name, name)} | " + " | ".join(cells) + " |")
    return lines


def score_in_words(methods: Sequence[Method]) -> str:
    """What made the scores of stored runs; weights that differ from run to run are all named."""
    first = methods[0]
    if first.score != "influence":
        return f"{first.score}, {first.trajectory}"
    others: list[str] = []
    loss = "base loss" if first.loss_under == "base" else "loss"
    for name, weights in (
        (loss, [method.loss_weight for method in methods]),
        ("alignment", [method.alignment_weight for method in methods]),
    ):
        if any(weights):
            shown_weights = weights[:1] if len(set(weights)) == 1 else weights
            others.append(f"{'/'.join(f'{w:g}' for w in shown_weights)} {name}")
    joined = f" with {' and '.join(others)} ({first.parts})" if others else ""
    return f"influence, {first.form}, {first.trajectory}{joined}"


def _heading(seeds: Sequence[StoredSeed]) -> str:
    runs = [run.results for seed in seeds for run in seed.variants.values()]
    first = runs[0]
    dates = ", ".join(sorted({run.date for run in runs}))
    # The first variant of every seed: others differ in what the table below names.
    firsts = [seed.first.results.method for seed in seeds]
    how = f"{score_in_words(firsts)}; {first.method.rule}"
    questions = ""
    if first.questions:
        questions = f" {first.questions} questions, guessing scores {first.guessing:.2f}."
    machines = "; ".join(sorted({run.machine for run in runs}))
    base = seeds[0].base_model
    # A published model of ours is not quite the published one, and every figure has to say so.
    short = ", dequantised from 4-bit" if base in ORIGINS else ""
    return (
        f"Base model {base}{short}; {how}; seeds "
        f"{', '.join(str(seed.seed) for seed in seeds)}; {dates}; {machines}; torch "
        f"{first.versions['torch']}.{questions}"
    )


def _remarks(seeds: Sequence[StoredSeed]) -> list[str]:
    """Agreement, hard rows and cost, in sentences; what all variants say is said once."""
    first = next(iter(seeds[0].variants))
    said = {
        name: _sentences([seed.variants[name] for seed in seeds], first)
        for name in seeds[0].variants
    }
    of_all = [s for s in said[first] if all(s in sentences for sentences in said.values())]
    by_rest: dict[str, list[str]] = {}
    for name, sentences in said.items():
        by_rest.setdefault(" ".join(s for s in sentences if s not in of_all), []).append(name)
    lines = ["", " ".join(of_all)] if of_all else []
    for rest, names in by_rest.items():
        lines += ["", f"**{', '.join(names)}**: {rest}"] if rest else []
    return lines


def _sentences(runs: Sequence[StoredRun], first: str) -> list[str]:
    """What is said of one variant."""
    said: list[str] = []
    analyses = [run.analysis for run in runs if run.analysis]
    agree = [a["checkpoints"]["agreement"] for a in analyses if a["checkpoints"]["agreement"]]
    if agree:
        # Where nothing is damaged there is nothing to tell apart.
        alone = [
            f"{_average(values):.2f}"
            for values in zip(*(a["checkpoints"]["auc"].values() for a in analyses), strict=True)
        ]
        reached = (
            f"; alone they reach AUC {', '.join(alone)}, in order (influence)" if alone else ""
        )
        said.append(
            f"Checkpoints rank rows alike with a correlation of {_average(agree):.2f}{reached}."
        )
    again = [a["agreement with first"] for a in analyses if a.get("agreement with first")]
    if again:
        said.append(f"Agreement with {first}: {_average(again):.2f}.")
    hard: dict[str, list[float]] = {}
    for analysis in analyses:
        for kind, share in analysis["hard"].get("share wrong for all", {}).items():
            hard.setdefault(kind, []).append(share)
    if hard:
        shares = ", ".join(f"{kind} {_average(v):.0%}" for kind, v in hard.items())
        said.append(f"Rows that every selector gets wrong: {shares}.")
    train = _average([run.results.seconds.train for run in runs])
    score = _average([run.results.seconds.score for run in runs])
    said.append(f"Selection took {train:.0f} s of warm-up and {score:.0f} s of scoring.")
    return said


def _difference(runs: Sequence[StoredRun], arm: str, other: str) -> str:
    both = [run.heldout_losses for run in runs if {arm, other} <= set(run.heldout_losses)]
    if arm == other or not both:
        return DASH
    return shown_interval(paired_bootstrap([b[arm] for b in both], [b[other] for b in both]))


def _share(runs: Sequence[StoredRun], arm: str) -> str:
    if arm in ("mixed", "oracle") or not {"mixed", "oracle"} <= set(runs[0].arms):
        return DASH
    share = share_of_gain(losses_of(runs), arm)
    return "none to gain" if share is None else f"{share:.0%}"


def _under(own: Sequence[Mapping[str, Any]], key: str) -> list[float | None]:
    return [found.get(key) for found in own]


def _mean(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    return f"{_average(known):.{digits}f}" if known else DASH


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return DASH
    found = over_seeds(known)
    return f"{found.mean:.3f}" if found.sd is None else f"{found.mean:.3f} ({found.sd:.3f})"


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values)
