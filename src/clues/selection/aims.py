"""What a threshold is for: to spare clean rows, or to make the joint model best.

No torch here. Public anchors and their damaged copies say both: what a cut would cost in clean rows,
and what it would take away of known damage.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clues.selection.units import Array
from clues.selection.weighing import Controls

# A cut for the joint model keeps at least this share of the anchors, whatever the copies say.
FEWEST_ANCHORS = 0.5


@dataclass(frozen=True)
class Parting:
    """Scores of a group's anchors, and of their damaged copies by kind of damage, in one unit."""

    anchors: Array
    copies: Mapping[str, Array]

    @classmethod
    def of(cls, anchors: Array, copies: Array, controls: Controls) -> "Parting":
        """From the copies' scores in the order of `controls.kinds`."""
        kinds = np.array(controls.kinds)
        return cls(anchors, {kind: copies[kinds == kind] for kind in sorted(set(kinds))})

    def kept(self, cuts: Array) -> Array:
        """Shares of the anchors and of the copies not below each cut, (2, cuts).

        Every kind of damage has one vote.
        """
        copies = np.mean([_share_kept(scores, cuts) for scores in self.copies.values()], axis=0)
        return np.stack([_share_kept(self.anchors, cuts), copies])

    def drawn(self, rng: np.random.Generator, anchors: Array) -> "Parting":
        """A bootstrap sample: these anchors, and every kind's copies drawn apart."""
        return Parting(
            anchors,
            {kind: rng.choice(scores, len(scores)) for kind, scores in self.copies.items()},
        )


def _share_kept(scores: Array, cuts: Array) -> Array:
    return 1.0 - np.searchsorted(np.sort(scores), cuts, side="left") / len(scores)


def kept_shares(groups: Sequence[Parting], cuts: Array) -> Array:
    """Shares of the anchors and of the copies not below each cut, (2, cuts).

    Each group has one vote.
    """
    return np.mean([group.kept(cuts) for group in groups], axis=0)


def cut_for_model(groups: Sequence[Parting], *, least: float) -> float:
    """The cut at which anchors and damaged copies part best.

    cut = argmax over c >= least of (share of anchors kept at c) - (share of copies kept at c)

    A higher cut would take away more good rows than bad ones, and a lower one let more bad rows in
    than good ones, were there equally many of both. Cuts that keep fewer than half of the anchors
    are left out, so copies that nothing tells apart cannot empty a silo. Of equal cuts the highest
    is taken: it keeps as many anchors and copies, and fewer rows that nobody knows.

    Args:
        groups: in units that compare.
        least: the cut that spares clean rows as promised; the result is not below it.

    Source: Youden 1950, the index of a test.
    """
    pooled = np.concatenate([group.anchors for group in groups])
    highest = float(np.quantile(pooled, 1 - FEWEST_ANCHORS, method="lower"))
    cuts = np.unique([least, *pooled[(pooled > least) & (pooled <= highest)]])
    anchors, copies = kept_shares(groups, cuts)
    # Shares are sums of fractions: equal ones may differ in their last digits.
    gain = np.round(anchors - copies, 9)
    return float(cuts[len(cuts) - 1 - int(np.argmax(gain[::-1]))])
