"""The goals that the experiments were built for, beside what came out."""

import statistics
from collections.abc import Callable, Sequence

from experiments.statistics import losses_of, share_of_gain, silo_means
from experiments.stored import StoredRun, StoredSeed

Seeds = Sequence[StoredSeed]  # of one experiment, scale and base model
AUC = ("medicalqa", "fiqa", "mmedbench")
FEDERATED, MERGED = 0.96, 0.91  # shares of the oracle's gain: the paper's claims
RECALL = 0.99
# Of a published base: our own goals.
SCORE_AUC, SWAP_AUC = 0.95, 0.90
MODEL_GAIN, KEEP_GAIN, KEEP_RECALL = 1.0, 0.96, 0.95
HEAD = ("| goal | experiment | came out | met |", "| :--- | :--- | :--- | :--- |")
OURS = ("selection score", "influence")  # the second is a part of the first


def goals(stored: Callable[[str], Seeds]) -> list[str]:
    """A table of all goals; what has not run is named as such.

    Args:
        stored: the seeds of an experiment by its name; empty where it has not run.
    """
    lines = [*HEAD]
    for name in AUC:
        lines += _rows(f"AUC above every other selector's: {name}", name, stored, _best_auc)
    federated = f"at least {FEDERATED:.0%} of the oracle's gain in held-out loss, federated"
    for name in (*AUC, "levels", "thresholds"):
        lines += _rows(federated, name, stored, _federated_gain)
    merged = f"at least {MERGED:.0%} of the oracle's gain, merged"
    lines += _rows(merged, "merging", stored, _merged_gain)
    recall = f"clean recall of at least {RECALL:.2f} under the default rule"
    lines += _rows(recall, "levels", stored, _clean_recall)
    return lines


def goals_of_published_bases(stored: Callable[[str], Seeds]) -> list[str]:
    """A table of the goals for a base model that others have published.

    Args:
        stored: the seeds of an experiment by its name; empty where it has not run.
    """
    lines = [*HEAD]
    detection = (
        f"MedQuAD, 40 % damaged: AUC of at least {SCORE_AUC:.2f}, answers swapped {SWAP_AUC:.2f}"
    )
    lines += _rows(detection, "thresholds", stored, _detection)
    for name in ("thresholds", *AUC):
        lines += _rows(f"AUC above every other selector's: {name}", name, stored, _best_auc)
    keep = f"aim `keep`: {KEEP_GAIN:.0%} of the oracle's gain, clean recall {KEEP_RECALL:.2f}"
    lines += _rows(keep, "aims", stored, lambda seeds: _aim(seeds, "keep", KEEP_GAIN, KEEP_RECALL))
    model = f"aim `model`: {MODEL_GAIN:.0%} of the oracle's gain"
    return lines + _rows(model, "aims", stored, lambda seeds: _aim(seeds, "model", MODEL_GAIN, 0.0))


def _detection(seeds: Seeds) -> list[tuple[str, str, bool]]:
    runs = [seed.first for seed in seeds]
    whole = statistics.fmean(silo_means(runs, "selection score"))
    swap = statistics.fmean(silo_means(runs, "selection score", "swap"))
    variant = next(iter(seeds[0].variants))
    met = whole >= SCORE_AUC and swap >= SWAP_AUC
    return [(_where(seeds, variant), f"{whole:.3f}; swapped {swap:.3f}", met)]


def _aim(seeds: Seeds, aim: str, gain: float, least: float) -> list[tuple[str, str, bool]]:
    """Share of the oracle's gain, and of the clean rows kept, under one aim."""
    first, runs = [seed.first for seed in seeds], [seed.variants[aim] for seed in seeds]
    # Arms that a variant did not train are the first variant's: rows and scores are the same.
    losses = [
        {**a, "clues": b["clues"]} for a, b in zip(losses_of(first), losses_of(runs), strict=True)
    ]
    share = share_of_gain(losses, "clues")
    recall = _recall(runs)
    met = share is not None and share >= gain and recall >= least
    return [(_where(seeds, aim), f"{_in_words(share)}; clean recall {recall:.3f}", met)]


def _recall(runs: Sequence[StoredRun]) -> float:
    """Share of the clean rows that are kept, mean over silos and seeds."""
    return statistics.fmean(
        silo.recall
        for run in runs
        for silo in run.results.silos.values()
        if silo.recall is not None
    )


def _in_words(share: float | None) -> str:
    return "the oracle gains nothing" if share is None else f"{share:.0%}"


def _rows(
    goal: str,
    name: str,
    stored: Callable[[str], Seeds],
    judge: Callable[[Seeds], list[tuple[str, str, bool]]],
) -> list[str]:
    seeds = stored(name)
    if not seeds:
        return [f"| {goal} | {name} | not run yet | |"]
    return [
        f"| {goal} | {where} | {figure} | {'yes' if met else 'no'} |"
        for where, figure, met in judge(seeds)
    ]


def _best_auc(seeds: Seeds) -> list[tuple[str, str, bool]]:
    """Of the first variant, as its table of scores says it."""
    variant = next(iter(seeds[0].variants))
    runs = [seed.variants[variant] for seed in seeds]
    found: dict[str, float] = {}
    for name in next(iter(runs[0].results.silos.values())).detection:
        found[name] = statistics.fmean(silo_means(runs, name))
    ours = found["selection score"]
    best = max((name for name in found if name not in OURS), key=found.__getitem__)
    return [(_where(seeds, variant), f"{ours:.3f}; {best} {found[best]:.3f}", ours > found[best])]


def _federated_gain(seeds: Seeds) -> list[tuple[str, str, bool]]:
    return _gains(seeds, FEDERATED, lambda method: method == "fedavg")


def _merged_gain(seeds: Seeds) -> list[tuple[str, str, bool]]:
    return _gains(seeds, MERGED, lambda method: method != "fedavg")


def _gains(
    seeds: Seeds, goal: float, is_meant: Callable[[str], bool]
) -> list[tuple[str, str, bool]]:
    """Of every variant that trained mixed, clues and the oracle."""
    found: list[tuple[str, str, bool]] = []
    for variant in seeds[0].variants:
        runs = [seed.variants[variant] for seed in seeds]
        trained = {"mixed", "clues", "oracle"} <= set(runs[0].arms)
        if trained and is_meant(runs[0].results.method.combine):
            share = share_of_gain(losses_of(runs), "clues")
            met = share is not None and share >= goal
            found.append((_where(seeds, variant), _in_words(share), met))
    return found


def _clean_recall(seeds: Seeds) -> list[tuple[str, str, bool]]:
    found: list[tuple[str, str, bool]] = []
    for variant in seeds[0].variants:
        recall = _recall([seed.variants[variant] for seed in seeds])
        found.append((_where(seeds, variant), f"{recall:.3f}", recall >= RECALL))
    return found


def _where(seeds: Seeds, variant: str) -> str:
    name = seeds[0].experiment
    return f"{name}, {variant}" if len(seeds[0].variants) > 1 else name
