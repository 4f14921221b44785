"""What a coordinator has asked about a silo's rows, counted on the silo's own disk.

Whatever a silo answers tells something about its rows, so every kind of request passes here before
any work. The same request again is the same answer and costs nothing. A recipe costs one of
`max_selections`, and lets the coordinator ask each of its questions once. A question asked in
another way (another adapter for the same round, another way to combine) costs one more; then every
other question may be asked in another way too. So a silo that comes back late costs one, and not
one per round. Rounds are many, and each tells something, so every hundred updates cost one more.
A failure tells something, too (whether a row made a training overflow, say), so each costs one more.

Two things come once per recipe, whatever is left: the threshold, and the cut that rule `mixture`
proposes. With many thresholds, or many directions, the score of one row can be found by bisection.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from clues.config import ARMS, CombineSettings, Settings, short, validate
from clues.errors import DataError, RecipeMismatchError
from clues.rundir import file_hash, hash_of, read_record, write_record
from clues.silo.workspace import Workspace
from clues.wall.container import checksum_of
from clues.wall.messages import (
    Envelope,
    FitRequest,
    HelloRequest,
    LeaveRequest,
    ScoreReply,
    SelectRequest,
    SketchRequest,
    TrainRequest,
    token_of,
)

FILE = "asked.json"
UPDATING = ("train", "fit")
PUT_BACK = "It says what was asked about these rows: put it back, or start in a new folder."
UPDATES = 100  # two rounds of warm-up and four joint models of twenty rounds are 82


class Question(Settings):
    """What is asked, whatever comes with it.

    Attributes:
        kind: of the request.
        arm: of the joint model, for a fit.
        round: of a training.
        overruled: token of the overrides in force: what a person there decides changes the answer,
            and costs the coordinator nothing.
    """

    kind: str
    arm: str = ""
    round: int = 0
    overruled: str = ""


class Asked(Settings):
    """A question, and the hash of every request that asked it: of its bytes, as in the ledger."""

    question: Question
    requests: tuple[str, ...]


class UnderRecipe(Settings):
    """All that was asked under one recipe.

    Attributes:
        asked: every question, in the order of its first request.
        unanswered: hashes of the requests whose answer failed; the same request may succeed
            later, and is taken out then.
        threshold: hash of the one threshold and of the scores that it decided about; else empty.
        proposal: the one cut that was proposed; null for none, or none yet.
        proposed: whether a cut, or that there is none, has been sent.
    """

    asked: tuple[Asked, ...] = ()
    unanswered: tuple[str, ...] = ()
    threshold: str = ""
    proposal: float | None = None
    proposed: bool = False

    @property
    def cost(self) -> int:
        """How many of `max_selections` it takes: one per way of asking, 100 updates, failure."""
        ways = max((len(entry.requests) for entry in self.asked), default=1)
        updates = [e for e in self.asked if e.question.kind in UPDATING]
        more = max(0, sum(len(e.requests) for e in updates) - 1) // UPDATES
        return ways + more + len(self.unanswered)


class Record(Settings):
    """The whole file.

    Attributes:
        version: of its form.
        rows: what was asked, by token of the rows and by recipe.
        booked: how many entries the privacy budget has had, so that an older one is found.
    """

    version: Literal[1] = 1
    rows: dict[str, dict[str, UnderRecipe]] = Field(default_factory=dict)
    booked: int = 0


def read_count(path: Path) -> Record:
    """Read a count as it was written.

    Raises:
        DataError: it cannot be read.
    """
    return validate(Record, read_record(path, advice=PUT_BACK), where=str(path))


class Questions:
    """The one budget of everything that a silo answers about its rows."""

    def __init__(self, space: Workspace) -> None:
        """Read what was asked so far.

        Raises:
            DataError: it cannot be read, or is missing where answers have left.
        """
        self.space, self.path = space, space.private / FILE
        self.record = Record()
        # Without it the count would begin anew.
        if self.path.exists():
            self.record = read_count(self.path)
        elif space.has_answered():
            raise DataError(
                f"silo {space.name}: {self.path} is missing, and answers have left this folder. "
                f"{PUT_BACK}"
            )

    def trained(self) -> bool:
        """Whether any training has been asked for in this folder."""
        asked = [u.asked for recipes in self.record.rows.values() for u in recipes.values()]
        return any(e.question.kind in UPDATING for entries in asked for e in entries)

    def admit(self, request: Envelope, *, overruled: str = "") -> None:
        """Count a request, before any work; refuse more than the silo allows.

        Args:
            request: of any kind.
            overruled: token of the overrides in force.

        Raises:
            DataError: `max_selections` is spent, or no such question exists.
        """
        question, key = _question(request, overruled), _identity(request)
        under = self._under(request.recipe_hash)
        asked = {entry.question: entry.requests for entry in under.asked}
        if key in asked.get(question, ()):
            return
        asked[question] = (*asked.get(question, ()), key)
        entries = tuple(Asked(question=q, requests=keys) for q, keys in asked.items())
        after = under.model_copy(update={"asked": entries})
        met, limit = self._met(), self.space.settings.max_selections
        others = sum(self._cost(u) for recipe, u in met.items() if recipe != request.recipe_hash)
        dearer = request.recipe_hash not in met or self._cost(after) > self._cost(under)
        if (dearer or under.unanswered) and others + self._cost(after) > limit:
            spent = sum(self._cost(u) for u in met.values())
            raise DataError(
                f"silo {self.space.name}: {spent} recipes, or other questions under them, or "
                f"failures, have come to these rows, and max_selections is {limit}. Raise it in the "
                "silo file if you trust the coordinator."
            )
        # Before the work: a request that is refused half-way has told something too.
        self._write(request.recipe_hash, after)

    def note_booked(self, n: int) -> None:
        """Remember how many entries the privacy budget has."""
        self._store(self.record.model_copy(update={"booked": n}))

    def begin(self, request: Envelope) -> None:
        """Count a request as failed until its answer is there: whatever ends the work between."""
        under = self._under(request.recipe_hash)
        if not self.space.one_owner and (key := _identity(request)) not in under.unanswered:
            more = {"unanswered": (*under.unanswered, key)}
            self._write(request.recipe_hash, under.model_copy(update=more))

    def answered(self, request: Envelope) -> None:
        """Note that the answer is there."""
        under, key = self._under(request.recipe_hash), _identity(request)
        if key in under.unanswered:
            left = tuple(other for other in under.unanswered if other != key)
            self._write(request.recipe_hash, under.model_copy(update={"unanswered": left}))

    def has_asked(self, recipe_hash: str, kind: str) -> bool:
        """Whether a kind of request has come under a recipe, to the rows as they are."""
        return any(entry.question.kind == kind for entry in self._under(recipe_hash).asked)

    def admit_threshold(self, request: SelectRequest) -> None:
        """Refuse a second threshold per recipe, and the first once the scores are others.

        Raises:
            DataError: nothing is scored yet.
            RecipeMismatchError: under this recipe another threshold has already decided, or the
                same threshold has decided about other scores.
        """
        self.space.scores()
        earlier = self._under(request.recipe_hash).threshold
        if earlier and earlier != self._decision(request):
            raise RecipeMismatchError(
                f"silo {self.space.name}: a threshold has already decided here under recipe "
                f"{short(request.recipe_hash)}, and this is another one or decides about other scores. One "
                "recipe gets one; if all agree on a new one, start the run in a new folder."
            )

    def remember_threshold(self, request: SelectRequest) -> None:
        """Note a threshold before it decides about the rows: a refusal tells something too."""
        decision = {"threshold": self._decision(request)}
        under = self._under(request.recipe_hash)
        self._write(request.recipe_hash, under.model_copy(update=decision))

    def admit_proposal(self, reply: ScoreReply) -> ScoreReply:
        """Let one proposed threshold per recipe leave the silo: it is made of private scores.

        Raises:
            RecipeMismatchError: the rows were scored again and now propose another threshold.
        """
        if self.space.recipe().threshold.rule != "mixture":
            return reply
        under = self._under(reply.recipe_hash)
        if under.proposed and under.proposal != reply.proposal:
            raise RecipeMismatchError(
                f"silo {self.space.name}: under recipe {short(reply.recipe_hash)} a cut has already been "
                "proposed, from other scores. One recipe gets one; start the run in a new folder."
            )
        told = {"proposal": reply.proposal, "proposed": True}
        self._write(reply.recipe_hash, under.model_copy(update=told))
        return reply

    def _cost(self, under: UnderRecipe) -> int:
        # Who owns both sides may ask the own rows in as many ways as there are.
        return 1 if self.space.one_owner else under.cost

    def _met(self) -> Mapping[str, UnderRecipe]:
        return self.record.rows.get(self.space.data_token(), {})

    def _under(self, recipe_hash: str) -> UnderRecipe:
        return self._met().get(recipe_hash, UnderRecipe())

    def _write(self, recipe_hash: str, under: UnderRecipe) -> None:
        token = self.space.data_token()
        rows = {**self.record.rows, token: {**self._met(), recipe_hash: under}}
        self._store(self.record.model_copy(update={"rows": rows}))

    def _store(self, record: Record) -> None:
        self.record = record
        write_record(self.path, record.model_dump(mode="json"))

    def _decision(self, request: SelectRequest) -> str:
        """A threshold together with the scores that it decides about.

        Overrides are not in it: a person may change them, and only the silo itself can.
        """
        scores = file_hash(self.space.private / "scores.parquet")
        return hash_of([checksum_of(request.to_bytes()), scores])


def _question(request: Envelope, overruled: str) -> Question:
    """The question that a request asks."""
    if isinstance(request, FitRequest):
        return Question(
            kind=request.kind, arm=request.arm, round=request.round, overruled=overruled
        )
    if isinstance(request, TrainRequest):
        return Question(kind=request.kind, round=request.round)
    # What a person decides changes neither training nor scores nor what hello tells.
    later = request.kind in ("select", "evaluate")
    return Question(kind=request.kind, overruled=overruled if later else "")


def _identity(request: Envelope) -> str:
    """What makes two requests the same: all their bytes; of a hello, its recipe."""
    if request.kind == HelloRequest.kind:
        return request.recipe_hash
    return token_of(request.to_bytes())


def check_question(space: Workspace, request: Envelope) -> None:
    """Whether the recipe has such a question; one that it lacks is not even counted.

    Raises:
        DataError: there is no such arm or round, or the recipe does not look for duplicates.
        ConfigError: the way to combine cannot be read.
    """
    if isinstance(request, FitRequest):
        known = (*ARMS, *space.recipe().score.compare)
        if request.arm not in known:
            raise DataError(f"silo {space.name}: arm {request.arm[:40]!r}: there is no such arm.")
        _check_round(space, request.round, combine_of(request).n_asked)
    if isinstance(request, SketchRequest | LeaveRequest) and space.recipe().duplicates is None:
        raise DataError(
            f"silo {space.name}: a {request.kind} request came, and the recipe does not look for "
            "the same question in several silos."
        )
    if isinstance(request, TrainRequest):
        _check_round(space, request.round, space.recipe().train.rounds)


def combine_of(request: FitRequest) -> CombineSettings:
    """How a fit request wants adapters combined.

    Raises:
        ConfigError: it cannot be read.
    """
    return validate(CombineSettings, request.combine, where="the fit request")


def _check_round(space: Workspace, number: int, n_rounds: int) -> None:
    if not 0 <= number < n_rounds:
        raise DataError(
            f"silo {space.name}: round {number + 1} was asked for, and there are {n_rounds}."
        )
