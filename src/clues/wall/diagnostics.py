"""What a silo that shares diagnostics may say of its rows: every figure named, typed and bounded.

The silo makes it, and the coordinator reads it with the same definitions: what is not listed here
cannot leave, and cannot arrive. All figures stand side by side, as in results.json.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from clues.config import MAX_KINDS
from clues.errors import DataError
from clues.printable import quoted

OTHER = "other"  # every label that nobody has named beforehand
SELECTION, INFLUENCE = "selection score", "influence"
SCORES = (SELECTION, INFLUENCE, "perplexity", "perplexity, trained", "length")
BLOCK = re.compile(rf"{INFLUENCE}, (block [0-9]{{1,4}}|outside blocks)")
MAX_SCORES, MAX_BANDS, FARTHEST = 2000, 16, 1e12

Count = Annotated[int, Field(ge=0, le=10**12)]
Rate = Annotated[float, Field(ge=0.0, le=1.0)]
Score = Annotated[float, Field(ge=-FARTHEST, le=FARTHEST)]
ByKind = Annotated[dict[str, Rate | None], Field(max_length=MAX_KINDS + 1)]
BESIDE = {"precision", "recall", "f1", "kept", "share"}  # of a score beside the deciding one
FOUND = ("clean", "precision", "recall", "f1", "accuracy", "auc", "detection")


class Figures(BaseModel):
    """Frozen, and nothing is turned into another type: what does not fit is refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )


class ByHand(Figures):
    """Rows that a person has decided about."""

    kept: Count
    dropped: Count


class Detection(Figures):
    """How well one score tells clean rows from damaged ones, and what its own threshold keeps.

    The last six are there for scores beside the one that decides.
    """

    auc: Rate | None
    auc_by_kind: ByKind
    precision: Rate | None = None
    recall: Rate | None = None
    f1: Rate | None = None
    accuracy: Rate | None = None
    kept: Count | None = None
    share: Rate | None = None


class Diagnostics(Figures):
    """Everything that an evaluate-reply may hold; all of it can be left out.

    Attributes:
        rows: that were scored.
        kept: of these.
        threshold: in the silo's raw scores.
        score_bands: shares of the rows, each with the score below which it lies.
        by_hand: rows that a person has decided about.
        clean: rows without a label of damage.
        precision: share of the kept rows that are clean.
        recall: share of the clean rows that are kept.
        f1: of the two.
        accuracy: share of rows that are rightly kept or dropped.
        auc: how often a clean row scores above a damaged one.
        detection: by score.
        dropped_by_kind: share of dropped rows, by kind of damage.
        epsilon: that differential privacy has spent.
        delta: that goes with it.
    """

    rows: Count | None = None
    kept: Count | None = None
    threshold: Score | None = None
    score_bands: Annotated[
        list[Annotated[list[Score], Field(min_length=2, max_length=2)]],
        Field(max_length=MAX_BANDS),
    ] = []
    by_hand: ByHand | None = None
    clean: Count | None = None
    precision: Rate | None = None
    recall: Rate | None = None
    f1: Rate | None = None
    accuracy: Rate | None = None
    auc: Rate | None = None
    detection: Annotated[dict[str, Detection], Field(max_length=MAX_SCORES)] = {}
    dropped_by_kind: Annotated[dict[str, Rate], Field(max_length=MAX_KINDS + 1)] = {}
    epsilon: Annotated[float, Field(ge=0.0)] | None = None
    delta: Rate | None = None

    @model_validator(mode="after")
    def _whole(self) -> "Diagnostics":
        """Figures that belong together come together."""
        given = self.model_fields_set
        if given & set(FOUND) and not set(FOUND) <= given:
            raise ValueError("figures of damage are there in part only")
        if ("rows" in given) != ("kept" in given) or (set(FOUND) <= given and "rows" not in given):
            raise ValueError("figures without numbers of rows")
        if "detection" in given and SELECTION not in self.detection:
            raise ValueError("the score that decides is missing")
        shares = [share for share, _ in self.score_bands]
        scores = [score for _, score in self.score_bands]
        if (
            shares != sorted(set(shares))
            or scores != sorted(scores)
            or any(not 0 <= share <= 1 for share in shares)
        ):
            raise ValueError("score bands out of order")
        return self

    def content(self) -> dict[str, Any]:
        """Plain JSON of what is there."""
        return self.model_dump(mode="json", exclude_unset=True)


def read_diagnostics(content: Mapping[str, Any], *, where: str) -> Diagnostics:
    """Read what a silo sends, or is about to send.

    Raises:
        DataError: something does not fit; says which figure, and shows no value.
    """
    try:
        return Diagnostics.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "all"
        raise DataError(
            f"{where}: its diagnostics do not fit at {quoted(place)} ({first['type']})."
        ) from None
