"""The public side: recipe, anchors, threshold, rounds or merge, evaluation.

It sees public rows, adapters and anchor scores; it opens no silo's folder and imports no silo.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
    Recipe,
    derived_seed,
)
from clues.data.formats import read_rows
from clues.data.samples import Sample
from clues.data.tokens import EncodedRow, RowEncoder, encode_rows
from clues.errors import ConfigError, DataError
from clues.evaluation.choice import HeldOut, held_out, measure
from clues.federation.messages import (
    REPLIES,
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
)
from clues.federation.rounds import is_refreshed, make_reference
from clues.federation.trajectory import (
    anchors_at_coordinator,
    group_names,
    n_train_steps,
    probe_loss,
    score_rows,
    set_weights,
)
from clues.federation.transport import Missing, Transport
from clues.model.adapters import (
    AdapterState,
    Checkpoint,
    LoraModel,
    check_state,
    load_checkpoint,
    save_checkpoint,
    write_tensors,
)
from clues.model.merging import aggregate, merge
from clues.progress import Progress
from clues.rundir import Stages, hash_of, write_json
from clues.scoring.direction import scored_weights
from clues.scoring.forms import form_directions
from clues.selection import Threshold, fit_threshold


@dataclass(frozen=True)
class Round:
    """State after a round: the joint adapter, and what making it lost."""

    adapter: AdapterState
    energy_lost: float
    n_silos: int


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
    ) -> None:
        """Load the base model and make the initial adapter from the recipe's seed."""
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
        self._check_public_rows()
        request = HelloRequest(
            recipe_hash=self.recipe.hash, recipe=self._portable_recipe(), public_files=self._files()
        )
        replies: dict[str, HelloReply] = self._ask(dict.fromkeys(self.transport.silos, request))
        silos = {
            name: {"domain": r.domain, "n_rows": r.n_rows, "token": r.data_token}
            for name, r in replies.items()
        }
        for name, silo in silos.items():
            if silo["domain"] not in self.recipe.public:
                raise DataError(f"silo {name}: domain {silo['domain']!r} has no public set.")
        self.silos = silos
        return silos

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
            replies: dict[str, SelectReply] = self._ask(dict.fromkeys(self.silos, request))
            return {"n_kept": {name: r.n_kept for name, r in replies.items()}}

        return self.stages.run("select", {**self._inputs("select"), "t": threshold}, compute)

    def fit(self, arm: str) -> dict[str, Any]:
        """Train the joint adapter on one arm's rows."""
        inputs = {
            **self._inputs("fit"),
            "arm": arm,
            "combine": self.combine.model_dump(mode="json"),
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
            "combine": self.combine.model_dump(mode="json"),
            "heldout": [_file_hash(p) for p in (self.evaluate.heldout, *self.evaluate.tasks)],
            **self._inputs("measure"),
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
        replies: dict[str, EvaluateReply] = self._ask(dict.fromkeys(self.silos, request))
        return {name: reply.diagnostics for name, reply in replies.items()}

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
            self._ask(dict.fromkeys(self.silos, request))
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
            replies: dict[str, TrainReply] = self._ask(requests)
            joint = self._join(
                {n: (r.adapter, r.weight) for n, r in replies.items()}, settings.aggregation
            )
            adapter, lost = joint.adapter, max(lost, joint.energy_lost)
            for name, reply in replies.items():
                _check_moment(name, reply)
            second = _mean_moment([r.second_moment for r in replies.values()])
            first = _mean_moment([r.first_moment for r in replies.values()])
            rate = float(np.mean([r.learning_rate for r in replies.values()]))
            write_json(place / "record.json", {"energy_lost": joint.energy_lost})
            point = Checkpoint(number + 1, rate, adapter, second, first, n_steps)
            save_checkpoint(point, place)
            before = point
        kept = [f"round-{n - 1}" for n in save_after]
        return {"folder": folder.name, "checkpoints": kept, "energy_lost": lost}

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
        replies: dict[str, ScoreReply] = self._ask(requests)
        for name, reply in replies.items():
            expected = set(group_names(self.recipe, name, self.silos[name]["domain"]))
            if not anchors_at_coordinator(self.recipe):
                self._check_anchor_scores(name, reply, expected)
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
        once = self.combine.method != "fedavg"
        n_rounds = 1 if once else self.combine.rounds
        folder = self.folder / "rounds" / f"{arm}-{key}"
        stored = [folder / f"round-{number}.safetensors" for number in range(n_rounds)]
        adapter, record = self.initial, {"energy_lost": 0.0, "n_silos": 0}
        # The newest counts: earlier rounds are removed on the way.
        n_done = max((n + 1 for n, file in enumerate(stored) if file.exists()), default=0)
        if n_done:
            adapter = load_file(stored[n_done - 1])
            record = json.loads((folder / "record.json").read_text())
        for number in range(n_done, n_rounds):
            request = FitRequest(
                recipe_hash=self.recipe.hash,
                arm=arm,
                round=number,
                combine=self.combine.model_dump(mode="json"),
                selection_token=self._selection_token() if arm in ("clues", "random") else "",
                adapter=adapter,
            )
            replies: dict[str, FitReply] = self._ask(dict.fromkeys(self.silos, request))
            sent = {n: (r.adapter, r.weight) for n, r in replies.items() if r.weight > 0}
            if not sent:
                raise DataError(f"arm {arm}: no silo has a row to train on.")
            joint = self._join(sent, "merge" if once else self.combine.aggregation)
            adapter, lost = joint.adapter, max(record["energy_lost"], joint.energy_lost)
            record = {"energy_lost": lost, "n_silos": len(sent)}
            # Before the adapter: killed in between, the round is done again and gives the same.
            write_json(folder / "record.json", record)
            write_tensors(stored[number], adapter)
            if number >= 2:
                stored[number - 2].unlink(missing_ok=True)
        self.model.save(adapter, self.folder / "arms" / arm)
        if arm == "clues":
            self.model.save(adapter, self.folder / "adapter")
        steps = self.combine.rounds * self.combine.local_steps
        return {"steps": steps, **record}

    def _join(self, sent: Mapping[str, tuple[AdapterState, int]], method: str) -> Round:
        for name, (state, _) in sent.items():
            try:
                check_state(state, like=self.initial)
            except DataError as error:
                raise DataError(f"silo {name}: {error}") from None
        adapters = [state for state, _ in sent.values()]
        weights = [weight for _, weight in sent.values()]
        if method == "merge":
            seed = derived_seed(self.recipe.seed, "merge")
            joint = merge(adapters, weights, self.combine, seed=seed)
        else:
            joint = aggregate(adapters, weights, method=method)  # pyright: ignore[reportArgumentType]
        return Round(joint.adapter, joint.energy_lost, len(adapters))

    # --- helpers

    def _ask(self, requests: Mapping[str, Any]) -> dict[str, Any]:
        """Send typed requests; validate every reply before anything uses it."""
        encoded: dict[int, bytes] = {}
        for request in requests.values():
            encoded.setdefault(id(request), request.to_bytes())
        replies = dict(self.transport.exchange({n: encoded[id(r)] for n, r in requests.items()}))
        typed: dict[str, Any] = {}
        for name in sorted(replies):
            wanted, reply = f"{requests[name].kind}-reply", replies[name]
            if isinstance(reply, Missing):
                raise DataError(f"silo {name} did not answer: {reply.why}")
            typed[name] = from_bytes(
                reply, allowed={wanted: REPLIES[wanted]}, sender=f"silo {name}"
            )
            if typed[name].recipe_hash != self.recipe.hash:
                raise DataError(f"silo {name} answered under another recipe.")
        return typed

    def _inputs(self, stage: str) -> dict[str, Any]:
        silos = {n: (s["domain"], s["token"]) for n, s in self.silos.items()}
        content = self.recipe.model_dump(mode="json")
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
            for name, silo in self.silos.items()
            for group in group_names(self.recipe, name, silo["domain"])
        }

    def _check_anchor_scores(self, name: str, reply: ScoreReply, expected: set[str]) -> None:
        public = self.recipe.public[self.silos[name]["domain"]]
        wanted = set_weights(self.recipe.score, public.validation)
        n_anchors = len(self._encoded(public.anchor.path, "anchors"))
        fits = set(reply.anchor_scores) == expected and all(
            set(sets) >= set(wanted) and all(len(v) == n_anchors for v in sets.values())
            for sets in reply.anchor_scores.values()
        )
        if not fits:
            raise DataError(
                f"silo {name}: its anchor scores do not fit the recipe ({n_anchors} anchors, "
                f"parts {', '.join(wanted)})."
            )

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

    def _files(self) -> dict[str, torch.Tensor]:
        """Public files by hash and ending, as bytes."""
        found: dict[str, torch.Tensor] = {}
        for public in self.recipe.public.values():
            for file in (public.anchor, *public.validation.values()):
                content = np.frombuffer(file.path.read_bytes(), dtype=np.uint8)
                found[_travel_name(file.path, str(file.sha256))] = torch.from_numpy(content.copy())
        return found

    def _portable_recipe(self) -> dict[str, Any]:
        """The recipe as it travels: no path of this machine in it."""
        content = self.recipe.model_dump(mode="json")
        for public in content["public"].values():
            for file in (public["anchor"], *public["validation"].values()):
                file["path"] = _travel_name(Path(file["path"]), file["sha256"])
        return content

    def _check_public_rows(self) -> None:
        """Anchors and validation rows must not be test rows.

        Raises:
            ConfigError: they overlap with the held-out set or with each other.
        """
        heldout = self.evaluate.heldout
        test = {s.id for s in read_rows(heldout).samples} if heldout else set()
        for domain, public in self.recipe.public.items():
            anchors = read_rows(public.anchor.path).samples
            sets: dict[str, tuple[Sample, ...]] = {"anchor": anchors}
            sets |= {n: read_rows(f.path).samples for n, f in public.validation.items()}
            for name, samples in sets.items():
                both = len(test & {s.id for s in samples})
                if both:
                    raise ConfigError(
                        f"public set {domain}.{name}: {both} rows also stand in the held-out set, "
                        "so its figures would be too good. Remove them from one of the two."
                    )
            for name, samples in sets.items():
                both = len({s.id for s in anchors} & {s.id for s in samples})
                if name != "anchor" and both:
                    raise ConfigError(
                        f"public set {domain}: {both} rows are both anchors and validation rows, "
                        "which lifts the threshold. Remove them from one of the two."
                    )


def _check_moment(name: str, reply: TrainReply) -> None:
    """Moments belong to the weights that train and have their shapes; squares are not negative."""
    trained = {n for n in reply.adapter if ".lora_B." in n}
    for moments in (reply.second_moment, reply.first_moment):
        fits = not moments or trained <= set(moments) <= set(reply.adapter)
        if not fits or any(t.shape != reply.adapter[n].shape for n, t in moments.items()):
            raise DataError(f"silo {name}: its optimiser state does not fit its adapter.")
    if any(bool((t < 0).any()) for t in reply.second_moment.values()):
        raise DataError(f"silo {name}: its optimiser state does not fit its adapter.")


def _mean_moment(moments: Sequence[AdapterState]) -> AdapterState:
    if not moments or not moments[0]:
        return {}
    return {name: torch.stack([m[name] for m in moments]).mean(dim=0) for name in moments[0]}


def _travel_name(path: Path, sha256: str) -> str:
    return sha256 + "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:])


def _file_hash(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def _without_seconds(result: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in result.items() if k != "seconds"}
