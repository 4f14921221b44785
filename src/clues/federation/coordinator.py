"""The public side: recipe, anchors, threshold, rounds or merge, evaluation.

It sees public rows, adapters and anchor scores; it opens no silo's folder and imports no silo.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from clues.config import (
    FORMS,
    LINEAR_FORMS,
    LOSS,
    NEEDS_FIRST_MOMENT,
    NEEDS_SECOND_MOMENT,
    CombineSettings,
    EvaluateSettings,
    FederationSettings,
    Recipe,
    derived_seed,
)
from clues.data.formats import read_rows
from clues.data.tokens import EncodedRow, RowEncoder, encode_rows
from clues.evaluation.choice import HeldOut, held_out, measure
from clues.federation.attendance import Attendance
from clues.federation.exchange import Exchange
from clues.federation.fitting import Fitting
from clues.federation.guards import (
    check_anchor_scores,
    check_hello,
    check_select,
    check_train,
    too_long,
    update_norm,
)
from clues.federation.messages import (
    EvaluateReply,
    EvaluateRequest,
    HelloReply,
    HelloRequest,
    ScoreReply,
    ScoreRequest,
    SelectReply,
    SelectRequest,
    TrainReply,
    TrainRequest,
)
from clues.federation.public import check_public_rows, file_hash, portable_recipe, public_files
from clues.federation.rounds import is_refreshed, make_reference
from clues.federation.trajectory import (
    anchors_at_coordinator,
    group_names,
    n_train_steps,
    probe_loss,
    score_rows,
    set_weights,
)
from clues.federation.transport import Transport
from clues.federation.updates import Inbox, Update
from clues.model.adapters import (
    AdapterState,
    Checkpoint,
    LoraModel,
    load_checkpoint,
    save_checkpoint,
    write_tensors,
)
from clues.model.merging import aggregate
from clues.progress import Progress
from clues.rundir import Stages, hash_of, write_json
from clues.scoring.direction import mean_gradient, scored_weights
from clues.scoring.forms import form_directions
from clues.selection import Threshold, fit_threshold


class Coordinator:
    """Runs the protocol, stage by stage; a finished stage is not run again."""

    def __init__(
        self,
        recipe: Recipe,
        combine: CombineSettings,
        evaluate: EvaluateSettings,
        folder: Path,
        *,
        transport: Transport,
        load_model: Callable[[Recipe], tuple[LoraModel, RowEncoder]],
        progress: Progress,
        federation: FederationSettings | None = None,
    ) -> None:
        """Load the base model and make the initial adapter from the recipe's seed."""
        self.federation = federation or FederationSettings()
        self.attendance = Attendance(
            folder / "absences.json", recipe_hash=recipe.hash, quorum=self.federation.quorum
        )
        self.exchange = Exchange(transport, self.attendance, recipe_hash=recipe.hash)
        self.recipe, self.combine, self.evaluate = recipe, combine, evaluate
        self.folder, self.transport, self.progress = folder, transport, progress
        self.load_model = load_model
        self.model, self.encoder = load_model(recipe)
        self.initial = self.model.initial
        self.stages = Stages(folder / "stages")
        self.frozen_a = recipe.score.shared and recipe.train.aggregation == "ffa"

    # --- stages, in order

    def hello(self) -> dict[str, Any]:
        """Send recipe and public rows; learn who is there.

        Always runs: it is cheap, and the data tokens tell whether a silo's rows have changed.
        """
        check_public_rows(self.recipe, self.evaluate)
        request = HelloRequest(
            recipe_hash=self.recipe.hash,
            recipe=portable_recipe(self.recipe),
            public_files=public_files(self.recipe),
        )

        def take(name: str, reply: HelloReply) -> dict[str, Any]:
            domains, limit = list(self.recipe.public), self.federation.max_rows
            check_hello(name, reply, domains=domains, max_rows=limit)
            return {"domain": reply.domain, "n_rows": reply.n_rows, "token": reply.data_token}

        asked = [name for name in self.transport.silos if name not in self.attendance.left_out]
        found = self.exchange.ask("hello", dict.fromkeys(asked, request), take)
        self.attendance.members = found
        return found

    @property
    def silos(self) -> dict[str, dict[str, Any]]:
        """Silos that take part, and what hello told about them."""
        return self.attendance.members

    def train(self) -> dict[str, Any]:
        """Make the trajectory whose checkpoints are scored."""
        return self.stages.run("train", self._inputs("train"), self._train)

    def score(self) -> dict[str, Any]:
        """Have every silo score its rows; keep the anchors' scores by group."""
        return self.stages.run("score", self._inputs("score"), self._score)

    def threshold(self) -> Threshold:
        """Set the one threshold from the anchors."""
        scored = self.score()
        inputs = {**self._inputs("threshold"), "scored": _without_seconds(scored)}

        def compute() -> dict[str, Any]:
            groups = scored["anchors"]
            domains = self._group_domains()
            threshold = fit_threshold(
                {g: {k: np.array(v) for k, v in sets.items()} for g, sets in groups.items()},
                {
                    g: set_weights(self.recipe.score, self.recipe.public[domains[g]].validation)
                    for g in groups
                },
                self.recipe.threshold,
                recipe_hash=self.recipe.hash,
                seed=derived_seed(self.recipe.seed, "bootstrap"),
                proposals={k: v for k, v in scored["proposals"].items() if v is not None},
            )
            write_json(self.folder / "threshold.json", threshold.to_json())
            return {"threshold": threshold.to_json()}

        return Threshold.from_json(self.stages.run("threshold", inputs, compute)["threshold"])

    def select(self) -> dict[str, Any]:
        """Send the threshold; every silo decides about its own rows."""
        threshold = self.threshold().to_json()

        def compute() -> dict[str, Any]:
            request = SelectRequest(recipe_hash=self.recipe.hash, threshold=threshold)

            def take(name: str, reply: SelectReply) -> int:
                check_select(name, reply, n_rows=self.silos[name]["n_rows"])
                return reply.n_kept

            return {"n_kept": self.exchange.ask("select", dict.fromkeys(self.silos, request), take)}

        return self.stages.run("select", {**self._inputs("select"), "t": threshold}, compute)

    def fit(self, arm: str) -> dict[str, Any]:
        """Train the joint adapter on one arm's rows."""
        inputs = {
            **self._inputs("fit", arm),
            "arm": arm,
            "combine": self.combine.content(),
            # mixed and oracle do not depend on the selection: changing the rule keeps them.
            "selection": self._selection_token() if arm in ("clues", "random") else "",
        }
        key = hash_of(inputs)[:16]
        return self.stages.run(f"fit-{arm}", inputs, lambda: self._fit(arm, key))

    def measure(self, arm: str) -> dict[str, Any]:
        """Held-out loss and knowledge of one arm's joint adapter."""
        if self.evaluate.heldout is None:
            return {"heldout_loss": None, "knowledge_accuracy": None, "knowledge_stderr": None}
        adapter_file = self.folder / "arms" / arm / "adapter_model.safetensors"
        inputs = {
            "fit": _without_seconds(self.fit(arm)),
            "arm": arm,
            "selection": self._selection_token(),
            "combine": self.combine.content(),
            "heldout": [file_hash(p) for p in (self.evaluate.heldout, *self.evaluate.tasks)],
            **self._inputs("measure", arm),
        }

        def compute() -> dict[str, Any]:
            heldout = self.heldout()
            n = len(heldout.rows) + sum(map(len, heldout.options))
            with self.progress.task(f"coordinator: measure {arm}", n) as advance:
                # The joint adapter may have another rank than the recipe's.
                joint = load_file(adapter_file)
                figures = measure(self._at_rank(joint), heldout, joint)
                advance(n)
            return figures

        return self.stages.run(f"measure-{arm}", inputs, compute)

    def diagnostics(self) -> dict[str, Any]:
        """Ask the silos that share them for exact counts and detection figures."""
        request = EvaluateRequest(
            recipe_hash=self.recipe.hash, selection_token=self._selection_token()
        )

        def take(_: str, reply: EvaluateReply) -> dict[str, Any]:
            return reply.diagnostics

        return self.exchange.ask("evaluate", dict.fromkeys(self.silos, request), take)

    def heldout(self) -> HeldOut:
        """Read and encode the held-out rows once."""
        if not hasattr(self, "_heldout"):
            assert self.evaluate.heldout is not None
            tasks = [s for path in self.evaluate.tasks for s in read_rows(path).samples]
            samples = read_rows(self.evaluate.heldout).samples
            self._heldout = held_out(samples, self.encoder, tasks=tasks, where="held-out set")
        return self._heldout

    # --- how the stages do it

    def _train(self) -> dict[str, Any]:
        if not self.recipe.score.shared:
            request = TrainRequest(
                recipe_hash=self.recipe.hash,
                round=0,
                adapter=self.initial,
                validation={},
                directions={},
            )
            self.exchange.ask("train", dict.fromkeys(self.silos, request), lambda _, reply: reply)
            return {"checkpoints": 0}
        settings = self.recipe.train
        folder = self.folder / "trajectory" / hash_of(self._inputs("train"))[:16]
        save_after = [
            round(settings.rounds * (i + 1) / settings.checkpoints)
            for i in range(settings.checkpoints)
        ]
        adapter, lost = self.initial, 0.0
        steps = [n_train_steps(settings, s["n_rows"]) for s in self.silos.values()]
        n_steps = max(1, round(float(np.mean(steps)) / settings.rounds))
        inbox = Inbox(folder / "inbox")
        # No optimiser has run before the first round.
        before = Checkpoint(0, 0.0, self.initial, {})
        for number in range(settings.rounds):
            place = folder / f"round-{number}"
            if (place / "state.json").exists():
                before = load_checkpoint(place)
                adapter = before.adapter
                lost = max(lost, json.loads((place / "record.json").read_text())["energy_lost"])
                continue
            requests = self._train_requests(number, before, folder, per_round=n_steps)
            found = self._train_round(requests, adapter, inbox)
            joint = aggregate(
                [u.tensors() for u in found.values()],
                [u.weight for u in found.values()],
                method=settings.aggregation,
            )
            adapter, lost = joint.adapter, max(lost, joint.energy_lost)
            second = _mean_moment([u.tensors("second_moment") for u in found.values()])
            first = _mean_moment([u.tensors("first_moment") for u in found.values()])
            rate = float(np.mean([u.learning_rate for u in found.values()]))
            inbox.clear()
            write_json(place / "record.json", {"energy_lost": joint.energy_lost})
            point = Checkpoint(number + 1, rate, adapter, second, first, n_steps)
            save_checkpoint(point, place)
            before = point
        kept = [f"round-{n - 1}" for n in save_after]
        return {"folder": folder.name, "checkpoints": kept, "energy_lost": lost}

    def _train_round(
        self, requests: Mapping[str, TrainRequest], sent: AdapterState, inbox: Inbox
    ) -> dict[str, Update]:
        """Ask for one round, and put the replies on disk."""
        settings = self.recipe.train

        def take(name: str, reply: TrainReply) -> Update:
            n_rows, ffa = self.silos[name]["n_rows"], settings.aggregation == "ffa"
            peak = settings.learning_rate
            check_train(name, reply, sent=sent, n_rows=n_rows, peak=peak, ffa=ffa)
            norm = update_norm(reply.adapter, sent)
            return Update(reply.weight, norm, reply.learning_rate, inbox.path(name))

        def judge(found: Mapping[str, Update]) -> Mapping[str, str]:
            norms = {name: update.norm for name, update in found.items()}
            return too_long(norms, bound=self.federation.norm_bound)

        return self.exchange.ask("train", requests, take, keep=inbox.put, judge=judge)

    def _train_requests(
        self, number: int, before: Checkpoint, folder: Path, *, per_round: int
    ) -> dict[str, TrainRequest]:
        """One request a domain, with directions of the public rows where training scores."""
        if not self.recipe.score.inrun:
            request = TrainRequest(
                recipe_hash=self.recipe.hash,
                round=number,
                adapter=before.adapter,
                validation={},
                directions={},
            )
            return dict.fromkeys(self.silos, request)
        requests: dict[str, TrainRequest] = {}
        n_rows = [s["n_rows"] for s in self.silos.values()]
        for domain in sorted({s["domain"] for s in self.silos.values()}):
            file = folder / "directions" / f"{domain}.safetensors"
            units = folder / "directions" / f"{domain}.json"
            stored: dict[str, Any] = (
                json.loads(units.read_text()) if units.exists() else {"round": -1}
            )
            if is_refreshed(number, per_round, self.recipe, n_rows) and stored["round"] != number:
                reference = make_reference(
                    self.model,
                    {
                        name: self._encoded(f.path, f"validation set {name}")
                        for name, f in self.recipe.public[domain].validation.items()
                    },
                    before,
                    recipe=self.recipe,
                    weights=scored_weights(self.model, self.recipe.score, frozen_a=self.frozen_a),
                )
                tensors = {
                    f"{name}|{n}": t
                    for name, direction in reference.directions.items()
                    for n, t in direction.items()
                }
                stored = {"validation": {**reference.products, LOSS: reference.loss}}
                file.parent.mkdir(parents=True, exist_ok=True)
                write_tensors(file, tensors)
                write_json(units, {**stored, "round": number})
            request = TrainRequest(
                recipe_hash=self.recipe.hash,
                round=number,
                adapter=before.adapter,
                validation=stored["validation"],
                directions=load_file(file),
            )
            members = [n for n, s in self.silos.items() if s["domain"] == domain]
            requests |= dict.fromkeys(members, request)
        return requests

    def _score(self) -> dict[str, Any]:
        trained = self.train()
        anchors: dict[str, dict[str, list[float]]] = {}
        requests: dict[str, ScoreRequest] = {}
        if self.recipe.score.shared:
            base = self.folder / "trajectory" / trained["folder"]
            checkpoints = [load_checkpoint(base / name) for name in trained["checkpoints"]]
            for domain in sorted({s["domain"] for s in self.silos.values()}):
                request = self._domain_request(domain, checkpoints)
                if anchors_at_coordinator(self.recipe):
                    anchors[f"domain {domain}"] = request.anchor_scores
                members = [n for n, s in self.silos.items() if s["domain"] == domain]
                requests |= dict.fromkeys(members, request)
        else:
            request = ScoreRequest(
                recipe_hash=self.recipe.hash,
                learning_rates=[],
                optimizer_steps=[],
                probe_losses=[],
                anchor_scores={},
                checkpoints={},
                directions={},
                moments={},
            )
            requests = dict.fromkeys(self.silos, request)
        here = anchors_at_coordinator(self.recipe)
        n_anchors = {
            domain: len(self._encoded(public.anchor.path, "anchors"))
            for domain, public in self.recipe.public.items()
            if not here
        }

        def take(name: str, reply: ScoreReply) -> ScoreReply:
            domain = self.silos[name]["domain"]
            if not here:
                groups = set(group_names(self.recipe, name, domain))
                parts = set_weights(self.recipe.score, self.recipe.public[domain].validation)
                n = n_anchors[domain]
                check_anchor_scores(name, reply, groups=groups, parts=list(parts), n_anchors=n)
            return reply

        replies = self.exchange.ask("score", requests, take)
        for reply in replies.values() if not here else ():
            anchors |= reply.anchor_scores
        return {"anchors": anchors, "proposals": {n: r.proposal for n, r in replies.items()}}

    def _domain_request(self, domain: str, checkpoints: Sequence[Checkpoint]) -> ScoreRequest:
        """Directions and anchor scores of one domain on the global trajectory."""
        public = self.recipe.public[domain]
        weights = scored_weights(self.model, self.recipe.score, frozen_a=self.frozen_a)
        directions: list[dict[str, AdapterState]] = []
        validation = {
            name: self._encoded(file.path, f"validation set {name}")
            for name, file in public.validation.items()
        }
        decided_here = anchors_at_coordinator(self.recipe)
        form = self.recipe.score.form
        with self.progress.task(f"coordinator: directions, {domain}", len(checkpoints)) as advance:
            for checkpoint in checkpoints:
                # Other scores than influence need no direction.
                decides = self.recipe.score.trajectory == "global"
                sets = validation if decides and self.recipe.score.method == "influence" else {}
                directions.append(
                    form_directions(self.model, sets, checkpoint, form=form, weights=weights)
                )
                advance(1)
        anchor_scores: dict[str, list[float]] = {}
        if decided_here:
            anchor_rows = self._encoded(public.anchor.path, f"anchors of {domain}")
            scored = score_rows(
                self.model, anchor_rows, checkpoints, directions, settings=self.recipe.score
            )
            anchor_scores = {k: [float(x) for x in v] for k, v in scored.raw.items()}
        # A linear form carries the moments in its direction; the others need them at the rows,
        # and a silo makes the directions of compared forms itself.
        forms = {name for name in self.recipe.score.compare if name in FORMS}
        forms |= {form} if decided_here and form not in LINEAR_FORMS else set()
        sent = {
            "first": forms & set(NEEDS_FIRST_MOMENT),
            "second": forms & set(NEEDS_SECOND_MOMENT),
        }
        return ScoreRequest(
            recipe_hash=self.recipe.hash,
            learning_rates=[c.learning_rate for c in checkpoints],
            optimizer_steps=[c.optimizer_steps for c in checkpoints],
            probe_losses=[probe_loss(self.model, validation, c) for c in checkpoints],
            anchor_scores=anchor_scores,
            checkpoints={
                f"{i}|{n}": t for i, c in enumerate(checkpoints) for n, t in c.adapter.items()
            },
            directions={
                f"{i}/{name}|{n}": t
                for i, sets in enumerate(directions)
                for name, direction in sets.items()
                for n, t in direction.items()
            },
            moments={
                f"{i}/{which}|{n}": t
                for i, c in enumerate(checkpoints)
                for which, moment in (("first", c.first_moment), ("second", c.second_moment))
                if sent[which]
                for n, t in moment.items()
            },
        )

    def _fit(self, arm: str, key: str) -> dict[str, Any]:
        token = self._selection_token() if arm in ("clues", "random") else ""
        fitting = Fitting(
            recipe=self.recipe,
            combine=self.combine,
            federation=self.federation,
            exchange=self.exchange,
            initial=self.initial,
            public_loss=self._public_loss,
        )
        folder = self.folder / "rounds" / f"{arm}-{key}"
        adapter, record = fitting.run(arm, folder, token=token)
        self.model.save(adapter, self.folder / "arms" / arm)
        if arm == "clues":
            self.model.save(adapter, self.folder / "adapter")
        steps = self.combine.rounds * self.combine.local_steps
        return {"steps": steps, **record}

    def _public_loss(self, state: AdapterState) -> tuple[float, AdapterState]:
        """Mean loss over all public validation sets, each with one vote, and its gradient."""
        model = self._at_rank(state)
        model.freeze_a(frozen=False)
        sets = [
            self._encoded(file.path, f"validation set {name}")
            for public in self.recipe.public.values()
            for name, file in public.validation.items()
        ]
        total, gradient = 0.0, {name: torch.zeros_like(t) for name, t in state.items()}
        for rows in sets:
            slope, loss = mean_gradient(model, rows, state, weights=list(state))
            total += loss / len(sets)
            for name in gradient:
                gradient[name] += slope[name] / len(sets)
        return total, gradient

    # --- helpers

    def _inputs(self, stage: str, arm: str = "") -> dict[str, Any]:
        members = self.attendance.begin(f"{stage}-{arm}" if arm else stage)
        silos = {n: (s["domain"], s["token"]) for n, s in members.items()}
        # Public rows count by their hash, not by where they lie: a run may be moved.
        content = portable_recipe(self.recipe)
        # Another rule for the threshold does not make anyone train or score again.
        later = ("threshold",) if stage in ("train", "score", "fit", "measure") else ()
        kept = {k: v for k, v in content.items() if k not in later}
        if stage == "score":
            kept["mixture"] = self.recipe.threshold.rule == "mixture"
        return {"stage": stage, "recipe": kept, "silos": silos}

    def _selection_token(self) -> str:
        return hash_of(self.threshold().to_json())[:16]

    def _group_domains(self) -> dict[str, str]:
        return {
            group: silo["domain"]
            for name, silo in self.attendance.begin("score").items()
            for group in group_names(self.recipe, name, silo["domain"])
        }

    def _encoded(self, path: Path, where: str) -> list[EncodedRow]:
        return list(encode_rows(read_rows(path).samples, self.encoder, where=where).rows)

    def _at_rank(self, state: AdapterState) -> LoraModel:
        """The model itself, or one with as much room as a merged adapter needs."""
        rank = next(t.shape[0] for n, t in state.items() if ".lora_A." in n)
        if rank == self.recipe.lora.rank:
            return self.model
        update = {"rank": rank, "alpha": self.model.scaling * rank}
        lora = self.recipe.lora.model_copy(update=update)
        return self.load_model(self.recipe.model_copy(update={"lora": lora}))[0]


def _mean_moment(moments: Sequence[Mapping[str, torch.Tensor]]) -> AdapterState:
    if not moments or not moments[0]:
        return {}
    return {name: torch.stack([m[name] for m in moments]).mean(dim=0) for name in moments[0]}


def _without_seconds(result: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in result.items() if k != "seconds"}
