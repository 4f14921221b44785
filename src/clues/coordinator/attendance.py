"""Who takes part in a run, and who was left out, when and why; a continued run reads it back."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clues.errors import QuorumError
from clues.printable import printable
from clues.rundir import read_record, write_record

KEYS = ("silo", "stage", "time", "why")
MAX_WHY = 600  # characters; a reason may repeat what a silo has sent


class Attendance:
    """The list of silos that take part.

    A silo that is left out stays out until the end of the run: arms are then compared on the same
    silos, and whoever selects has scored. Another recipe asks everyone again.
    """

    def __init__(self, path: Path, *, recipe_hash: str, quorum: int | None) -> None:
        """Read back what an earlier process of the run wrote.

        Args:
            path: `absences.json` of the coordinator; written when somebody is missing.
            recipe_hash: absences under another recipe do not count.
            quorum: how many silos must be left; None for all of them.
        """
        self.path, self.quorum = path, quorum
        self.members: dict[str, dict[str, Any]] = {}
        self._begun: list[str] = []
        empty = {"recipe_hash": recipe_hash, "absent": [], "stops": [], "remarks": []}
        advice = "Put it back, or remove it: then every silo is asked again."
        stored = read_record(path, advice=advice) if path.exists() else empty
        self.record: dict[str, Any] = stored if stored["recipe_hash"] == recipe_hash else empty

    @property
    def left_out(self) -> dict[str, dict[str, Any]]:
        """Silos that take no part any more."""
        return {absence["silo"]: absence for absence in self.record["absent"]}

    def begin(self, stage: str) -> dict[str, dict[str, Any]]:
        """Silos that a stage began with, also where one was lost on the way.

        So a continued run finds the same inputs for the stages that are done.
        """
        if stage not in self._begun:
            self._begun.append(stage)
        gone = {n: a["facts"] for n, a in self.left_out.items() if stage in a["began"]}
        return {**self.members, **gone}

    def leave_out(self, stage: str, missing: Mapping[str, str], *, n_left: int) -> None:
        """Go on without some silos.

        Args:
            stage: where they are missing.
            missing: why, by silo.
            n_left: how many are there.

        Raises:
            QuorumError: too few are there. Nobody is left out then; the next try asks them again.
        """
        if not missing:
            return
        found = _entries(stage, missing)
        needed = self.quorum or len(missing) + n_left + len(self.left_out)
        stops = n_left < needed
        if stops:
            self.record["stops"] += found
        else:
            for absence in found:
                facts = self.members.pop(absence["silo"], {})
                began = self._begun if facts else []
                self.record["absent"].append({**absence, "facts": facts, "began": [*began]})
        write_record(self.path, self.record)
        if stops:
            raise QuorumError(
                f"stage {stage}: {n_left} silos are left and {needed} are needed.\n"
                + "\n".join(entry["why"] for entry in found)
                + "\nMend that and run again: what is finished is kept. Or set federation.quorum "
                "to go on with fewer."
            )

    def note_stop(self, stage: str, waiting: Mapping[str, str]) -> None:
        """Note for whom the run stops now; they are asked again."""
        self.record["stops"] += _entries(stage, waiting)
        write_record(self.path, self.record)

    def remark(self, stage: str, missing: Mapping[str, str]) -> None:
        """Note who gave no good answer where none is needed; they still take part.

        Only the last call counts: the question is asked anew every time.
        """
        before = self.record.get("remarks", [])
        self.record["remarks"] = _entries(stage, missing)
        if before or missing:
            write_record(self.path, self.record)

    @property
    def stops(self) -> list[dict[str, Any]]:
        """Silos that were missing when the run stopped, and were asked again after it."""
        return [{key: stop[key] for key in KEYS} for stop in self.record["stops"]]

    def to_json(self) -> list[dict[str, Any]]:
        """Who is left out, or gave no good answer where none is needed, for the results."""
        found = [*self.record["absent"], *self.record.get("remarks", [])]
        return [{key: absence[key] for key in KEYS} for absence in found]


def _entries(stage: str, missing: Mapping[str, str]) -> list[dict[str, str]]:
    """One entry a silo; the one place where a reason enters a record, and so is made printable."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return [
        {"silo": name, "stage": stage, "time": now, "why": printable(missing[name], MAX_WHY)}
        for name in sorted(missing)
    ]
