"""The private side: train, score, select, fit, evaluate. Rows and their scores never leave it.

A silo answers bytes with bytes and keeps everything on its own disk, so that it can be a new
process for every message. An answered request is answered again from the outbox.
"""

import csv
import hmac
import io
import json
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clues.atomic import atomic_write_bytes
from clues.config import (
    ARMS,
    LOSS,
    NEEDS_FIRST_MOMENT,
    NEEDS_SECOND_MOMENT,
    CombineSettings,
    Recipe,
    SiloSettings,
    derived_seed,
    validate,
    weights_sha256,
)
from clues.data.formats import RowFile, read_rows, write_rows
from clues.data.tokens import EncodedRow, EncodedRows, RowEncoder, encode_rows
from clues.errors import DataError, RecipeMismatchError
from clues.evaluation.compare import figures as compared_figures
from clues.evaluation.detection import detection, ranking, read_labels
from clues.federation.comparison import Compared, compare, score_by_baseline
from clues.federation.messages import (
    REQUESTS,
    Envelope,
    EvaluateReply,
    EvaluateRequest,
    FitReply,
    FitRequest,
    HelloReply,
    HelloRequest,
    ScoreReply,
    ScoreRequest,
    SelectReply,
    SelectRequest,
    TrainReply,
    TrainRequest,
    from_bytes,
    round_count,
    token_of,
)
from clues.federation.rounds import read_reference, read_scores, watch_round, write_round
from clues.federation.trajectory import (
    TrajectoryScores,
    anchors_at_coordinator,
    check_probe,
    checkpoint_steps,
    fold_of,
    group_names,
    n_train_steps,
    probe_loss,
    score_rows,
    set_weights,
)
from clues.model.adapters import Checkpoint, LoraModel, load_checkpoint, save_checkpoint
from clues.model.training import Schedule, train
from clues.progress import Progress
from clues.rundir import hash_of, write_json
from clues.scoring.baselines import BASELINES
from clues.scoring.direction import scored_weights
from clues.scoring.forms import form_directions
from clues.scoring.perplexity import mean_losses
from clues.scoring.shards import Team
from clues.scoring.table import ScoreTable
from clues.selection import (
    Selection,
    Threshold,
    Units,
    anchor_units,
    combine,
    mixture_cut,
    select,
)

LoadModel = Callable[[Recipe], tuple[LoraModel, RowEncoder]]
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
        self.skip_nonfinite, self.team = skip_nonfinite, team
        self.settings, self.folder = settings, folder
        self.private, self.outbox = folder / "private", folder / "outbox"
        self.load_model, self.progress = load_model, progress
        self.allow_degenerate = allow_degenerate
        self._memory: dict[str, Any] = {}

    def answer(self, data: bytes) -> bytes:
        """Answer one request; a request answered before gets the very same bytes.

        Raises:
            CluesError: the request or the silo's data cannot be used. Nothing is sent then.
        """
        request = from_bytes(data, allowed=REQUESTS, sender="coordinator")
        self.private.mkdir(parents=True, exist_ok=True)
        self.outbox.mkdir(parents=True, exist_ok=True)
        if not isinstance(request, HelloRequest) and request.recipe_hash != self._recipe().hash:
            raise RecipeMismatchError(
                f"silo {self.settings.name} works under recipe {self._recipe().hash}; a "
                f"{request.kind} request came for {request.recipe_hash}. Start again with hello."
            )
        # Where the rows lie does not count, what the silo agreed to share does.
        settings = self.settings.model_dump(mode="json", exclude={"data", "model_path"})
        ours = [self._data_token(), settings, self.allow_degenerate, self.skip_nonfinite]
        stored = self.outbox / f"{request.kind}-{hash_of([token_of(data), ours])[:24]}.clues"
        if stored.exists():
            return stored.read_bytes()
        # Only the last answer of a kind fits the private files beside it. Before the work: killed
        # half-way, those files may already be the new ones.
        for old in self.outbox.glob(f"{request.kind}-*.clues"):
            old.unlink()
        handlers: dict[type[Envelope], Callable[[Any], Envelope]] = {
            HelloRequest: self._hello,
            TrainRequest: self._train,
            ScoreRequest: self._score,
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
        own = self._own_model(recipe)
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
        self._memory.clear()
        n_rows = len(self._encoded().rows)
        return HelloReply(
            recipe_hash=recipe.hash,
            silo=self.settings.name,
            domain=self.settings.domain,
            n_rows=round_count(n_rows),
            data_token=self._data_token(),
            versions={name: version(name) for name in PACKAGES},
        )

    def _train(self, request: TrainRequest) -> TrainReply:
        recipe, rows = self._recipe(), self._encoded().rows
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
        model = self._model()
        model.freeze_a(frozen=recipe.train.aggregation == "ffa")
        n_steps = n_train_steps(recipe.train, len(rows))
        per_round = max(1, n_steps // recipe.train.rounds)
        first = request.round * per_round
        seen = None
        if recipe.score.inrun:
            seen = watch_round(
                model,
                read_reference(request.directions, request.validation),
                self._public("anchor"),
                n_rows=len(rows),
                first_step=first,
                n_steps=per_round * recipe.train.rounds,
                recipe=recipe,
                silo=self.settings.name,
            )
        trained = self._run_training(
            rows,
            f"round {request.round + 1}",
            order=seen.order[first : first + per_round].ravel().tolist() if seen else None,
            observer=seen,
            start=request.adapter,
            schedule=Schedule(
                recipe.train.learning_rate, recipe.train.warmup, per_round * recipe.train.rounds
            ),
            n_steps=per_round,
            first_step=first,
            seed=derived_seed(recipe.seed, "train", self.settings.name, request.round),
            checkpoint_at=(per_round,),
        )
        if seen:
            write_round(self._inrun_folder(), request.round, seen)
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
        recipe, rows = self._recipe(), self._encoded().rows
        self._model().freeze_a(frozen=False)
        for fold in range(len(group_names(recipe, self.settings.name, self.settings.domain))):
            folder = self._trajectory_folder(recipe, fold)
            if (folder / "done").exists():
                continue
            chosen = [
                r for r in rows if recipe.score.trajectory == "local" or fold_of(r, recipe) != fold
            ]
            if not chosen:
                raise DataError(f"silo {self.settings.name}: too few rows to cross-fit.")
            n_steps = n_train_steps(recipe.train, len(chosen))
            trained = self._run_training(
                chosen,
                f"fold {fold + 1}" if recipe.score.trajectory == "crossfit" else "own trajectory",
                start=request.adapter,
                schedule=Schedule(recipe.train.learning_rate, recipe.train.warmup, n_steps),
                n_steps=n_steps,
                first_step=0,
                seed=derived_seed(recipe.seed, "train", self.settings.name, fold),
                checkpoint_at=checkpoint_steps(n_steps, recipe.train.checkpoints),
            )
            for number, checkpoint in enumerate(trained.checkpoints):
                save_checkpoint(checkpoint, folder / f"checkpoint-{number}")
            atomic_write_bytes(folder / "done", b"")

    def _score(self, request: ScoreRequest) -> ScoreReply:
        recipe, encoded = self._recipe(), self._encoded()
        groups = group_names(recipe, self.settings.name, self.settings.domain)
        model, rows = self._model(), list(encoded.rows)
        frozen = recipe.score.shared and recipe.train.aggregation == "ffa"
        weights = scored_weights(model, recipe.score, frozen_a=frozen)
        raw: dict[str, np.ndarray] = {}
        parts: dict[str, np.ndarray] = {
            "base/loss": mean_losses(
                model, rows, adapter=model.initial, skip_nonfinite=self.skip_nonfinite
            )
        }
        fold = np.array([fold_of(r, recipe) if len(groups) > 1 else 0 for r in rows])
        anchors: dict[str, dict[str, list[float]]] = {}
        compared: dict[str, dict[str, list[float]]] = {}
        for number, group in enumerate(groups):
            members = np.flatnonzero(fold == number)
            if not len(members):
                raise DataError(f"silo {self.settings.name}: too few rows to cross-fit.")
            scene = self._scene(request, number, weights)
            chosen = [rows[i] for i in members]
            scored, anchor_scores = self._score_group(chosen, scene, request)
            finite = _finite([*scored.raw.values(), parts["base/loss"][members]])
            chosen = [row for row, good in zip(chosen, finite, strict=True) if good]
            if not anchors_at_coordinator(recipe):
                anchors[group] = {k: [float(x) for x in v] for k, v in anchor_scores.items()}
            found = compare(
                model,
                chosen,
                self._public("anchor") if recipe.score.compare else [],
                scene.validation,
                scene.checkpoints,
                recipe=recipe,
                domain=self.settings.domain,
                names=weights,
            )
            if "inrun" in recipe.score.compare:
                found["inrun"] = self._compared_in_run(rows, finite)
            for name, other in found.items():
                compared.setdefault(name, {})[group] = [float(x) for x in other.anchors]
            beside = {f"compare/{n}": _spread(c.rows, finite) for n, c in found.items()}
            for target, source in ((raw, scored.raw), (parts, scored.parts | beside)):
                for name, values in source.items():
                    target.setdefault(name, np.zeros(len(rows)))[members] = values
            self._memory.setdefault("anchor_scores", {})[group] = anchor_scores
        write_json(self.private / "compared.json", compared)
        finite = _finite([*raw.values(), parts["base/loss"]])
        lost = [row for row, good in zip(rows, finite, strict=True) if not good]
        write_json(self.private / "nonfinite.json", {str(row.row): row.id for row in lost})
        rows = [row for row, good in zip(rows, finite, strict=True) if good]
        raw = {name: values[finite] for name, values in raw.items()}
        fold = fold[finite]
        ScoreTable(
            recipe_hash=recipe.scoring_hash,
            row=np.array([r.row for r in rows]),
            id=tuple(r.id for r in rows),
            fold=fold,
            n_tokens=np.array([len(r.ids) for r in rows]),
            n_response_tokens=np.array([r.n_response_tokens for r in rows]),
            raw=raw,
            parts={name: values[finite] for name, values in parts.items()},
        ).write(self.private / "scores.parquet")
        proposal = self._proposal(recipe, groups, raw, fold)
        return ScoreReply(recipe_hash=recipe.hash, anchor_scores=anchors, proposal=proposal)

    def _scene(self, request: ScoreRequest, number: int, weights: list[str]) -> "_Scene":
        """Checkpoints and directions of one group, sent by the coordinator or made here."""
        recipe = self._recipe()
        public = recipe.public[self.settings.domain]
        validation = {name: self._public(name) for name in public.validation}
        if recipe.score.shared:
            n = {len(request.learning_rates), len(request.optimizer_steps)}
            if n != {len(request.probe_losses)}:
                raise DataError("the score request's checkpoints do not fit together.")
            checkpoints, directions = _sent_trajectory(request)
            for checkpoint, expected in zip(checkpoints, request.probe_losses, strict=True):
                check_probe(
                    probe_loss(self._model(), validation, checkpoint),
                    expected,
                    recipe=recipe,
                    where=f"silo {self.settings.name}",
                )
            return _Scene(checkpoints, directions, validation, weights)
        checkpoints = self._own_checkpoints(recipe, number)
        # Other scores than influence need no direction.
        sets = validation if recipe.score.method == "influence" else {}
        directions = [
            form_directions(self._model(), sets, c, form=recipe.score.form, weights=weights)
            for c in checkpoints
        ]
        return _Scene(checkpoints, directions, validation, weights)

    def _score_group(
        self, rows: list[EncodedRow], scene: "_Scene", request: ScoreRequest
    ) -> tuple[TrajectoryScores, dict[str, np.ndarray]]:
        """Scores of a group's rows, and of the anchors on the same checkpoints."""
        recipe, model = self._recipe(), self._model()
        method, anchors = recipe.score.method, self._public("anchor")
        if recipe.score.trajectory == "inrun":
            ours, theirs = self._in_run_scores(rows)
            wanted = set_weights(recipe.score, recipe.public[self.settings.domain].validation)
            parts = {f"inrun/{name}": values for name, values in ours.items() if name != LOSS}
            parts["inrun/loss"] = -ours[LOSS]
            chosen = {name: ours[name] for name in wanted}
            return TrajectoryScores(chosen, parts), {name: theirs[name] for name in wanted}
        if method in BASELINES:
            found = score_by_baseline(
                method,
                model,
                rows,
                anchors,
                scene.validation,
                scene.checkpoints[-1],
                recipe=recipe,
                domain=self.settings.domain,
                names=scene.weights,
            )
            last = mean_losses(model, rows, adapter=scene.checkpoints[-1].adapter)
            return TrajectoryScores({method: found.rows}, {"0/loss": last}), {method: found.anchors}
        how: dict[str, Any] = {"settings": recipe.score}
        if anchors_at_coordinator(recipe):
            anchor_scores = {k: np.array(v) for k, v in request.anchor_scores.items()}
        else:
            anchor_scores = score_rows(
                model, anchors, scene.checkpoints, scene.directions, **how
            ).raw
        with self.progress.task(
            f"{self.settings.name}: score", len(rows) * len(scene.checkpoints)
        ) as advance:
            scored = score_rows(
                model,
                rows,
                scene.checkpoints,
                scene.directions,
                on_rows=advance,
                shards=self.private / "shards",
                team=self.team,
                skip_nonfinite=self.skip_nonfinite,
                **how,
            )
        return scored, anchor_scores

    def _in_run_scores(
        self, rows: list[EncodedRow]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        n_anchors = len(self._public("anchor"))
        n_rounds = self._recipe().train.rounds
        folder = self._inrun_folder()
        return read_scores(folder, n_rounds, n_rows=len(rows), n_anchors=n_anchors)

    def _compared_in_run(self, rows: list[EncodedRow], finite: np.ndarray) -> Compared:
        """In-run influence beside the score that decides, without the loss."""
        public = self._recipe().public[self.settings.domain]
        weights = {name: file.weight for name, file in public.validation.items()}
        ours, theirs = self._in_run_scores(rows)
        # One unit for all sets already: what a mean validation row scores.
        ones = dict.fromkeys(weights, 1.0)
        return Compared(combine(ours, weights, ones)[finite], combine(theirs, weights, ones))

    def _select(self, request: SelectRequest) -> SelectReply:
        threshold = Threshold.from_json(request.threshold)
        selection = self.select(threshold)
        self._write_selection(selection, threshold)
        return SelectReply(
            recipe_hash=selection.recipe_hash, n_kept=round_count(len(selection.kept))
        )

    def _fit(self, request: FitRequest) -> FitReply:
        recipe = self._recipe()
        settings = validate(CombineSettings, request.combine, where="the fit request")
        rows = self.arm_rows(request.arm)
        if not rows:
            return FitReply(recipe_hash=recipe.hash, weight=0, adapter={})
        once = settings.method != "fedavg"
        n_steps = settings.local_steps * (settings.rounds if once else 1)
        self._model().freeze_a(frozen=not once and settings.aggregation == "ffa")
        peak = settings.learning_rate or recipe.train.learning_rate
        trained = self._run_training(
            rows,
            f"{request.arm}, round {request.round + 1}",
            start=request.adapter,
            schedule=Schedule(peak, recipe.train.warmup, settings.local_steps * settings.rounds),
            n_steps=n_steps,
            first_step=request.round * n_steps,
            # The same seed for every arm: arms differ by their rows alone.
            seed=derived_seed(recipe.seed, "fit", self.settings.name, request.round),
        )
        return FitReply(
            recipe_hash=recipe.hash, weight=round_count(len(rows)), adapter=trained.adapter
        )

    def _evaluate(self, request: EvaluateRequest) -> EvaluateReply:
        recipe = self._recipe()
        if not self.settings.share_diagnostics:
            return EvaluateReply(recipe_hash=recipe.hash, diagnostics={})
        return EvaluateReply(recipe_hash=recipe.hash, diagnostics=self.diagnostics())

    # --- what the silo itself may look at

    def select(self, threshold: Threshold) -> Selection:
        """Decide about every row under a threshold, and write nothing.

        Raises:
            RecipeMismatchError: the scores come from another recipe.
            DegenerateSelectionError: nothing, everything or too few rows would be kept.
        """
        table, encoded = self._scores(), self._encoded()
        samples = {s.row: s.id for s in self._rows().samples}
        recipe = self._recipe()
        path = self.private / "nonfinite.json"
        lost = json.loads(path.read_text()) if path.exists() else {}
        dropped = {**encoded.dropped, **{int(row): "its score is not finite" for row in lost}}
        # Another rule for the threshold leaves the scores what they are.
        current = table.recipe_hash == recipe.scoring_hash
        return select(
            list(zip(table.row.tolist(), table.id, strict=True)),
            self._in_units(table, threshold),
            threshold,
            recipe_hash=recipe.hash if current else table.recipe_hash,
            dropped={row: (samples[row], why) for row, why in dropped.items()},
            where=f"silo {self.settings.name}",
            min_kept=self.settings.min_kept,
            allow_degenerate=self.allow_degenerate,
        )

    def diagnostics(self) -> dict[str, Any]:
        """Exact counts, and detection figures where the silo names a column of labels."""
        threshold = Threshold.from_json(json.loads((self.private / "threshold.json").read_text()))
        table, kept = self._scores(), set(self._kept())
        units = next(u for g, u in threshold.units.items() if g in self._groups())
        figures: dict[str, Any] = {
            "rows": len(table.row),
            "kept": len(kept),
            "threshold": None
            if threshold.value is None
            else threshold.value * units.spread + units.location,
        }
        labels = read_labels(self._rows(), self.settings.labels)
        if labels is None:
            return figures
        scored = [labels[row] for row in table.row]
        figures["clean"] = sum(label is None for label in scored)
        figures |= detection(scored, np.array([row in kept for row in table.row]))
        losses = [
            v for name, v in table.parts.items() if name.endswith("/loss") and name != "base/loss"
        ]
        terms = [v for name, v in table.raw.items() if name != LOSS]
        influence = np.sum(terms, axis=0) if self._recipe().score.method == "influence" else None
        methods: dict[str, Any] = {
            "selection score": self._in_units(table, threshold),
            **({"influence": influence} if influence is not None else {}),
            "perplexity": -table.parts["base/loss"],
            "perplexity, trained": -np.mean(losses, axis=0),
            "length": table.n_response_tokens.astype(float),
        }
        figures["detection"] = {name: ranking(scored, s) for name, s in methods.items()}
        for name, anchors in json.loads((self.private / "compared.json").read_text()).items():
            figures["detection"][name] = compared_figures(
                name,
                table.parts[f"compare/{name}"],
                table.fold,
                {group: np.array(values) for group, values in anchors.items()},
                scored,
                recipe=self._recipe(),
            )
        figures["auc"] = figures["detection"]["selection score"]["auc"]
        for kind in sorted({x for x in scored if x}):
            mask = np.array([x == kind for x in scored])
            dropped = np.array([row not in kept for row in table.row])
            figures.setdefault("dropped_by_kind", {})[kind] = float(dropped[mask].mean())
        return figures

    def arm_rows(self, arm: str) -> list[EncodedRow]:
        """Rows that an arm trains on: all, the kept, as many at random, or the clean ones.

        Raises:
            DataError: no such arm, or arm oracle and the silo names no column of labels.
        """
        if arm not in ARMS:
            raise DataError(f"silo {self.settings.name}: there is no arm {arm[:40]!r}.")
        rows = list(self._encoded().rows)
        if arm == "mixed":
            return rows
        kept = set(self._kept())
        if arm == "random":
            seed = derived_seed(self._recipe().seed, "random", self.settings.name)
            rng = np.random.default_rng(seed)
            kept = {rows[i].row for i in rng.choice(len(rows), len(kept), replace=False)}
        if arm == "oracle":
            labels = read_labels(self._rows(), self.settings.labels)
            if labels is None:
                raise DataError(
                    f"silo {self.settings.name}: arm oracle needs labels. Name their column in "
                    "the silo file, or leave the arm out of evaluate.arms."
                )
            kept = {row for row, label in enumerate(labels) if label is None}
        return [row for row in rows if row.row in kept]

    # --- helpers

    def _run_training(
        self, rows: list[EncodedRow] | tuple[EncodedRow, ...], what: str, **how: Any
    ) -> Any:
        with self.progress.task(f"{self.settings.name}: {what}", how["n_steps"]) as advance:
            return train(
                self._model(),
                rows,
                settings=self._recipe().train,
                scratch=str(self.private / "scratch"),
                on_step=lambda: advance(1),
                **how,
            )

    def _proposal(
        self, recipe: Recipe, groups: list[str], raw: dict[str, np.ndarray], fold: np.ndarray
    ) -> float | None:
        if recipe.threshold.rule != "mixture":
            return None
        public = recipe.public[self.settings.domain]
        weights = set_weights(recipe.score, public.validation)
        scores = np.zeros(len(fold))
        for number, group in enumerate(groups):
            anchors = self._memory["anchor_scores"][group]
            units = anchor_units(anchors, weights, kind=recipe.threshold.units)
            members = fold == number
            scores[members] = units.apply({k: v[members] for k, v in raw.items()})
        return mixture_cut(scores, seed=derived_seed(recipe.seed, "mixture", self.settings.name))

    def _in_units(self, table: ScoreTable, threshold: Threshold) -> np.ndarray:
        scores = np.zeros(len(table.row))
        for number, group in enumerate(self._groups()):
            units: Units | None = threshold.units.get(group)
            if units is None:
                raise RecipeMismatchError(
                    f"silo {self.settings.name}: the threshold has no units for group {group}."
                )
            members = table.fold == number
            scores[members] = units.apply({k: v[members] for k, v in table.raw.items()})
        return scores

    def _write_selection(self, selection: Selection, threshold: Threshold) -> None:
        rows = self._rows()
        write_rows(rows, selection.kept, self.private / f"kept{rows.suffix}")
        write_rows(rows, selection.dropped, self.private / f"dropped{rows.suffix}")
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["row", "id", "score", "kept", "reason"])
        for d in selection.decisions:
            writer.writerow([d.row + 1, d.id, d.score, int(d.kept), d.reason])
        atomic_write_bytes(self.private / "decisions.csv", buffer.getvalue().encode())
        write_json(self.private / "threshold.json", threshold.to_json())
        # The last file of a selection: what reads it finds the others whole.
        write_json(self.private / "selection.json", list(selection.kept))

    def _kept(self) -> list[int]:
        path = self.private / "selection.json"
        if not path.exists():
            raise DataError(f"silo {self.settings.name}: nothing is selected yet.")
        return json.loads(path.read_text())

    def _scores(self) -> ScoreTable:
        return ScoreTable.read(self.private / "scores.parquet")

    def _groups(self) -> list[str]:
        return group_names(self._recipe(), self.settings.name, self.settings.domain)

    def _trajectory_folder(self, recipe: Recipe, fold: int) -> Path:
        name = f"{recipe.scoring_hash}-{self._data_token()}"
        return self.private / "checkpoints" / name / f"fold-{fold}"

    def _inrun_folder(self) -> Path:
        return self.private / "inrun" / f"{self._recipe().scoring_hash}-{self._data_token()}"

    def _own_checkpoints(self, recipe: Recipe, fold: int) -> list[Checkpoint]:
        folder = self._trajectory_folder(recipe, fold)
        if not (folder / "done").exists():
            raise DataError(
                f"silo {self.settings.name}: there are no checkpoints yet. Train first."
            )
        found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
        return [load_checkpoint(path) for path in found]

    def _own_model(self, recipe: Recipe) -> Recipe:
        """The recipe with the base model where this silo keeps it."""
        if self.settings.model_path is None:
            return recipe
        model = recipe.model.model_copy(update={"name": self.settings.model_path})
        return recipe.model_copy(update={"model": model})

    def _recipe(self) -> Recipe:
        if "recipe" not in self._memory:
            path = self.private / "recipe.json"
            if not path.exists():
                raise RecipeMismatchError(f"silo {self.settings.name}: no recipe yet; hello first.")
            content = json.loads(path.read_text())
            self._memory["recipe"] = validate(Recipe, content, where="the stored recipe")
        return self._memory["recipe"]

    def _model(self) -> LoraModel:
        if "model" not in self._memory:
            self._memory["model"], self._memory["encoder"] = self.load_model(self._recipe())
        return self._memory["model"]

    def _encoder(self) -> RowEncoder:
        self._model()
        return self._memory["encoder"]

    def _rows(self) -> RowFile:
        if "rows" not in self._memory:
            self._memory["rows"] = read_rows(self.settings.data, schema=self.settings.schema_name)
        return self._memory["rows"]

    def _encoded(self) -> EncodedRows:
        if "encoded" not in self._memory:
            rows = self._rows()
            self._memory["encoded"] = encode_rows(
                rows.samples, self._encoder(), where=f"silo {self.settings.name}"
            )
        return self._memory["encoded"]

    def _public(self, name: str) -> list[EncodedRow]:
        public = self._recipe().public[self.settings.domain]
        file = public.anchor if name == "anchor" else public.validation[name]
        path = next((self.private / "public").glob(f"{file.sha256}.*"))
        encoded = encode_rows(read_rows(path).samples, self._encoder(), where=f"public set {name}")
        return list(encoded.rows)

    def _data_token(self) -> str:
        """Changes when the rows change, and tells nobody without the silo's key what they are."""
        if "data_token" not in self._memory:
            key_file = self.private / "data.key"
            if not key_file.exists():
                atomic_write_bytes(key_file, secrets.token_bytes(32))
            ids = "".join(sample.id for sample in self._rows().samples)
            key = key_file.read_bytes()
            self._memory["data_token"] = hmac.new(key, ids.encode(), "sha256").hexdigest()[:16]
        return self._memory["data_token"]

    def clean_scratch(self) -> None:
        """Remove what the Trainer left."""
        shutil.rmtree(self.private / "scratch", ignore_errors=True)


@dataclass(frozen=True)
class _Scene:
    """What a group of rows is scored with."""

    checkpoints: list[Checkpoint]
    directions: list[dict[str, Any]]
    validation: dict[str, list[EncodedRow]]
    weights: list[str]


def _sent_trajectory(
    request: ScoreRequest,
) -> tuple[list[Checkpoint], list[dict[str, Any]]]:
    """Take the checkpoints and directions of the global trajectory out of their message."""
    checkpoints: list[Checkpoint] = []
    directions: list[dict[str, Any]] = []
    for index, rate in enumerate(request.learning_rates):
        adapter = _under(request.checkpoints, f"{index}|")
        checkpoints.append(
            Checkpoint(
                step=index,
                learning_rate=rate,
                adapter=adapter,
                second_moment=_under(request.moments, f"{index}/second|"),
                first_moment=_under(request.moments, f"{index}/first|"),
                optimizer_steps=request.optimizer_steps[index],
            )
        )
        sets: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in request.directions.items():
            where, _, weight = name.partition("|")
            number, _, set_name = where.partition("/")
            if number == str(index):
                sets.setdefault(set_name, {})[weight] = tensor
        directions.append(sets)
    return checkpoints, directions


def _finite(values: list[np.ndarray]) -> np.ndarray:
    """Rows whose numbers are all finite."""
    return np.array([np.isfinite(numbers).all() for numbers in zip(*values, strict=True)], bool)


def _spread(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Values of the rows that have one; NaN for the others."""
    spread = np.full(len(where), np.nan)
    spread[where] = values
    return spread


def _under(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}
