"""The private side: train, score, select, fit, evaluate. Rows and their scores never leave it.

A silo answers bytes with bytes and keeps everything on its own disk, so that it can be a new
process for every message. An answered request is answered again from the outbox.
"""

import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from clues.atomic import atomic_write_bytes
from clues.config import (
    ARMS,
    NEEDS_FIRST_MOMENT,
    NEEDS_SECOND_MOMENT,
    CombineSettings,
    Recipe,
    SiloSettings,
    derived_seed,
    validate,
    weights_sha256,
)
from clues.data.tokens import EncodedRow
from clues.errors import DataError, RecipeMismatchError
from clues.evaluation.detection import read_labels
from clues.federation.budget import Budget
from clues.federation.decisions import decide, write_selection
from clues.federation.diagnostics import diagnostics
from clues.federation.messages import (
    REQUESTS,
    Envelope,
    EvaluateReply,
    EvaluateRequest,
    FitReply,
    FitRequest,
    HelloReply,
    HelloRequest,
    Refusal,
    ScoreRequest,
    SelectReply,
    SelectRequest,
    TrainReply,
    TrainRequest,
    from_bytes,
    round_count,
    token_of,
)
from clues.federation.overrides import Overrides, check_overrides, overrides_token, store
from clues.federation.permission import admit, is_approved, remember
from clues.federation.rounds import read_reference, watch_round, write_round
from clues.federation.scoring import score
from clues.federation.trajectory import (
    checkpoint_steps,
    fold_of,
    group_names,
    n_train_steps,
)
from clues.federation.workspace import LoadModel, Workspace
from clues.model.adapters import save_checkpoint
from clues.model.training import Schedule, Trained
from clues.progress import Progress
from clues.rundir import hash_of, write_json
from clues.scoring.shards import Team
from clues.selection import Selection, Threshold

PACKAGES = ("torch", "transformers", "peft")


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
        self.private.mkdir(parents=True, exist_ok=True)
        self.outbox.mkdir(parents=True, exist_ok=True)
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
        # Answers from before this setting existed still count where it is not in use.
        ours_alone |= set() if self.settings.privacy else {"privacy"}
        settings = self.settings.model_dump(mode="json", exclude=ours_alone)
        ours = [self.space.data_token(), settings, self.allow_degenerate, self.space.skip_nonfinite]
        overruled = overrides_token(self.space, request.recipe_hash)
        # What a person decides changes neither training nor scores.
        if overruled and not isinstance(request, TrainRequest | ScoreRequest):
            ours.append(overruled)
        stored = self.outbox / f"{request.kind}-{hash_of([token_of(data), ours])[:24]}.clues"
        if stored.exists():
            return stored.read_bytes()
        if isinstance(request, SelectRequest):
            admit(self.space, request)
            if self.settings.approval and not is_approved(self.private):
                # Not into the outbox: the next try may get another answer.
                return Refusal(recipe_hash=request.recipe_hash).to_bytes()
        # Only the last answer of a kind fits the private files beside it. Before the work: killed
        # half-way, those files may already be the new ones.
        for old in self.outbox.glob(f"{request.kind}-*.clues"):
            old.unlink()
        handlers: dict[type[Envelope], Callable[[Any], Envelope]] = {
            HelloRequest: self._hello,
            TrainRequest: self._train,
            ScoreRequest: partial(score, self.space),
            SelectRequest: self._select,
            FitRequest: self._fit,
            EvaluateRequest: self._evaluate,
        }
        reply = handlers[type(request)](request).to_bytes()
        atomic_write_bytes(stored, reply)
        if isinstance(request, ScoreRequest):
            # The table is whole and the answer stored: nobody needs the parts again.
            shutil.rmtree(self.private / "shards", ignore_errors=True)
        return reply

    # --- the six answers

    def _hello(self, request: HelloRequest) -> HelloReply:
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
        public.mkdir(exist_ok=True)
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
            versions={name: version(name) for name in PACKAGES},
            overrides_token=overrides_token(self.space, recipe.hash),
        )

    def _train(self, request: TrainRequest) -> TrainReply:
        recipe, rows = self.space.recipe(), self.space.encoded().rows
        if not recipe.score.shared:
            self._train_inside(request)
            return TrainReply(
                recipe_hash=recipe.hash,
                weight=0,
                learning_rate=0.0,
                adapter={},
                second_moment={},
                first_moment={},
            )
        model = self.space.model()
        model.freeze_a(frozen=recipe.train.aggregation == "ffa")
        n_steps = n_train_steps(recipe.train, len(rows))
        per_round = max(1, n_steps // recipe.train.rounds)
        first = request.round * per_round
        seen = None
        if recipe.score.inrun:
            seen = watch_round(
                model,
                read_reference(request.directions, request.validation),
                self.space.public("anchor"),
                n_rows=len(rows),
                first_step=first,
                n_steps=per_round * recipe.train.rounds,
                recipe=recipe,
                silo=self.settings.name,
            )
        trained = self._run(
            rows,
            f"round {request.round + 1}",
            order=seen.order[first : first + per_round].ravel().tolist() if seen else None,
            observer=seen,
            start=request.adapter,
            budget=f"train {request.round} {token_of(request.to_bytes())}",
            schedule=Schedule(
                recipe.train.learning_rate, recipe.train.warmup, per_round * recipe.train.rounds
            ),
            n_steps=per_round,
            first_step=first,
            seed=derived_seed(recipe.seed, "train", self.settings.name, request.round),
            checkpoint_at=(per_round,),
        )
        if seen:
            write_round(self.space.inrun_folder(), request.round, seen)
        last, forms = trained.checkpoints[-1], recipe.score.forms
        return TrainReply(
            recipe_hash=recipe.hash,
            weight=round_count(len(rows)),
            learning_rate=last.learning_rate,
            adapter=last.adapter,
            second_moment=last.second_moment if forms & set(NEEDS_SECOND_MOMENT) else {},
            first_moment=last.first_moment if forms & set(NEEDS_FIRST_MOMENT) else {},
        )

    def _train_inside(self, request: TrainRequest) -> None:
        """Train the silo's own trajectory, one for every fold; checkpoints stay here."""
        recipe, rows = self.space.recipe(), self.space.encoded().rows
        self.space.model().freeze_a(frozen=False)
        for fold in range(len(group_names(recipe, self.settings.name, self.settings.domain))):
            folder = self.space.trajectory_folder(recipe, fold)
            if (folder / "done").exists():
                continue
            chosen = [
                r for r in rows if recipe.score.trajectory == "local" or fold_of(r, recipe) != fold
            ]
            if not chosen:
                raise DataError(f"silo {self.settings.name}: too few rows to cross-fit.")
            n_steps = n_train_steps(recipe.train, len(chosen))
            trained = self._run(
                chosen,
                f"fold {fold + 1}" if recipe.score.trajectory == "crossfit" else "own trajectory",
                start=request.adapter,
                budget="",
                schedule=Schedule(recipe.train.learning_rate, recipe.train.warmup, n_steps),
                n_steps=n_steps,
                first_step=0,
                seed=derived_seed(recipe.seed, "train", self.settings.name, fold),
                checkpoint_at=checkpoint_steps(n_steps, recipe.train.checkpoints),
            )
            for number, checkpoint in enumerate(trained.checkpoints):
                save_checkpoint(checkpoint, folder / f"checkpoint-{number}")
            atomic_write_bytes(folder / "done", b"")

    def _run(self, rows: Sequence[EncodedRow], what: str, *, budget: str, **how: Any) -> Trained:
        """Train, with noise where the silo's settings say so; `budget` is what it is booked as."""
        if self.settings.privacy is None:
            return self.space.train(list(rows), what, **how)
        return Budget(self.space).train(rows, what, booked=budget, **how)

    def _select(self, request: SelectRequest) -> SelectReply:
        threshold = Threshold.from_json(request.threshold)
        remember(self.space, request)
        selection = self.select(threshold)
        write_selection(self.space, selection, threshold)
        return SelectReply(
            recipe_hash=selection.recipe_hash, n_kept=round_count(len(selection.kept))
        )

    def _fit(self, request: FitRequest) -> FitReply:
        recipe = self.space.recipe()
        settings = validate(CombineSettings, request.combine, where="the fit request")
        rows = self.arm_rows(request.arm)
        if not rows:
            return FitReply(recipe_hash=recipe.hash, weight=0, adapter={})
        once = settings.method != "fedavg"
        n_steps = settings.local_steps * (settings.rounds if once else 1)
        self.space.model().freeze_a(frozen=not once and settings.aggregation == "ffa")
        peak = settings.learning_rate or recipe.train.learning_rate
        # With stack, what all have learnt so far is the base, and a new adapter learns the rest.
        stacks = settings.aggregation == "stack" and not once
        model = self.space.model()
        with model.on_top_of(request.adapter) if stacks else nullcontext():
            trained = self._run(
                rows,
                f"{request.arm}, round {request.round + 1}",
                start=model.initial if stacks else request.adapter,
                budget=f"fit-{request.arm} {request.round} {token_of(request.to_bytes())}",
                schedule=Schedule(
                    peak, recipe.train.warmup, settings.local_steps * settings.rounds
                ),
                n_steps=n_steps,
                first_step=request.round * n_steps,
                # The same seed for every arm: arms differ by their rows alone.
                seed=derived_seed(recipe.seed, "fit", self.settings.name, request.round),
                proximal=settings.proximal,
            )
        return FitReply(
            recipe_hash=recipe.hash, weight=round_count(len(rows)), adapter=trained.adapter
        )

    def _evaluate(self, request: EvaluateRequest) -> EvaluateReply:
        recipe, spent = self.space.recipe(), Budget(self.space).report()
        shared = self.diagnostics() if self.settings.share_diagnostics else {}
        return EvaluateReply(recipe_hash=recipe.hash, diagnostics={**shared, **spent})

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

    def diagnostics(self) -> dict[str, Any]:
        """Exact counts, and detection figures where the silo names a column of labels."""
        return diagnostics(self.space)

    def arm_rows(self, arm: str) -> list[EncodedRow]:
        """Rows that an arm trains on: all, the kept, as many at random, or the clean ones.

        Raises:
            DataError: no such arm, or arm oracle and the silo names no column of labels.
        """
        if arm not in ARMS:
            raise DataError(f"silo {self.settings.name}: there is no arm {arm[:40]!r}.")
        rows = list(self.space.encoded().rows)
        if arm == "mixed":
            return rows
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
