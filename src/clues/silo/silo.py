"""The private side: train, score, select, fit, evaluate. Rows and their scores never leave it.

A silo answers bytes with bytes and keeps everything on its own disk, so that it can be a new
process for every message. An answered request is answered again from the outbox.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from clues import __version__
from clues.atomic import atomic_write_bytes, make_folder
from clues.config import (
    ARMS,
    EvaluateSettings,
    Recipe,
    SiloSettings,
    derived_seed,
    validate,
    weights_sha256,
)
from clues.data.tokens import EncodedRow
from clues.errors import DataError, RecipeMismatchError
from clues.evaluation.detection import read_labels
from clues.progress import Progress
from clues.rundir import hash_of, write_json
from clues.scoring.shards import Team
from clues.selection.threshold import Selection, Threshold
from clues.silo.budget import Budget
from clues.silo.evaluate import compared_rows, diagnostics
from clues.silo.overrides import Overrides, check_overrides, overrides_token, store
from clues.silo.permission import (
    admit,
    admit_proposal,
    admit_threshold,
    is_approved,
    remember_threshold,
)
from clues.silo.review import write_review
from clues.silo.score import score
from clues.silo.select import decide, write_selection
from clues.silo.train import fit, train
from clues.silo.workspace import LoadModel, Workspace
from clues.wall.container import checksum_of
from clues.wall.diagnostics import read_diagnostics
from clues.wall.messages import (
    REQUESTS,
    Envelope,
    EvaluateReply,
    EvaluateRequest,
    FitRequest,
    HelloReply,
    HelloRequest,
    Refusal,
    Reply,
    ScoreRequest,
    SelectReply,
    SelectRequest,
    TrainRequest,
    from_bytes,
    id_of,
    round_count,
    token_of,
)


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
        skip_nonfinite: bool = False,
        team: Team | None = None,
    ) -> None:
        """Nothing is read before the first message.

        Args:
            settings: name, data, domain; never leave this object.
            folder: the silo's own folder of the run.
            load_model: base model with a new adapter, and its encoder, for a recipe.
            progress: where long steps report to.
            allow_degenerate: accept a threshold that keeps nothing or everything.
            skip_nonfinite: drop rows whose score is not finite, with that reason, and go on.
            team: processes of this machine that share the scoring.
        """
        self.space = Workspace(
            settings,
            folder,
            load_model=load_model,
            progress=progress,
            skip_nonfinite=skip_nonfinite,
            team=team,
        )
        self.settings, self.folder = settings, folder
        self.allow_degenerate = allow_degenerate
        self.private, self.outbox = self.space.private, self.space.outbox

    def answer(self, data: bytes) -> bytes:
        """Answer one request; a request answered before gets the very same bytes.

        Raises:
            CluesError: the request or the silo's data cannot be used. Nothing is sent then.
        """
        request = from_bytes(data, allowed=REQUESTS, sender="coordinator")
        make_folder(self.private)
        make_folder(self.outbox)
        if (
            not isinstance(request, HelloRequest)
            and request.recipe_hash != self.space.recipe().hash
        ):
            raise RecipeMismatchError(
                f"silo {self.settings.name} works under recipe {self.space.recipe().hash}; a "
                f"{request.kind} request came for {request.recipe_hash}. Start again with hello."
            )
        # Where the rows lie does not count, what the silo agreed to share does.
        ours_alone = {"data", "model_path", "max_selections", "approval"}
        settings = self.settings.model_dump(mode="json", exclude=ours_alone)
        ours = [self.space.data_token(), settings, self.allow_degenerate, self.space.skip_nonfinite]
        overruled = overrides_token(self.space, request.recipe_hash)
        # What a person decides changes neither training nor scores.
        if overruled and not isinstance(request, TrainRequest | ScoreRequest):
            ours.append(overruled)
        stored = self.outbox / f"{request.kind}-{hash_of([checksum_of(data), ours])[:24]}.clues"
        if stored.exists():
            return stored.read_bytes()
        if isinstance(request, TrainRequest | ScoreRequest | SelectRequest):
            admit(self.space, request.recipe_hash)
        if isinstance(request, SelectRequest):
            admit_threshold(self.space, request)
            if self.settings.approval and not is_approved(self.private):
                # Not into the outbox: the next try may get another answer.
                return Refusal(recipe_hash=request.recipe_hash, answers=id_of(data)).to_bytes()
        # Only the last answer of a kind fits the private files beside it. Before the work: killed
        # half-way, those files may already be the new ones.
        for old in self.outbox.glob(f"{request.kind}-*.clues"):
            old.unlink()
        handlers: dict[type[Envelope], Callable[[Any], Reply]] = {
            HelloRequest: self._hello,
            TrainRequest: lambda r: train(self.space, r),
            ScoreRequest: lambda r: admit_proposal(self.space, score(self.space, r)),
            SelectRequest: self._select,
            FitRequest: lambda r: fit(self.space, r, self.arm_rows(r.arm)),
            EvaluateRequest: self._evaluate,
        }
        reply = replace(handlers[type(request)](request), answers=id_of(data)).to_bytes()
        atomic_write_bytes(stored, reply)
        if isinstance(request, ScoreRequest):
            # The table is whole and the answer stored: nobody needs the parts again.
            shutil.rmtree(self.private / "shards", ignore_errors=True)
        return reply

    # --- the six answers

    def _hello(self, request: HelloRequest) -> HelloReply:
        if request.version != __version__:
            raise RecipeMismatchError(
                f"silo {self.settings.name}: the coordinator runs clues {request.version[:20]}, and "
                f"here is {__version__}. Install the same version on both sides."
            )
        recipe = validate(Recipe, request.recipe, where="the coordinator's recipe")
        if recipe.hash != request.recipe_hash:
            raise RecipeMismatchError("the coordinator's recipe does not have the hash it claims.")
        if self.settings.domain not in recipe.public:
            raise DataError(
                f"silo {self.settings.name}: domain {self.settings.domain!r} has no public set "
                f"in the recipe, which lists: {', '.join(sorted(recipe.public))}."
            )
        own = self.space.own_model(recipe)
        mine = weights_sha256(own.model.name)
        if mine != recipe.model.weights_sha256:
            raise RecipeMismatchError(
                f"silo {self.settings.name}: the base model here is not the one of the recipe "
                f"({str(mine)[:12]}, expected {str(recipe.model.weights_sha256)[:12]}). Fetch "
                "the same weights, or set model_path in the silo file."
            )
        public = self.private / "public"
        make_folder(public)
        for name, content in request.public_files.items():
            payload = bytes(content.numpy())
            if token_of(payload) != name.split(".")[0] or Path(name).name != name:
                raise DataError("the coordinator's public rows do not have the hash they claim.")
            atomic_write_bytes(public / name, payload)
        own_set = recipe.public[self.settings.domain]
        sent = {name.split(".")[0] for name in request.public_files}
        if not {f.sha256 for f in (own_set.anchor, *own_set.validation.values())} <= sent:
            raise DataError("the coordinator left out public rows that its recipe names.")
        write_json(self.private / "recipe.json", own.model_dump(mode="json"))
        self.space.memory.clear()
        if self.settings.labels:
            # Labels are read after the last training; a missing column must not wait for that.
            self.space.rows().column(self.settings.labels)
        n_rows = len(self.space.encoded().rows)
        return HelloReply(
            recipe_hash=recipe.hash,
            silo=self.settings.name,
            domain=self.settings.domain,
            n_rows=round_count(n_rows),
            data_token=self.space.data_token(),
            version=__version__,
            overrides_token=overrides_token(self.space, recipe.hash),
        )

    def _select(self, request: SelectRequest) -> SelectReply:
        threshold = Threshold.from_json(request.threshold)
        remember_threshold(self.space, request)
        selection = self.select(threshold)
        write_selection(self.space, selection, threshold)
        self.write_review()
        return SelectReply(
            recipe_hash=selection.recipe_hash, n_kept=round_count(len(selection.kept))
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

    @property
    def has_selected(self) -> bool:
        """Whether a selection is in force."""
        return (self.private / "threshold.json").exists()

    def write_review(self) -> None:
        """Write the private report of the last selection anew."""
        write_review(self.space)

    def diagnostics(self, kinds: Sequence[str] = ()) -> dict[str, Any]:
        """Exact counts, and detection figures where the silo names a column of labels.

        Args:
            kinds: labels that are named; all others are `other`.
        """
        return diagnostics(self.space, kinds)

    def arm_rows(self, arm: str) -> list[EncodedRow]:
        """Rows that an arm trains on: all, the kept, as many at random, the clean ones.

        The name of a compared score gives what it would have selected.

        Raises:
            DataError: no such arm, arm oracle and the silo names no column of labels, or a
                compared score and the silo does not share diagnostics.
        """
        rows = list(self.space.encoded().rows)
        if arm == "mixed":
            return rows
        if arm not in ARMS:
            kept = compared_rows(self.space, arm)
            return [row for row in rows if row.row in kept]
        kept = set(self.space.kept())
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
        return [row for row in rows if row.row in kept]

    def clean_scratch(self) -> None:
        """Remove what the Trainer left."""
        self.space.clean_scratch()
