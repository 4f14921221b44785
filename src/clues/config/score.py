"""How a row is scored and where the threshold lies, as settings."""

import re
from difflib import get_close_matches
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from clues.config.base import ALIGNMENT, LOSS, FactorOrZero, Settings, Share, Steps

Baseline = Literal[
    "base_perplexity",
    "ifd",
    "alignment",
    "datainf",
    "embedding",
    "repsim",
    "rds",
    "length",
    "random",
]
Form = Literal["sgd", "adam", "adam_two_sided", "adam_exact", "cosine", "less"]
# A scorer of another package, with that package's version: `mylab.variety@1.2`.
INSTALLED = r"^[a-z][a-z0-9_]{0,40}\.[a-z][a-z0-9_]{0,40}@[0-9][A-Za-z0-9.+!_-]{0,40}$"
Installed = Annotated[str, StringConstraints(pattern=INSTALLED)]
Block = Annotated[int, Field(ge=0, le=10_000)]  # number of a transformer block
BASELINE_NAMES: tuple[str, ...] = get_args(Baseline)
FORMS: tuple[str, ...] = get_args(Form)
LINEAR_FORMS = ("sgd", "adam", "adam_two_sided")
# Which running means of the optimiser a form looks at.
NEEDS_SECOND_MOMENT = ("adam", "adam_two_sided", "adam_exact", "less")
NEEDS_FIRST_MOMENT = ("adam_exact", "less")


def is_installed(name: str) -> bool:
    """Whether it is the name of a scorer that another package brings."""
    return re.fullmatch(INSTALLED, name) is not None


def one_of(*names: str) -> BeforeValidator:
    """One message for a name that is none of these and none of an installed scorer."""

    def check(value: Any) -> Any:
        if not isinstance(value, str) or value in names or is_installed(value):
            return value
        close = get_close_matches(value, names, n=1)
        hint = f"did you mean {close[0]!r}" if close else f"known are {', '.join(names)}"
        raise ValueError(
            f"there is no such name; {hint}. A scorer of another package is written as "
            "package.scorer@version"
        )

    return BeforeValidator(check)


Method = Annotated[
    Literal["influence", "perplexity", Baseline] | Installed,
    one_of("influence", "perplexity", *BASELINE_NAMES),
]
Compared = Annotated[
    Literal[Form, Baseline, "inrun"] | Installed, one_of(*FORMS, *BASELINE_NAMES, "inrun")
]


# How answers are damaged: by experiments in silos' rows, and in copies of anchors.
Damage = Literal[
    "cut",
    "delete",
    "swap",
    "mix",
    "page_remains",
    "misread",
    "wrong_encoding",
    "refusal",
    "prompt_repeated",
    "other_language",
    "shifted",
    "changed_number",
    "swapped_name",
    "ends_early",
    "filler",
    "near_copy",
]
USUAL_DAMAGE: tuple[Damage, ...] = ("cut", "delete", "swap", "mix")


class ScoreSettings(Settings):
    """How a row is scored; higher is better, always.

    Attributes:
        method: the score that decides. `influence` is the method's own and the paper's; the
            others are baselines. `package.scorer@version` is a scorer of another installed
            package.
        form: what the influence multiplies with the direction: the row's gradient, or the
            optimiser's step for it, divided by lengths or not. If it is left out it is `less`,
            and `adam` with `inrun`, `per_block` or a linear `way`.
        way: how the influence is computed. `auto` takes the cheapest exact way. Experimental:
            `finite_difference`, which needs no backward pass.
        trajectory: whose checkpoints score the rows. `global`: of a joint training of all silos.
            `local`: of the silo's own training. `crossfit`: of trainings on two halves of the
            silo's rows, each scoring the other half. Experimental: `inrun`, at the step that
            trains on a row; it ranked with an AUC of 0.50 to 0.64 on `fiqa`, and adds 22 % to the
            training time at 4,000 rows.
        refresh: Experimental: number of optimiser steps after which the next round brings a new
            validation direction (`inrun`); null for every round.
        visits: Experimental: whether every visit to a row counts, or the first alone (`inrun`).
        layers: the transformer blocks that count: `all`, `first`, `last`, or numbers from 0 on.
        projections: Experimental: the linear layers that count, by the end of their name, or
            `all`.
        factors: Experimental: the factors of the adapter that count.
        per_block: Experimental: also keep every block's share of a score.
        loss_weight: weight of the part that is minus the row's loss, beside the influence; each
            part is in units of the anchors. 0 leaves the part out. `auto` takes the weight that
            tells the public anchors from damaged copies of them best. It needs trajectory
            `global` and is 0 with others. Both weights 0 with form `sgd` give the paper's score.
        loss_under: whose loss that is. `base`: of the base model, which has learned from no
            damaged row. `checkpoints`: the mean along the checkpoints (with `inrun`, at the
            visits).
        alignment_weight: weight of the part that is the alignment: how much the row's question
            lowers the loss of its response, at the last checkpoint. `auto` and 0 are as above. It
            does not count with `inrun`.
        reject_weight: weight of the part that says how much more a row is like the validation rows
            than like the rejected ones (`public.NAME.reject`), in a domain that has such rows.
            `auto` weighs it with half of the rejected rows, which then give no direction; they
            count as one more kind of damage.
        copies: kinds of damage that the anchors' copies get, on which weights `auto` and
            `threshold.aim: model` rest. Name the damage that you fear: `[swap]` where answers may
            belong to other questions, or labels may be wrong. docs/evaluation.md describes each kind.
        compare: scores to compute beside the one that decides. They have thresholds of their own
            and decide nothing.
        turns: also score every turn of the assistant in rows where several are trained. It takes
            influence or perplexity, and no in-run scores. `threshold.low_turn` says what a turn below
            the threshold costs.
        cascade: score in two stages: what takes forward passes alone (loss, alignment) for all rows,
            and gradients for those rows that it leaves open. `exact`: a row that its loss and
            alignment alone put below the threshold is dropped without gradients; no influence
            could bring it back, so the selection is the same to rounding. Null computes all of
            every row.
    """

    method: Method = "influence"
    form: Form = "less"
    way: Literal["auto", "side_branch", "gradients", "finite_difference"] = "auto"
    trajectory: Literal["local", "crossfit", "global", "inrun"] = "global"
    refresh: Steps | None = None
    visits: Literal["first", "every"] = "every"
    layers: tuple[Block, ...] | Literal["all", "first", "last"] = "all"
    projections: tuple[str, ...] | Literal["all"] = "all"
    factors: Literal["both", "A", "B"] = "both"
    per_block: bool = False
    loss_weight: FactorOrZero | Literal["auto"] = "auto"
    loss_under: Literal["base", "checkpoints"] = "base"
    alignment_weight: FactorOrZero | Literal["auto"] = "auto"
    # As they are by themselves they are not written, like `turns`: recipes that never heard of them
    # keep their hash.
    reject_weight: FactorOrZero | Literal["auto"] = Field(
        default="auto", exclude_if=lambda value: value == "auto"
    )
    copies: tuple[Damage, ...] = Field(
        default=USUAL_DAMAGE, min_length=1, exclude_if=lambda value: value == USUAL_DAMAGE
    )
    compare: tuple[Compared, ...] = ()
    turns: bool = Field(default=False, exclude_if=lambda value: not value)
    cascade: Literal["exact"] | None = Field(default=None, exclude_if=lambda value: value is None)

    @model_validator(mode="before")
    @classmethod
    def _linear_where_it_must_be(cls, value: Any) -> Any:
        """Scores by side branches alone have another default form: the linear one."""
        if isinstance(value, dict) and "form" not in value:
            sums = value.get("way") in ("side_branch", "finite_difference")
            if sums or value.get("per_block") or value.get("trajectory") == "inrun":
                return {**value, "form": "adam"}
        return value

    @model_validator(mode="after")
    def _way_fits_form(self) -> "ScoreSettings":
        if self.form not in LINEAR_FORMS and self.way in ("side_branch", "finite_difference"):
            raise ValueError(
                f"way {self.way} computes inner products; form {self.form} needs the gradients "
                "themselves. Set way: auto"
            )
        if self.form not in LINEAR_FORMS and self.per_block:
            raise ValueError(f"per_block scores add up only for forms {', '.join(LINEAR_FORMS)}")
        return self

    @model_validator(mode="after")
    def _inrun_is_linear(self) -> "ScoreSettings":
        if self.trajectory in ("local", "crossfit") and "inrun" in self.compare:
            raise ValueError("in-run scores come from the rounds of trajectory global or inrun")
        if self.inrun and self.method != "influence":
            raise ValueError("in-run scores are influences; set method: influence")
        if self.trajectory == "inrun" and self.form not in LINEAR_FORMS:
            raise ValueError(f"in-run scores need a form of {', '.join(LINEAR_FORMS)}")
        if self.trajectory == "inrun" and (
            self.per_block or self.way not in ("auto", "side_branch")
        ):
            raise ValueError("in-run scores come from side branches, all blocks in one number")
        return self

    @model_validator(mode="after")
    def _turns_are_rows(self) -> "ScoreSettings":
        if self.turns and self.method not in ("influence", "perplexity"):
            raise ValueError(f"score.turns needs method influence or perplexity, not {self.method}")
        if self.turns and self.trajectory == "inrun":
            raise ValueError(
                "a step of training sees a whole row, so in-run scores have no turns; set "
                "score.turns: false, or trajectory: global"
            )
        return self

    @model_validator(mode="after")
    def _cascade_needs_parts(self) -> "ScoreSettings":
        if not self.cascade:
            return self
        if not self.sends_directions or not self.weighed:
            raise ValueError(
                "cascade decides by loss and alignment before the influence, against anchors that "
                "the coordinator scores: it needs method influence, trajectory global, and a loss or "
                "alignment weight that is not 0; leave cascade out"
            )
        whole = [n for n in self.compare if n in (*FORMS, ALIGNMENT, "inrun")]
        if whole or self.turns or self.per_block:
            what = f"compare {whole[0]}" if whole else "turns" if self.turns else "per_block"
            raise ValueError(
                f"{what} needs gradients or alignments of all rows, and cascade leaves them out; set "
                "one of the two"
            )
        return self

    @property
    def shared(self) -> bool:
        """Whether all silos train one adapter together, round by round."""
        return self.trajectory in ("global", "inrun")

    @property
    def anchors_are_public(self) -> bool:
        """Whether the coordinator can score the anchors: no silo's rows take part in their scores."""
        return self.trajectory == "global" and self.method in ("influence", "perplexity")

    @property
    def sends_directions(self) -> bool:
        """Whether the coordinator's directions come with the checkpoints to score at."""
        return self.trajectory == "global" and self.method == "influence"

    @property
    def inrun(self) -> bool:
        """Whether training scores the rows that it sees."""
        return self.trajectory == "inrun" or "inrun" in self.compare

    @property
    def weighed(self) -> dict[str, bool]:
        """Parts beside the influence: whether each is to be weighed; those of weight 0 are out."""
        if self.method != "influence":
            return {}
        given = {LOSS: self.loss_weight, ALIGNMENT: self.alignment_weight}
        if self.trajectory == "inrun":
            # A step of training sees a row with its question alone.
            del given[ALIGNMENT]
        return {
            name: weight == "auto"
            for name, weight in given.items()
            if (weight == "auto" and self.trajectory == "global") or weight not in ("auto", 0)
        }

    @property
    def inrun_form(self) -> Literal["sgd", "adam", "adam_two_sided"]:
        """The form of in-run scores, which are inner products."""
        return cast(Any, self.form) if self.form in LINEAR_FORMS else "adam"

    @property
    def forms(self) -> set[str]:
        """Every influence form that is computed."""
        own = {self.form} if self.method == "influence" else set[str]()
        return own | {name for name in self.compare if name in FORMS}


Aim = Literal["keep", "model"]
LowTurn = Literal["keep", "mask", "drop"]
ANCHOR_RULES = ("anchor_tolerance", "anchor_mean", "anchor_quantile")


class ThresholdSettings(Settings):
    """How anchor scores become one threshold.

    Attributes:
        rule: how the anchors' scores give the threshold. `anchor_tolerance`: the highest threshold
            that keeps at least 1 - `quantile` of the clean rows with probability `confidence`, if
            clean rows score like anchors. `anchor_quantile`: the `quantile` of the anchors'
            scores, without the confidence. `anchor_mean`: their mean, the paper's rule. `ratio`:
            each silo keeps a share of its rows. `preset`: a number that you give. `mixture`:
            between two groups of scores that are found among the private rows.
        quantile: share of the clean rows that may be dropped.
        ratio: share of the rows that rule `ratio` keeps.
        preset: the threshold of rule `preset`.
        units: `anchor` measures a score from the median of the domain's anchors, in units of
            their spread. `raw` leaves scores as they are and pools all domains, as the paper does.
        combine: how the parts of a score (influence, loss, alignment) are joined. `shortfall`
            counts how far a row stays below the anchors in each part. `sum` lets a good part make
            up for a bad one.
        bootstrap: number of draws for the interval of the threshold.
        confidence: the probability of rule `anchor_tolerance`, and of the threshold's interval.
        aim: what the threshold is for. `keep`: to spare clean rows, as the rule promises. `model`:
            to make the joint model good, where it may cost clean rows: the cut, at least as high as
            the rule's, that tells the public anchors from damaged copies of them best; at least
            half of the anchors stay above it. It takes trajectory `global`, no baseline but
            perplexity, and a rule that reads the anchors.
        low_turn: what becomes of a row one of whose turns is below the threshold, with
            `score.turns`. `keep`: nothing; it is shown. `mask`: such a turn is read and not
            trained, in `kept` too, and a row with several trained turns is dropped only if none
            of them is left. `drop`: the row is dropped.
    """

    rule: Literal[
        "anchor_tolerance", "anchor_mean", "anchor_quantile", "ratio", "preset", "mixture"
    ] = "anchor_tolerance"
    quantile: Share = 0.05
    ratio: Share = 0.5
    preset: Annotated[float, Field(ge=-1e30, le=1e30)] | None = None
    units: Literal["anchor", "raw"] = "anchor"
    combine: Literal["shortfall", "sum"] = "shortfall"
    bootstrap: int = Field(default=1000, ge=1, le=100_000)
    confidence: Share = 0.95
    # As they are by themselves, they are not written: recipes that never heard of them keep their
    # hash.
    aim: Aim = Field(default="keep", exclude_if=lambda value: value == "keep")
    low_turn: LowTurn = Field(default="keep", exclude_if=lambda value: value == "keep")

    @model_validator(mode="after")
    def _preset_has_a_number(self) -> "ThresholdSettings":
        if self.rule == "preset" and self.preset is None:
            raise ValueError("rule preset needs a number in threshold.preset")
        return self

    @model_validator(mode="after")
    def _aim_needs_anchors(self) -> "ThresholdSettings":
        if self.aim == "model" and self.rule not in ANCHOR_RULES:
            raise ValueError(
                f"aim model raises the cut of a rule that reads the anchors, and rule {self.rule} "
                "does not; set rule: anchor_tolerance"
            )
        return self
