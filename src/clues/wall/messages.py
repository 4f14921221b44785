"""Everything that may cross the wall, and nothing else.

A message is one safetensors file (`container`): its tensors by number, and in the metadata a JSON
header with the other fields and, for every field that holds tensors, which number stands where.
No pickle. Each type says in `reveals` what the receiver learns about a silo's rows.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from clues.errors import DataError
from clues.model.tensorfile import pack, unpack
from clues.printable import quoted
from clues.wall.container import PLACE, is_container, is_whole, read_header, read_text, write
from clues.wall.fields import check_short, check_tensors, check_values, fits, holds_tensors

# Of the messages and what they mean; another number on the other side is refused.
PROTOCOL = 2
Tensors = dict[str, Tensor]
# RecursionError: brackets nested thousands deep.
NOT_A_MESSAGE = (SafetensorError, KeyError, ValueError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """What every message carries, beside the number of the protocol."""

    kind: ClassVar[str]
    reveals: ClassVar[str]

    recipe_hash: str

    @classmethod
    def tensor_fields(cls) -> tuple[str, ...]:
        """Names of the fields that hold tensors, in dictionaries and lists of any depth."""
        return tuple(spec.name for spec in fields(cls) if holds_tensors(spec.type))

    def to_bytes(self) -> bytes:
        """Return the message as bytes; equal messages give equal bytes."""
        nested = self.tensor_fields()
        plan, tensors = pack({name: getattr(self, name) for name in nested})
        plain = {s.name: getattr(self, s.name) for s in fields(self) if s.name not in nested}
        header = {"kind": self.kind, "protocol": PROTOCOL, **plain, **plan}
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return write(text, tensors)


@dataclass(frozen=True, kw_only=True)
class Reply(Envelope):
    """What every answer carries: which request it belongs to, so that no older one passes for it.

    The silo sets `answers` when all else is there.
    """

    answers: str = ""


@dataclass(frozen=True, kw_only=True)
class HelloRequest(Envelope):
    """The recipe and the public rows, from the coordinator to every silo.

    `version` is the program's; a silo whose version is another refuses.
    """

    kind: ClassVar[str] = "hello"
    reveals: ClassVar[str] = "nothing: recipe and public rows, from the coordinator"
    version: str
    recipe: dict[str, Any]
    public_files: Tensors = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class HelloReply(Reply):
    """A silo is there, with so many rows."""

    kind: ClassVar[str] = "hello-reply"
    reveals: ClassVar[str] = (
        "the silo's name and domain; how many rows its file has, rounded to tens (with noise before, "
        "where the silo asks for differential privacy); its version of "
        "clues; a token that changes when the rows change, another that changes when a person "
        "overrules rows, and, where it names a column of labels, one that changes with the "
        "labels. Without the silo's key a token tells nothing else. Also from which stage the "
        "silo must be asked again because its own files were damaged or its file of rows changed"
    )
    silo: str
    domain: str
    n_rows: int
    data_token: str
    version: str
    overrides_token: str
    oracle_token: str
    again: str


@dataclass(frozen=True, kw_only=True)
class SketchRequest(Envelope):
    """Ask for sketches of the questions, to find those that stand in several silos."""

    kind: ClassVar[str] = "sketch"
    reveals: ClassVar[str] = "nothing"


@dataclass(frozen=True, kw_only=True)
class SketchReply(Reply):
    """A sketch of every question in an order of the silo's own, and random ones among them.

    `sketches` holds one tensor of that name: 4 bytes for each band, a row for each sketch. The
    number of a row in it is the handle by which the coordinator can name the question.
    `key_token` is the same in all silos that have the same key.
    """

    kind: ClassVar[str] = "sketch-reply"
    reveals: ClassVar[str] = (
        "only with `recipe.duplicates`: which questions of different silos are nearly the same, and "
        "how similar they are; the same of different questions within the silo; how many different "
        "questions it has, to within 64; whether it has the same key as the others. Without that "
        "key a sketch tells nothing else, and equal questions of a silo are sent once"
    )
    key_token: str
    sketches: Tensors = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class LeaveRequest(Envelope):
    """Leave out the rows of these sketches, by their handles: another silo keeps the question."""

    kind: ClassVar[str] = "leave"
    reveals: ClassVar[str] = (
        "nothing to the coordinator. To the silo, that another silo has the questions of these "
        "rows of its own, or nearly the same"
    )
    handles: list[int]


@dataclass(frozen=True, kw_only=True)
class LeaveReply(Reply):
    """How many rows are left out."""

    kind: ClassVar[str] = "leave-reply"
    reveals: ClassVar[str] = (
        "only with `recipe.duplicates`: how many rows are left out, rounded to tens"
    )
    n_left_out: int


@dataclass(frozen=True, kw_only=True)
class TrainRequest(Envelope):
    """Train on all rows: a round of the joint trajectory, or the silo's own trajectory.

    For in-run scores `directions` by validation set, what a mean validation row scores with each
    (`validation`), and the mean validation loss; else empty, and zero.
    """

    kind: ClassVar[str] = "train"
    reveals: ClassVar[str] = "nothing: a joint adapter and public directions"
    round: int
    validation: dict[str, float]
    validation_loss: float
    adapter: Tensors = field(repr=False)
    directions: dict[str, Tensors] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class TrainReply(Reply):
    """The silo's adapter after one round, or nothing where its trajectory stays inside."""

    kind: ClassVar[str] = "train-reply"
    reveals: ClassVar[str] = (
        "an adapter trained on all rows for one round of the warm-up, and, with the default "
        "score, the running means of the rows' gradients and of their squares; how many rows, "
        "rounded to tens. Weights and means can give text away. Empty where the warm-up stays "
        "inside the silo (`local`, `crossfit`)"
    )
    weight: int
    learning_rate: float
    adapter: Tensors = field(repr=False)
    second_moment: Tensors = field(repr=False)
    first_moment: Tensors = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class ScoreRequest(Envelope):
    """Score all rows; on the joint trajectory, at these checkpoints with these directions.

    The lists have one entry per checkpoint: an adapter, its directions by validation set, and the
    optimiser's means (empty where no form needs them at the rows). `probe_losses` are mean losses
    of a few public rows at the checkpoints: a silo with another base model refuses to score.
    `weights` are those of the parts of a score that the coordinator has weighed. `cut` is the
    threshold where the recipe has a cascade, and null elsewhere. `compared_forms`
    (by form and validation set) and `compared_baselines` are the anchors' scores beside the one
    that decides.
    """

    kind: ClassVar[str] = "score"
    reveals: ClassVar[str] = (
        "nothing of silos: joint checkpoints, and directions of public rows and of rejected ones"
    )
    learning_rates: list[float]
    optimizer_steps: list[int]
    probe_losses: list[float]
    anchor_scores: dict[str, list[float]]
    compared_forms: dict[str, dict[str, list[float]]]
    compared_baselines: dict[str, list[float]]
    weights: dict[str, float]
    cut: float | None
    checkpoints: list[Tensors] = field(repr=False)
    directions: list[dict[str, Tensors]] = field(repr=False)
    first_moments: list[Tensors] = field(repr=False)
    second_moments: list[Tensors] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class ScoreReply(Reply):
    """Scores of the public anchors on the silo's own checkpoints, by group and validation set."""

    kind: ClassVar[str] = "score-reply"
    reveals: ClassVar[str] = (
        "by default only that the silo has scored; with `score.cascade`, the time it took says "
        "roughly how many rows needed gradients. On trajectories `local`, `crossfit` and "
        "`inrun`: what the public anchor rows score on the silo's own training, which can tell "
        "whether it trained on one of them. With rule `mixture`: one proposed threshold, made "
        "of private scores"
    )
    anchor_scores: dict[str, dict[str, list[float]]]
    proposal: float | None


@dataclass(frozen=True, kw_only=True)
class SelectRequest(Envelope):
    """The one threshold."""

    kind: ClassVar[str] = "select"
    reveals: ClassVar[str] = "nothing: one threshold, from the coordinator"
    threshold: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SelectReply(Reply):
    """How many rows are above the threshold."""

    kind: ClassVar[str] = "select-reply"
    reveals: ClassVar[str] = (
        "how many rows the silo keeps, rounded to tens (with noise before, where the silo asks for "
        "differential privacy)"
    )
    n_kept: int


@dataclass(frozen=True, kw_only=True)
class FitRequest(Envelope):
    """Train on an arm's rows: one federated round, or a whole one-shot training."""

    kind: ClassVar[str] = "fit"
    reveals: ClassVar[str] = "nothing: a joint adapter, from the coordinator"
    arm: str
    round: int
    combine: dict[str, Any]
    selection_token: str
    adapter: Tensors = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class FitReply(Reply):
    """The silo's adapter after the round; a silo without rows for the arm sends none."""

    kind: ClassVar[str] = "fit-reply"
    reveals: ClassVar[str] = (
        "an adapter trained for one round on the rows of one joint model: the kept rows or, to "
        "compare, all, random or known clean ones; how many rows, rounded to tens. Weights can "
        "give text away"
    )
    weight: int
    adapter: Tensors = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest(Envelope):
    """Ask for exact counts and, where labels exist, how good the selection is.

    `kinds` are the labels that may be named in the answer.
    """

    kind: ClassVar[str] = "evaluate"
    reveals: ClassVar[str] = "nothing"
    selection_token: str
    kinds: list[str]


@dataclass(frozen=True, kw_only=True)
class EvaluateReply(Reply):
    """Diagnostics of an experiment, only where the silo shares them; and what privacy it spent."""

    kind: ClassVar[str] = "evaluate-reply"
    reveals: ClassVar[str] = (
        "by default nothing. With `share_diagnostics: true` in the silo's file: exact numbers of "
        "rows, kept rows and overruled rows; the scores below which 10, 25, 50, 75 and 90 % of "
        "the rows lie; how well labelled damage was found, in all and by those labels that "
        "`evaluate.kinds` lists (`other` for the rest). With differential privacy: the epsilon "
        "spent, and delta"
    )
    diagnostics: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Refusal(Reply):
    """A silo does not go on before a person there has approved."""

    kind: ClassVar[str] = "refusal"
    reveals: ClassVar[str] = "that no person at the silo has approved the selection yet"


@dataclass(frozen=True, kw_only=True)
class Failure(Reply):
    """A silo could not answer; the reason stays in its own log, under this reference."""

    kind: ClassVar[str] = "failure"
    reveals: ClassVar[str] = (
        "that something went wrong, and a random reference; the reason stays in the silo's log"
    )
    reference: str


@dataclass(frozen=True, kw_only=True)
class WhoRequest(Envelope):
    """Ask a machine without a registered key which silo it is; on loopback only."""

    kind: ClassVar[str] = "who"
    reveals: ClassVar[str] = "nothing"


@dataclass(frozen=True, kw_only=True)
class WhoReply(Reply):
    """The silo's name."""

    kind: ClassVar[str] = "who-reply"
    reveals: ClassVar[str] = "the silo's name; asked only without keys, on one machine"
    silo: str


REQUESTS: dict[str, type[Envelope]] = {
    cls.kind: cls
    for cls in (
        HelloRequest,
        SketchRequest,
        LeaveRequest,
        TrainRequest,
        ScoreRequest,
        SelectRequest,
        FitRequest,
        EvaluateRequest,
    )
}
REPLIES: dict[str, type[Reply]] = {
    cls.kind: cls
    for cls in (
        HelloReply,
        SketchReply,
        LeaveReply,
        TrainReply,
        ScoreReply,
        SelectReply,
        FitReply,
        EvaluateReply,
    )
}
KINDS = {*REQUESTS, *REPLIES} | {cls.kind for cls in (Refusal, Failure, WhoRequest, WhoReply)}
UNKNOWN, UNREADABLE = "unknown", "unreadable"
ROUNDED_OFF = 9  # rows by which a rounded number may differ from the true one


def from_bytes(data: bytes, *, allowed: Mapping[str, type[Envelope]], sender: str) -> Any:
    """Read and validate a message before anything uses it.

    Raises:
        DataError: not a message, not what was sent, of another protocol, of a kind that may not
            come here, or a field is missing, odd or of another type.
        NumericsError: a tensor or a number is not finite.
    """
    if is_container(data) and not is_whole(data):
        raise DataError(
            f"{sender}: what arrived is not what was sent: its checksum does not fit. Run again; "
            "if it happens again, look for what changes messages on the way."
        )
    try:
        header = read_text(read_header(data)) if is_whole(data) else {}
        protocol, kind = header.pop("protocol"), header.pop("kind")
        tensors = load(data) if protocol == PROTOCOL else {}
    except NOT_A_MESSAGE:
        raise DataError(f"{sender}: what arrived is not a message of this program.") from None
    if protocol != PROTOCOL:
        theirs = quoted(str(protocol), 20) if isinstance(protocol, str | int) else "none"
        raise DataError(
            f"{sender}: it speaks another protocol ({theirs}, here {PROTOCOL}). Install the same "
            "version of clues on both sides."
        )
    if not isinstance(kind, str) or kind not in allowed:
        raise DataError(f"{sender}: a message of kind {quoted(kind)} may not come here.")
    cls = allowed[kind]
    where = f"{sender}: {kind}"
    specs = {spec.name: spec for spec in fields(cls)}
    if set(header) != set(specs):
        lacks = sorted(set(specs) - set(header))
        # What somebody else calls a field may be anything, a row's text too.
        odd = f"field {lacks[0]!r}" if lacks else "a field that no such message has"
        raise DataError(f"{where} lacks or adds {odd}.")
    for name, spec in specs.items():
        if not fits(header[name], spec.type):
            raise DataError(f"{where}.{name} has the wrong type.")
        if issubclass(cls, Reply):
            check_short(header[name], f"{where}.{name}")
        check_values(header[name], f"{where}.{name}")
    check_tensors(tensors, where)
    nested = {name: header.pop(name) for name in cls.tensor_fields()}
    try:
        # Each is taken once: two names for one tensor would be no message of ours.
        content = unpack(nested, tensors.pop)
    except KeyError:
        raise DataError(f"{where} names a tensor that is not there.") from None
    if tensors:
        raise DataError(f"{where} carries an unexpected tensor.")
    return cls(**header, **content)


def kind_of(data: bytes) -> str:
    """What a message says it is, for the ledger.

    A kind that the program does not have is `unknown`; bytes that are no message are `unreadable`.
    """
    try:
        kind = read_text(read_header(data))["kind"]
    except NOT_A_MESSAGE:
        return UNREADABLE
    return kind if isinstance(kind, str) and kind in KINDS else UNKNOWN


def id_of(request: bytes) -> str:
    """What an answer names its request by; every round, arm and adapter makes another one."""
    return request[PLACE][:32].decode("ascii", "replace")


def stored_names(text: Mapping[str, Any], name: str) -> dict[str, str]:
    """By weight, the tensor's name in the file of a field that holds one adapter.

    Args:
        text: header of a message that `from_bytes` has accepted.
        name: of the field.
    """
    return {weight: str(number) for weight, number in sorted(text[name].items())}


def token_of(data: bytes) -> str:
    """SHA-256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


def round_count(n: int, *, up: int | None = None) -> int:
    """Number of rows as it may leave a silo: in tens, at least ten if not zero.

    Args:
        n: the number.
        up: from 0 to 9, is added before the number is rounded down; None rounds to the nearest
            ten.
    """
    if n == 0:
        return 0
    return max(10, 10 * (round(n / 10) if up is None else (n + up) // 10))


def told_as(n: int, told: int) -> bool:
    """Whether a number of rows can have left a silo as this one, however it was rounded."""
    return abs(n - told) <= ROUNDED_OFF and (n == 0) == (told == 0)
