"""All rules over all rows: what each row's text shows."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from clues.data.samples import Sample
from clues.findings.base import KINDS, REPEATED, Finding
from clues.findings.echo import echo
from clues.findings.ending import Endings
from clues.findings.markup import markup
from clues.findings.mojibake import mojibake
from clues.findings.personal import personal
from clues.findings.profile import profile_of
from clues.findings.refusals import refusals
from clues.findings.repeats import repeats
from clues.findings.short import near_empty
from clues.findings.tongues import other_language


@dataclass(frozen=True)
class Findings:
    """What was found, by row; the first of a row is what it is best called by."""

    by_row: dict[int, tuple[Finding, ...]] = field(repr=False)

    def of(self, row: int) -> tuple[Finding, ...]:
        """What was found in one row."""
        return self.by_row.get(row, ())

    def counts(self) -> dict[str, int]:
        """Rows by kind, the most frequent first; what is only flagged counts, too."""
        rows = Counter(kind for found in self.by_row.values() for kind in {f.kind for f in found})
        return dict(rows.most_common())


def look(
    samples: Sequence[Sample],
    checked: Sequence[Sample] = (),
    *,
    kinds: Collection[str] = KINDS,
) -> Findings:
    """Look at the text of every row.

    Args:
        samples: the rows.
        checked: rows that a person has looked at, which say what is usual; without them the rows
            themselves do.
        kinds: what to look for.
    """
    if not kinds:
        return Findings({})
    profile = profile_of(checked, samples)
    endings = Endings(samples, checked, profile) if "cut" in kinds else None
    found: dict[int, list[Finding]] = {}
    for sample in samples:
        rules = [near_empty(sample, profile), refusals(sample), echo(sample), markup(sample)]
        rules += (
            [
                other_language(
                    sample,
                    profile.languages,
                    profile.common,
                    told_by="checked rows" if checked else "most rows",
                )
            ]
            if "language" in kinds
            else []
        )
        rules += [mojibake(sample)] if "mojibake" in kinds else []
        rules += [endings.cut(sample)] if endings else []
        rules += [personal(sample)] if "personal_data" in kinds else []
        seen = [finding for rule in rules for finding in rule if finding.kind in kinds]
        if seen:
            found[sample.row] = seen
    if {REPEATED, "near_duplicate"} & set(kinds):
        worse = {row for row, seen in found.items() if any(finding.sure for finding in seen)}
        for finding in repeats(samples, worse=worse):
            if finding.kind in kinds:
                found.setdefault(finding.row, []).append(finding)
    # What is sure comes first: it is what a row may be set aside for.
    return Findings(
        {r: tuple(sorted(f, key=lambda x: not x.sure)) for r, f in sorted(found.items())}
    )
