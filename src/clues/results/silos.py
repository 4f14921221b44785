"""What a silo tells about its own selection: little, unless it shares diagnostics."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from clues.errors import DataError
from clues.results.base import Figures
from clues.results.problems import first_problem


class ByHand(Figures):
    """Rows that a person decided about.

    Attributes:
        kept: number of rows that a person keeps, whatever they score.
        dropped: number of rows that a person drops.
    """

    kept: int
    dropped: int


class Detection(Figures):
    """How well one score tells clean rows from damaged ones in a silo with labels.

    Attributes:
        accuracy: share of the rows that are rightly kept or dropped. It and the other figures of
            keeping are there for scores compared with the deciding one.
        auc: how often a clean row scores above a damaged one; null where all rows are alike.
        auc_by_kind: the same, with one kind of damage at a time.
        f1: harmonic mean of precision and recall under the score's own threshold.
        kept: number of rows that the score's own threshold keeps.
        precision: share of the rows kept by it that are clean.
        recall: share of the clean rows that it keeps.
        share: share of all rows that it keeps.
    """

    accuracy: float | None = None
    auc: float | None = None
    auc_by_kind: Mapping[str, float | None] = {}
    f1: float | None = None
    kept: int | None = None
    precision: float | None = None
    recall: float | None = None
    share: float | None = None


class SiloResult(Figures):
    """One silo. Only the first three keys and the threshold are there for every silo.

    Attributes:
        domain: name of the public rows that it is compared with.
        rows: number of rows; rounded to tens unless the silo shares diagnostics.
        kept: number of rows kept; rounded likewise.
        accuracy: share of the rows that are rightly kept or dropped. It and the other figures
            about clean rows are there where the silo has labels and shares diagnostics.
        auc: how often a clean row scores above a damaged one.
        by_hand: rows that a person decided about, where there are any.
        clean: number of rows that the labels call clean.
        delta: that goes with epsilon.
        detection: how well each score tells clean rows from damaged ones, by the score's name.
        dropped_by_kind: share of the damaged rows that are dropped, by kind of damage.
        epsilon: that the silo's trainings have spent, where it trains with differential privacy.
        f1: harmonic mean of precision and recall.
        left_out: number of rows left out because their question stands in another silo, rounded to
            tens; there where the recipe looks for such rows.
        precision: share of the kept rows that are clean.
        recall: share of the clean rows that are kept.
        score_bands: pairs of a share and a score: this share of the silo's rows scores lower.
        threshold: in the silo's own units where it shares diagnostics, else the one of all silos;
            null for rule `ratio`.
    """

    domain: str
    rows: int
    kept: int
    # By name from here on: what comes from a silo comes sorted.
    accuracy: float | None = None
    auc: float | None = None
    by_hand: ByHand | None = None
    clean: int | None = None
    delta: float | None = None
    detection: Mapping[str, Detection] = {}
    dropped_by_kind: Mapping[str, float] = {}
    epsilon: float | None = None
    f1: float | None = None
    left_out: int | None = None
    precision: float | None = None
    recall: float | None = None
    score_bands: tuple[tuple[float, float], ...] = ()
    threshold: float | None

    @property
    def labelled(self) -> bool:
        """Whether the silo says how its selection does by its labels."""
        return "precision" in self.model_fields_set


def silo_result(
    name: str, known: Mapping[str, Any], *, domain: str, shared: Mapping[str, Any]
) -> SiloResult:
    """Put together what the coordinator knows of a silo and what the silo shares.

    Args:
        name: of the silo, for errors.
        known: rounded counts and the threshold; what the silo itself says about them stands in
            their place.
        domain: as the silo's first message said it.
        shared: diagnostics of its evaluate-reply.

    Raises:
        DataError: what it shares are no diagnostics of this version.
    """
    problem = "unknown key domain" if "domain" in shared else ""
    try:
        # As JSON, where a list stands for a tuple and nothing is taken for another type.
        content = json.dumps({"domain": domain, **known, **shared})
        found = SiloResult.model_validate_json(content)
    except ValidationError as error:
        found, problem = None, problem or first_problem(error)
    if problem or found is None:
        raise DataError(
            f"silo {name}: its diagnostics cannot be read: {problem}. Install the same version of "
            "clues on both sides."
        )
    return found
