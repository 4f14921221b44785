"""The private side: train, score, select, fit, evaluate. Rows and their scores never leave it.

A silo answers bytes with bytes and keeps everything on its own disk, so that it can be a new
process for every message. An answered request is answered again from the outbox.
"""

import logging
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from clues import __version__
from clues.atomic import atomic_write_bytes, make_private_folder, read_bytes
from clues.config import (
    ARMS,
    EvaluateSettings,
    SiloSettings,
    derived_seed,
    short,
    validate,
)
from clues.data.tokens import EncodedRow
from clues.data.turnrows import without_turns
from clues.data.views import View, row_numbers
from clues.errors import (
    DataError,
    DegenerateSelectionError,
    NumericsError,
    RecipeMismatchError,
)
from clues.evaluation.detection import read_labels
from clues.model.place import identify
from clues.progress import Progress
from clues.report.pairs import rule_in_words
from clues.rundir import hash_if_there, hash_of
from clues.scoring.shards import Team
from clues.selection.decisions import Selection
from clues.selection.threshold import Threshold
from clues.silo.approval import Waiting, is_approved, seen_hash, wait
from clues.silo.arrival import settle
from clues.silo.budget import FILE as SPENT
from clues.silo.budget import Budget
from clues.silo.counts import told_of_all, told_of_kept
from clues.silo.duplicates import key_mark, leave_out, sketch_questions
from clues.silo.evaluate import compared_rows, diagnostics, oracle_token
from clues.silo.overrides import Overrides, check_overrides, overrides_token, store
from clues.silo.questions import Questions, check_question
from clues.silo.review import summary, write_review
from clues.silo.score import nonfinite_text, score
from clues.silo.select import check_threshold, decide, write_selection
from clues.silo.sent import check_adapters
from clues.silo.sizes import check_request_size
from clues.silo.train import fit, train
from clues.silo.whole import FILE
from clues.silo.workspace import Identify, LoadModel, Workspace
from clues.wall.container import checksum_of, is_whole
from clues.wall.diagnostics import read_diagnostics
from clues.wall.messages import (
    REQUESTS,
    Envelope,
    EvaluateReply,
    EvaluateRequest,
    FitRequest,
    HelloReply,
    HelloRequest,
    LeaveRequest,
    Refusal,
    ScoreReply,
    ScoreRequest,
    SelectReply,
    SelectRequest,
    SketchRequest,
    TrainRequest,
    from_bytes,
    id_of,
)

log = logging.getLogger("clues")


class Silo:
    """One owner of private rows."""

    def __init__(
        self,
        settings: SiloSettings,
        folder: Path,
        *,
        load_model: LoadModel,
        progress: Progress,
        allow_degenerate: bool = False,
        one_owner: bool = False,
        team: Team | None = None,
        identify: Identify = identify,
    ) -> None:
        """Nothing is read before the first message.

        Args:
            settings: name, data, domain; never leave this object.
            folder: the silo's own folder of the run.
            load_model: base model with a new adapter, and its encoder, for a recipe.
            progress: where long steps report to.
            allow_degenerate: accept a threshold that keeps nothing or everything.
            one_owner: the coordinator belongs to the owner of the rows, as in a run in one
                process: the order of the rows is the recipe's, so that the run can be repeated.
            team: processes of this machine that share the scoring.
            identify: hashes of a base model's files; of other kinds of models, what says as much.
        """
        self.space = Workspace(
            settings,
            folder,
            load_model=load_model,
            progress=progress,
            one_owner=one_owner,
            team=team,
            identify=identify,
        )
        self.settings, self.folder = settings, folder
        self.allow_degenerate = allow_degenerate
        self.private, self.outbox = self.space.private, self.space.outbox

    def answer(self, data: bytes) -> bytes:
        """Answer one request; a request answered before gets the very same bytes.

        Raises:
            CluesError: the request or the silo's data cannot be used. Nothing is sent then.
        """
        check_request_size(self.space, data)
        request = from_bytes(data, allowed=REQUESTS, sender="coordinator")
        if request.to_bytes() != data:
            # What is counted by its bytes must have one form.
            raise DataError(
                f"silo {self.settings.name}: the {request.kind} request is not written as this "
                "program writes it. The coordinator runs another one."
            )
        make_private_folder(self.private)
        make_private_folder(self.outbox)
        again = settle(self.space, request) if isinstance(request, HelloRequest) else ""
        if (
            not isinstance(request, HelloRequest)
            and request.recipe_hash != self.space.recipe().hash
        ):
            raise RecipeMismatchError(
                f"silo {self.settings.name} works under recipe {short(self.space.recipe().hash)}; a "
                f"{request.kind} request came for {short(request.recipe_hash)}. Start again with hello."
            )
        settings = self.settings.agreed()
        ours = [self.space.data_token(), settings, self.allow_degenerate, self.space.order_seed()]
        overruled = overrides_token(self.space, request.recipe_hash)
        # What a person decides changes neither training nor scores.
        if overruled and not isinstance(request, TrainRequest | ScoreRequest):
            ours.append(overruled)
        ours += self._made_of(request, again)
        stored = self.outbox / f"{request.kind}-{hash_of([checksum_of(data), ours])[:24]}.clues"
        if stored.exists() and is_whole(reply := read_bytes(stored)):
            return reply
        if not isinstance(request, HelloRequest):
            # A hello has passed when it was settled.
            check_question(self.space, request)
            check_adapters(self.space, request)
            asked = Questions(self.space)
            asked.admit(request, overruled=overruled)
            if isinstance(request, SelectRequest):
                asked.admit_threshold(request)
                if self.settings.approval and not is_approved(self.private, request):
                    self._wait(request)
                    refusal = Refusal(recipe_hash=request.recipe_hash, answers=id_of(data))
                    # It answers no later request: the next try may get another answer.
                    self.space.keep_earlier(refusal.to_bytes(), stored.name, kind=refusal.kind)
                    return refusal.to_bytes()
        # Only the last answer of a kind fits the private files beside it. Before the work: killed
        # half-way, those files may already be the new ones.
        self.space.set_aside(request.kind)
        handlers: dict[type[Envelope], Callable[[Any], Envelope]] = {
            HelloRequest: lambda r: self._hello(r, again),
            SketchRequest: lambda r: sketch_questions(self.space, r),
            LeaveRequest: lambda r: leave_out(self.space, r),
            TrainRequest: lambda r: train(self.space, r),
            ScoreRequest: self._score,
            SelectRequest: self._select,
            FitRequest: lambda r: fit(self.space, r, self.arm_rows(r.arm)),
            EvaluateRequest: self._evaluate,
        }
        Questions(self.space).begin(request)
        reply = replace(handlers[type(request)](request), answers=id_of(data)).to_bytes()
        atomic_write_bytes(stored, reply)
        Questions(self.space).answered(request)
        if isinstance(request, ScoreRequest):
            # The table is whole and the answer stored: nobody needs the parts again.
            shutil.rmtree(self.private / "shards", ignore_errors=True)
        return reply

    # --- the answers

    def _made_of(self, request: Envelope, again: str) -> list[Any]:
        """What an answer depends on beside the request, the rows' text and the settings."""
        if isinstance(request, HelloRequest):
            return [again, oracle_token(self.space)]
        if isinstance(request, SketchRequest | LeaveRequest):
            check_question(self.space, request)
            return [key_mark(self.space), self.settings.max_duplicates]
        made_of = self._made_of_rows(request)
        # Other rows left out are other rows.
        return [*made_of, left] if (left := self.space.left_token()) else made_of

    def _made_of_rows(self, request: Envelope) -> list[Any]:
        if isinstance(request, FitRequest):
            return [oracle_token(self.space)] if request.arm == "oracle" else []
        if isinstance(request, SelectRequest):
            return [self.space.source_hash()]
        if isinstance(request, EvaluateRequest):
            # What was scored, selected and spent since then.
            files = [hash_if_there(self.private / name) for name in (FILE, SPENT)]
            return [self.space.source_hash(), files]
        return []

    def _hello(self, request: HelloRequest, again: str) -> HelloReply:
        self.space.check_compute()
        if self.space.one_owner:
            # Rows that cannot be used need not wait for the training. For another coordinator
            # they do: a recipe that they do not fit would tell how long they are.
            self.space.usable()
        return HelloReply(
            recipe_hash=request.recipe_hash,
            silo=self.settings.name,
            domain=self.settings.domain,
            n_rows=told_of_all(self.space),
            data_token=self.space.data_token(),
            version=__version__,
            overrides_token=overrides_token(self.space, request.recipe_hash),
            oracle_token=oracle_token(self.space),
            again=again,
        )

    def _score(self, request: ScoreRequest) -> ScoreReply:
        reply = score(self.space, request)
        if (lost := self.space.lost()) and not self.space.one_owner:
            # The answer does not show it; a run in one process stops for it instead.
            log.warning("silo %s: %s", self.settings.name, nonfinite_text(lost))
        return Questions(self.space).admit_proposal(reply)

    def _wait(self, request: SelectRequest) -> None:
        """Write down, for a person, what the threshold would do."""
        threshold = Threshold.from_json(request.threshold)
        check_threshold(self.space, threshold)
        n_kept, refused = None, ""
        try:
            n_kept = len(self.select(threshold).kept)
        except DegenerateSelectionError as error:
            # The coordinator learns of it no sooner than of a number.
            refused = str(error)
        waiting = Waiting(
            request=checksum_of(request.to_bytes()),
            seen=seen_hash(self.private),
            recipe_hash=request.recipe_hash,
            rule=rule_in_words(threshold.rule, self.space.recipe().threshold.aim),
            value=threshold.value,
            ratio=threshold.ratio,
            rows=len(self.space.rows().samples),
            kept=n_kept,
            refused=refused,
        )
        wait(self.private, request, waiting)

    def _select(self, request: SelectRequest) -> SelectReply:
        threshold = Threshold.from_json(request.threshold)
        Questions(self.space).remember_threshold(request)
        check_threshold(self.space, threshold)
        selection = self.select(threshold)
        write_selection(self.space, selection, threshold)
        self.write_review()
        return SelectReply(
            recipe_hash=selection.recipe_hash, n_kept=told_of_kept(self.space, selection.kept)
        )

    def _evaluate(self, request: EvaluateRequest) -> EvaluateReply:
        recipe, spent = self.space.recipe(), Budget(self.space).report()
        kinds = validate(
            EvaluateSettings, {"kinds": request.kinds}, where="the evaluate request"
        ).kinds
        shared = self.diagnostics(kinds) if self.settings.share_diagnostics else {}
        found = read_diagnostics({**shared, **spent}, where=f"silo {self.settings.name}")
        return EvaluateReply(recipe_hash=recipe.hash, diagnostics=found.content())

    # --- what the silo itself may look at

    def select(self, threshold: Threshold, overrides: Overrides | None = None) -> Selection:
        """Decide about every row under a threshold, and write nothing.

        Args:
            threshold: the one for all.
            overrides: what a person decided; None for what is in force.

        Raises:
            RecipeMismatchError: the scores or the overrides come from another recipe.
            DataError: the overrides are not of these rows.
            DegenerateSelectionError: nothing, everything or too few rows would be kept.
        """
        if overrides is not None:
            check_overrides(self.space, overrides)
        rulings = overrides.rulings if overrides is not None else None
        degenerate = self.allow_degenerate
        return decide(self.space, threshold, allow_degenerate=degenerate, rulings=rulings)

    def overrule(self, overrides: Overrides, threshold: Threshold) -> None:
        """Put a person's decisions in force, in place of those that were.

        Raises:
            CluesError: as `select`; what was in force still is.
        """
        self.select(threshold, overrides)
        store(self.space, overrides)

    def refuse_nonfinite(self) -> None:
        """Stop where a row's score is not finite; for an owner of both sides, who may see it.

        Raises:
            NumericsError: names the rows by content id.
        """
        if ids := self.space.lost():
            raise NumericsError(f"silo {self.settings.name}: {nonfinite_text(ids)}")

    @property
    def has_selected(self) -> bool:
        """Whether a selection is in force."""
        return (self.private / "threshold.json").exists()

    def write_review(self) -> None:
        """Write the private report of the last selection anew."""
        write_review(self.space)

    def summary(self) -> str:
        """What became of the rows of the last selection, in one sentence with exact numbers."""
        return summary(self.space)

    def diagnostics(self, kinds: Sequence[str] = ()) -> dict[str, Any]:
        """Exact counts, and detection figures where the silo names a column of labels.

        Args:
            kinds: labels that are named; all others are `other`.
        """
        return diagnostics(self.space, kinds)

    def arm_rows(self, arm: str) -> Sequence[EncodedRow]:
        """Rows that an arm trains on: all, the kept, as many at random, the clean ones.

        The name of a compared score gives what it would have selected.

        Raises:
            DataError: no such arm, arm oracle and the silo names no column of labels, or a
                compared score and the silo does not share diagnostics; or nothing is selected yet.
        """
        rows = self.space.encoded().rows
        # Of every arm: nothing trains for a joint model before the selection it is compared with.
        overruled = overrides_token(self.space, self.space.recipe().hash)
        selected = self.space.kept(overruled=overruled)
        if arm == "mixed":
            return rows
        if arm not in ARMS:
            return _of(rows, compared_rows(self.space, arm))
        kept = set(selected)
        if arm == "random":
            seed = derived_seed(self.space.recipe().seed, "random", self.settings.name)
            rng = np.random.default_rng(seed)
            kept = {rows[i].row for i in rng.choice(len(rows), len(kept), replace=False)}
        if arm == "oracle":
            labels = read_labels(self.space.rows(), self.settings.labels)
            if labels is None:
                raise DataError(
                    f"silo {self.settings.name}: arm oracle needs labels. Name their column in "
                    "the silo file, or leave the arm out of evaluate.arms."
                )
            kept = {row for row, label in enumerate(labels) if label is None}
        chosen = _of(rows, kept)
        untrained = self.space.untrained() if arm == "clues" else {}
        if not untrained:
            return chosen
        return View(
            chosen,
            range(len(chosen)),
            lambda row: without_turns(row, untrained.get(row.row, ())),
        )

    def clean_scratch(self) -> None:
        """Remove what the Trainer left."""
        self.space.clean_scratch()


def _of(rows: Sequence[EncodedRow], kept: Collection[int]) -> Sequence[EncodedRow]:
    """The rows at these places of the silo's file."""
    return View(rows, [n for n, place in enumerate(row_numbers(rows)) if place in kept])
