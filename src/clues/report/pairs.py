"""Facts of a run as name and text: its threshold, and how to repeat it."""

from clues.config import Aim
from clues.report.cells import clean, number, percent
from clues.results.run import Results, ThresholdResult


def threshold_pairs(threshold: ThresholdResult) -> list[tuple[str, str]]:
    """What the threshold is, in which units, by which rule, and how sure: name and text."""
    value, interval = threshold.value, threshold.interval
    ends = f"{number(interval[0])} to {number(interval[1])}" if interval else "not measured"
    return [
        ("Value", "not measured" if value is None else number(value)),
        ("Units", _units(threshold)),
        ("Rule", clean(rule_in_words(threshold.rule, threshold.aim))),
        ("Bootstrap interval", ends),
        *_assurance(threshold),
        *_aims(threshold),
        ("Anchors", number(threshold.n_anchors, 0)),
    ]


def rule_in_words(rule: str, aim: Aim) -> str:
    """The rule, and that its cut may be raised."""
    return rule if aim == "keep" else f"{rule}, aim {aim}"


def _units(threshold: ThresholdResult) -> str:
    if threshold.units != "anchor":
        return f"{clean(threshold.units)}: scores as they are"
    if threshold.rule == "anchor_tolerance":
        return (
            "zero is the middle of the anchors' scores, -1 by definition this rule's own threshold"
        )
    return "zero is the middle of the anchors' scores, and one their spread"


def _assurance(threshold: ThresholdResult) -> list[tuple[str, str]]:
    assurance = threshold.assurance
    if assurance is None:
        return []
    text = f"{1 - threshold.quantile:.0%}, with probability {assurance:.1%}, if they score like the anchors"
    return [("Clean rows kept, at least", text)]


def _aims(threshold: ThresholdResult) -> list[tuple[str, str]]:
    """What the threshold is for, and what each aim would cost and gain on public rows."""
    names = {"keep": "Aim keep: spare clean rows", "model": "Aim model: serve the joint model"}
    return [
        (
            names[aim] + (" (this run)" if aim == threshold.aim else ""),
            f"threshold {number(cut.value)}; keeps {percent(cut.anchors_kept)} of the anchors and "
            f"{percent(cut.copies_kept)} of bad rows: damaged copies of them, and rejected rows if any",
        )
        for aim, cut in threshold.aims.items()
    ]


def weak_promise(threshold: ThresholdResult) -> str:
    """What to say where the anchors are too few for what the rule promises; else nothing."""
    if threshold.assurance is None or threshold.assurance >= threshold.confidence:
        return ""
    return (
        f"{threshold.n_anchors} anchor rows could be used, too few: the threshold keeps at least "
        f"{1 - threshold.quantile:.0%} of the clean rows with probability {threshold.assurance:.0%} "
        f"instead of {threshold.confidence:.0%}. Add checked rows, or let longer ones in."
    )


def repeat_pairs(results: Results) -> list[tuple[str, str]]:
    """What somebody needs who wants the same run again: name and text."""
    pairs = [
        ("Recipe hash", results.recipe_hash[:12]),
        ("Seeds", ", ".join(str(seed) for seed in results.seeds)),
        ("Base model", results.base_model),
        ("Method", ", ".join(f"{k}: {v}" for k, v in results.method if v is not None)),
        ("Versions", ", ".join(f"{name} {text}" for name, text in results.versions.items())),
        ("Machine", results.machine),
        ("Date", results.date),
        ("Seconds", ", ".join(f"{name} {number(took, 1)}" for name, took in results.seconds)),
    ]
    return [(key, clean(text) if text else "not recorded") for key, text in pairs]
