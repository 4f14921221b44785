"""On whose rows a threshold has decided: rows that change afterwards are noticed before the work."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clues.config import short
from clues.errors import RecipeMismatchError
from clues.rundir import read_record, write_record

# What a silo may ask to be asked again, because its own files are not what that stage wrote.
AGAIN = ("duplicates", "train", "score", "select")
Members = Mapping[str, tuple[str, str]]


def stages_from(again: str) -> tuple[str, ...]:
    """The stages to ask again, from the one that a silo names; none where it names none."""
    return AGAIN[AGAIN.index(again) :] if again in AGAIN else ()


@dataclass(frozen=True)
class Decided:
    """The silos whose rows made the scores that a threshold has decided about, by recipe."""

    path: Path
    recipe_hash: str

    def note(self, members: Members) -> None:
        """Remember whose rows they are, before the first silo decides.

        Args:
            members: domain and token of the rows of every silo of the warm-up.
        """
        now = {name: list(facts) for name, facts in members.items()}
        write_record(self.path, {**self._read(), self.recipe_hash: now})

    def check(self, members: Members) -> None:
        """Refuse rows with which the scores would be others, where a silo has decided already.

        A silo takes one threshold under one recipe. Training again would therefore end at the
        first silo whose rows are the same, after all the work.

        Raises:
            RecipeMismatchError: rows were changed, added or removed, and others have decided.
        """
        before: dict[str, list[str]] = self._read().get(self.recipe_hash, {})
        now = {name: list(facts) for name, facts in members.items()}
        held = [name for name in before if name in now and now[name][1] == before[name][1]]
        if now == before or not held:
            return
        changed = [n for n in now if n in before and now[n] != before[n]]
        raise RecipeMismatchError(
            f"{self._what(changed, now, before)} since a threshold has decided under this recipe "
            f"({short(self.recipe_hash)}). The scores of all silos would be others, and a silo takes one "
            f"threshold under one recipe, so {_names(held)} would refuse after the training. "
            "Start the run in a new folder, or put back what was there."
        )

    @staticmethod
    def _what(changed: list[str], now: Mapping[str, Any], before: Mapping[str, Any]) -> str:
        new, gone = (sorted(set(a) - set(b)) for a, b in ((now, before), (before, now)))
        said = [f"the rows or the domain of {_names(changed)} changed"] if changed else []
        said += [f"{_names(new)} joined"] if new else []
        said += [f"{_names(gone)} left"] if gone else []
        text = " and ".join(said)
        return text[0].upper() + text[1:]

    def _read(self) -> dict[str, Any]:
        if not self.path.exists():
            return {}
        advice = "Put it back, or start the run in a new folder."
        return read_record(self.path, advice=advice)


def _names(names: list[str]) -> str:
    return f"silo {names[0]}" if len(names) == 1 else f"silos {', '.join(names)}"
