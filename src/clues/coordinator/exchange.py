"""Typed questions to silos: every reply is read and judged before anything uses it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from clues.coordinator.attendance import Attendance
from clues.data.sketches import SKETCH_BYTES, padded
from clues.errors import ApprovalError, DataError, NumericsError
from clues.wall.messages import (
    REPLIES,
    Envelope,
    Failure,
    FitRequest,
    Refusal,
    SelectRequest,
    SketchRequest,
    TrainRequest,
    from_bytes,
    id_of,
)
from clues.wall.transport import Missing, Transport

Taken = TypeVar("Taken")
MAX_REFERENCE = 16
WAITS = "waits for a person's approval."
# Adapters in a reply to each kind that carries one: train brings two optimiser means as well.
N_ADAPTERS = {TrainRequest.kind: 3, FitRequest.kind: 1}
# For names, and for kinds that carry numbers: 100,000 anchor scores of one set take 2 MB.
ROOM_BYTES = 16_000_000


class Exchange:
    """Asks silos over a transport; who does not answer, or answers badly, is left out."""

    def __init__(
        self,
        transport: Transport,
        attendance: Attendance,
        *,
        recipe_hash: str,
        max_message_mb: float | None = None,
    ) -> None:
        """Send nothing yet.

        Args:
            transport: the way to the silos.
            attendance: who takes part.
            recipe_hash: that every reply must carry.
            max_message_mb: of a reply; None for what the request lets expect, and some room.
        """
        self.transport, self.attendance = transport, attendance
        self.recipe_hash, self.max_message_mb = recipe_hash, max_message_mb

    def ask(
        self,
        stage: str,
        requests: Mapping[str, Envelope],
        take: Callable[[str, Any], Taken],
        *,
        keep: Callable[[str, bytes], object] | None = None,
        judge: Callable[[Mapping[str, Taken]], Mapping[str, str]] | None = None,
        optional: bool = False,
    ) -> dict[str, Taken]:
        """Send requests and take the replies, one at a time.

        Args:
            stage: for the record of absences.
            requests: by silo; equal objects are encoded once.
            take: checks a silo's reply and returns what of it stays in memory.
            keep: puts the bytes of a good reply away.
            judge: says which of all replies to refuse, and why.
            optional: who gives no good answer is named and still takes part.

        Raises:
            QuorumError: too few silos are left.
            ApprovalError: a silo waits for a person.
        """
        encoded: dict[int, bytes] = {}
        for request in requests.values():
            encoded.setdefault(id(request), request.to_bytes())
        taken: dict[str, Taken] = {}
        missing: dict[str, str] = {}
        waiting: list[str] = []
        sent = {name: encoded[id(request)] for name, request in requests.items()}
        most = {name: self._most(name, request) for name, request in requests.items()}
        for name, data in self.transport.exchange(sent, most=most):
            if isinstance(data, Missing):
                missing[name] = f"silo {name}: {data.why}"
                continue
            kind = f"{requests[name].kind}-reply"
            allowed = {kind: REPLIES[kind], Failure.kind: Failure}
            # Elsewhere a refusal would let one silo stop everybody for nothing.
            if requests[name].kind == SelectRequest.kind:
                allowed[Refusal.kind] = Refusal
            try:
                _check_size(name, requests[name], len(data), most=most[name])
                reply = from_bytes(data, allowed=allowed, sender=f"silo {name}")
                if isinstance(reply, Failure):
                    raise DataError(
                        f"silo {name}: could not answer. Its own log has the reason, under "
                        f"reference {_reference(reply.reference)}."
                    )
                if reply.recipe_hash != self.recipe_hash:
                    raise DataError(f"silo {name} answered under another recipe.")
                if reply.answers != id_of(encoded[id(requests[name])]):
                    raise DataError(
                        f"silo {name}: its answer belongs to another request. Was an old one sent "
                        "again? Start its program anew."
                    )
                if isinstance(reply, Refusal):
                    waiting.append(name)
                    continue
                taken[name] = take(name, reply)
            # What a silo sends is its own fault, and costs the others nothing.
            except (DataError, NumericsError) as error:
                missing[name] = str(error)
                continue
            if keep:
                keep(name, data)
            # Now, and not when the next ones replace them: else two silos' adapters are in memory.
            del reply, data
        for name in requests.keys() - taken.keys() - missing.keys() - set(waiting):
            missing[name] = f"silo {name}: no reply came."
        for name, why in (judge(taken) if judge else {}).items():
            missing[name] = why
            del taken[name]
        missing |= self._not_waited_for(stage, waiting, n_there=len(taken))
        if optional:
            self.attendance.remark(stage, missing)
        else:
            self.attendance.leave_out(stage, missing, n_left=len(taken))
        return {name: taken[name] for name in sorted(taken)}

    def _not_waited_for(
        self, stage: str, waiting: Sequence[str], *, n_there: int
    ) -> dict[str, str]:
        """Who goes on waiting for a person's approval, and is left out for it.

        With a quorum the run stops once for them. One silo could else stop everybody for ever.

        Raises:
            ApprovalError: they are waited for.
        """
        if not waiting:
            return {}
        why = {name: f"silo {name}: {WAITS}" for name in waiting}
        attendance = self.attendance
        enough = attendance.quorum is not None and n_there >= attendance.quorum
        known = {(stop["silo"], stop["stage"], stop["why"]) for stop in attendance.stops}
        if enough and all((name, stage, text) in known for name, text in why.items()):
            return why
        if enough:
            attendance.note_stop(stage, why)
        after = " Who still waits then is left out, since federation.quorum allows it."
        raise ApprovalError(
            f"stage {stage}: {', '.join(sorted(waiting))} waits for a person's approval. Look at "
            "the scores there, call `clues approve FOLDER` and run again." + after * enough
        )

    def _most(self, name: str, request: Envelope) -> int:
        """Bytes that a good answer to a request can have."""
        if self.max_message_mb is not None:
            return int(self.max_message_mb * 1e6)
        sent = sum(t.nbytes for t in getattr(request, "adapter", {}).values())
        most = N_ADAPTERS.get(request.kind, 0) * sent + ROOM_BYTES
        if request.kind == SketchRequest.kind:
            most += padded(self.attendance.members[name]["n_rows"]) * SKETCH_BYTES
        return most


def _check_size(name: str, request: Envelope, n_bytes: int, *, most: int) -> None:
    """Refuse a reply that is larger than a good one can be, before it is taken apart."""
    if n_bytes > most:
        raise DataError(
            f"silo {name}: its answer to {request.kind} has {n_bytes / 1e6:.1f} MB, and at most "
            f"{most / 1e6:.1f} MB are accepted. federation.max_message_mb sets another limit."
        )


def _reference(text: str) -> str:
    """A reference as a silo makes it; whatever else it sends is not repeated."""
    whole = len(text) <= MAX_REFERENCE and text.isascii() and text.isalnum()
    return text if whole else "(unreadable)"
