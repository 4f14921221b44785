"""Who takes part in a run, and who was left out, when and why; a continued run reads it back."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clues.errors import QuorumError
from clues.rundir import read_record, write_record

KEYS = ("silo", "stage", "time", "why")


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
        empty = {"recipe_hash": recipe_hash, "absent": [], "stops": []}
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
        now = datetime.now(UTC).isoformat(timespec="seconds")
        found = [
            {"silo": name, "stage": stage, "time": now, "why": missing[name]}
            for name in sorted(missing)
        ]
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
                + "\n".join(missing[name] for name in sorted(missing))
                + "\nMend that and run again: what is finished is kept. Or set federation.quorum "
                "to go on with fewer."
            )

    @property
    def stops(self) -> list[dict[str, Any]]:
        """Silos that were missing when the run stopped, and were asked again after it."""
        return [{key: stop[key] for key in KEYS} for stop in self.record["stops"]]

    def to_json(self) -> list[dict[str, Any]]:
        """Who is left out, for the results."""
        return [{key: absence[key] for key in KEYS} for absence in self.record["absent"]]
