"""Facts of a run as name and text: its threshold, and how to repeat it."""

from collections.abc import Mapping
from typing import Any

from clues.report.cells import clean, need, number


def threshold_pairs(threshold: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the threshold is, in which units, by which rule, and how sure: name and text."""
    value, rule, units = (
        need(threshold, key, "results.threshold") for key in ("value", "rule", "units")
    )
    interval = threshold.get("interval")
    ends = f"{number(interval[0])} to {number(interval[1])}" if interval else "not measured"
    return [
        ("Value", "not measured" if value is None else number(value)),
        ("Units", clean(units)),
        ("Rule", clean(rule)),
        ("Bootstrap interval", ends),
        *_assurance(threshold),
        ("Anchors", number(threshold.get("n_anchors"), 0)),
    ]


def _assurance(threshold: Mapping[str, Any]) -> list[tuple[str, str]]:
    assurance, share = threshold.get("assurance"), threshold.get("quantile")
    if assurance is None or share is None:
        return []
    text = f"{1 - share:.0%}, with probability {assurance:.1%}, if they score like the anchors"
    return [("Clean rows kept, at least", text)]


def repeat_pairs(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What somebody needs who wants the same run again: name and text."""

    def join(key: str, show: str = "{} {}") -> str:
        return ", ".join(show.format(*pair) for pair in need(results, key, "results").items())

    seconds = {name: number(s, 1) for name, s in need(results, "seconds", "results").items()}
    pairs = [
        ("Recipe hash", need(results, "recipe_hash", "results")),
        ("Seeds", ", ".join(str(seed) for seed in need(results, "seeds", "results"))),
        ("Base model", need(results, "base_model", "results")),
        ("Method", join("method", "{}: {}")),
        ("Versions", join("versions")),
        ("Machine", need(results, "machine", "results")),
        ("Date", need(results, "date", "results")),
        ("Seconds", ", ".join(f"{name} {s}" for name, s in seconds.items())),
    ]
    return [(key, clean(text) if text not in (None, "") else "not recorded") for key, text in pairs]
