"""The public side: recipe, anchors, threshold, rounds or merge, evaluation.

It sees public rows, adapters and anchor scores; it opens no silo's folder and imports no silo.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clues import __version__
from clues.config import CombineSettings, EvaluateSettings, FederationSettings, Recipe, RowsFile
from clues.coordinator.attendance import Attendance
from clues.coordinator.decided import Decided, stages_from
from clues.coordinator.desk import Desk, LoadModel
from clues.coordinator.duplicates import leave_duplicates_out
from clues.coordinator.exchange import Exchange
from clues.coordinator.fit import Fitting
from clues.coordinator.guards import check_evaluate, check_hello, check_select
from clues.coordinator.outcomes import Fitted, LeftOut, Scored, Selected, Trained
from clues.coordinator.public import (
    check_public_rows,
    counted_recipe,
    portable_recipe,
    public_files,
)
from clues.coordinator.score import ask_for_scores, one_threshold
from clues.coordinator.train import train_apart, train_together
from clues.data.formats import read_file
from clues.errors import DataError
from clues.evaluation.choice import HeldOut, Measured, held_out, measure
from clues.evaluation.harness import ask_harness, harness_inputs
from clues.evaluation.questions import read_tasks
from clues.evaluation.tasks import Answers, answer_task, encode_task
from clues.model.adapters import AdapterState, LoraModel, checkpoint_files, read_tensors
from clues.progress import Progress
from clues.results.silos import SiloResult, silo_result
from clues.rundir import Stages, file_hash, hash_of, source_hash, write_json
from clues.selection.threshold import Threshold
from clues.wall.messages import (
    EvaluateReply,
    EvaluateRequest,
    HelloReply,
    HelloRequest,
    SelectReply,
    SelectRequest,
)
from clues.wall.transport import Transport


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
        load_model: LoadModel,
        progress: Progress,
        federation: FederationSettings | None = None,
    ) -> None:
        """Load the base model and make the initial adapter from the recipe's seed."""
        self.desk = Desk(
            recipe,
            folder,
            transport=transport,
            load_model=load_model,
            progress=progress,
            federation=federation or FederationSettings(),
        )
        self.recipe, self.combine, self.evaluate, self.folder = recipe, combine, evaluate, folder
        self.stages = Stages(folder / "stages")
        self.left_out: LeftOut | None = None
        self.decided = Decided(folder / "decided.json", recipe_hash=recipe.hash)

    @property
    def exchange(self) -> Exchange:
        """How silos are asked."""
        return self.desk.exchange

    @property
    def attendance(self) -> Attendance:
        """Who takes part."""
        return self.desk.attendance

    @property
    def silos(self) -> dict[str, dict[str, Any]]:
        """Silos that take part, and what hello told about them."""
        return self.desk.silos

    # --- stages, in order

    def hello(self) -> dict[str, Any]:
        """Send recipe and public rows; learn who is there.

        Always runs: it is cheap, and the data tokens tell whether a silo's rows have changed.
        """
        check_public_rows(self.recipe, self.evaluate)
        request = HelloRequest(
            recipe_hash=self.recipe.hash,
            version=__version__,
            recipe=portable_recipe(self.recipe),
            public_files=public_files(self.recipe),
        )

        def take(name: str, reply: HelloReply) -> dict[str, Any]:
            domains, limit = list(self.recipe.public), self.desk.federation.max_rows
            check_hello(name, reply, domains=domains, max_rows=limit)
            facts = {"domain": reply.domain, "n_rows": reply.n_rows, "token": reply.data_token}
            more = {"overrides": reply.overrides_token, "labels": reply.oracle_token}
            for stage in stages_from(reply.again):
                self.stages.forget(stage)
            return facts | {key: value for key, value in more.items() if value}

        asked = [
            name for name in self.exchange.transport.silos if name not in self.attendance.left_out
        ]
        found = self.exchange.ask("hello", dict.fromkeys(asked, request), take)
        self.attendance.members = found
        self.decided.check(self._members("train"))
        return found

    def duplicates(self) -> LeftOut | None:
        """Have rows left out whose question another silo keeps; None where the recipe does not."""
        if self.recipe.duplicates is None:
            return None
        inputs = self._inputs("duplicates")
        found = self.stages.run("duplicates", inputs, lambda: leave_duplicates_out(self.desk))
        self.left_out = LeftOut.model_validate(found)
        return self.left_out

    def train(self) -> Trained:
        """Make the trajectory whose checkpoints are scored."""
        inputs = self._inputs("train")

        def compute() -> dict[str, Any]:
            if not self.recipe.score.shared:
                return train_apart(self.desk)
            return train_together(self.desk, self.folder / "trajectory" / hash_of(inputs)[:16])

        found = self.stages.run("train", inputs, compute, files=self._checkpoint_files)
        return Trained.model_validate(found)

    def score(self, trained: Trained) -> Scored:
        """Have every silo score its rows; keep the anchors' scores by group."""
        inputs = {**self._inputs("score"), "trained": trained.content()}

        def compute() -> dict[str, Any]:
            if self.recipe.threshold.rule == "mixture":
                # A silo proposes one cut per recipe: it is made of private scores.
                self.decided.note(self._members("train"))
            # Whoever takes part: public rows score the same.
            of_public = {name: inputs[name] for name in ("recipe", "trained")}
            return ask_for_scores(self.desk, trained, key=hash_of(of_public)[:16])

        found = self.stages.run("score", inputs, compute)
        return Scored.model_validate(found)

    def threshold(self, scored: Scored) -> Threshold:
        """Set the one threshold from the anchors."""
        inputs = {**self._inputs("threshold"), "scored": scored.content()}

        def compute() -> dict[str, Any]:
            threshold = one_threshold(self.desk, scored)
            write_json(self.folder / "threshold.json", threshold.to_json())
            return {"threshold": threshold.to_json()}

        found = self.stages.run(
            "threshold", inputs, compute, files=lambda _: [self.folder / "threshold.json"]
        )
        return Threshold.from_json(found["threshold"])

    def select(self, threshold: Threshold) -> Selected:
        """Send the threshold; every silo decides about its own rows."""
        content, overruled = threshold.to_json(), self._told("select", "overrides")

        def compute() -> dict[str, Any]:
            # Before a silo is asked: it remembers the threshold even if it refuses.
            self.decided.note(self._members("train"))
            request = SelectRequest(recipe_hash=self.recipe.hash, threshold=content)

            def take(name: str, reply: SelectReply) -> int:
                check_select(name, reply, n_rows=self.silos[name]["n_rows"])
                return reply.n_kept

            return {"n_kept": self.exchange.ask("select", dict.fromkeys(self.silos, request), take)}

        inputs = {**self._inputs("select"), "threshold": content, "overruled": overruled}
        found = self.stages.run("select", inputs, compute)
        token = hash_of([content, overruled])[:16]
        return Selected(threshold, found["n_kept"], token, found["seconds"])

    def fit(self, arm: str, selected: Selected) -> Fitted:
        """Train the joint adapter on one arm's rows."""
        # mixed and oracle do not depend on the selection: another rule or a person's decisions
        # leave them as they are.
        token = "" if arm in ("mixed", "oracle") else selected.token
        which = {"arm": arm, "token": token}
        inputs = {**self._inputs("fit", arm), **which, "combine": self.combine.content()}
        if arm == "oracle":
            inputs["labels"] = self._told("fit-oracle", "labels")
        folder = self.folder / "rounds" / f"{arm}-{hash_of(inputs)[:16]}"
        names = ("adapter_model.safetensors", "adapter_config.json")
        places = [
            self.folder / "arms" / arm,
            *([self.folder / "adapter"] if arm == "clues" else []),
        ]
        found = self.stages.run(
            f"fit-{arm}",
            inputs,
            lambda: self._fit(arm, token, folder),
            files=lambda _: [place / name for place in places for name in names],
        )
        return Fitted(**which, **found)

    def measure(self, fitted: Fitted) -> Measured:
        """Held-out loss and knowledge of one arm's joint adapter."""
        if self.evaluate.heldout is None:
            return Measured()
        arm = fitted.arm
        inputs = {**self._measured(fitted), "heldout": _read_of(self.evaluate.heldout)}

        def compute() -> dict[str, Any]:
            heldout = self.heldout()
            n = len(heldout.rows) + sum(map(len, heldout.options))
            with self.desk.progress.task(f"coordinator: measure {arm}", n) as advance:
                model, joint = self.joint(arm)
                figures = measure(model, heldout, joint)
                advance(n)
            return figures.model_dump()

        found = self.stages.run(f"measure-{arm}", inputs, compute)
        return Measured.model_validate(_without_seconds(found))

    def answers(self, fitted: Fitted) -> dict[str, Answers]:
        """What one arm's joint adapter answers to the questions of each task."""
        found = self._own_tasks(fitted) if self.evaluate.tasks else {}
        others = self._lm_eval(fitted) if self.evaluate.lm_eval else {}
        if both := sorted(set(found) & set(others)):
            raise DataError(
                f"evaluate: {both[0]} is a task of ours and one of lm-eval. Give ours a `name`."
            )
        return found | others

    def _own_tasks(self, fitted: Fitted) -> dict[str, Answers]:
        arm = fitted.arm
        tasks = [
            {**t.model_dump(mode="json"), "path": t.path.name, "sha256": source_hash(t.path)}
            for t in self.evaluate.tasks
        ]

        def compute() -> dict[str, Any]:
            model, joint = self.joint(arm)
            # Read for each arm anew: to encode takes a fraction of the time to answer.
            asked = [encode_task(t, self.desk.encoder) for t in read_tasks(self.evaluate.tasks)]
            n = sum(task.n_rows for task in asked)
            with self.desk.progress.task(f"coordinator: tasks, {arm}", n) as advance:
                found = {t.name: answer_task(model, t, joint, on_rows=advance) for t in asked}
            return {name: answers.content() for name, answers in found.items()}

        inputs = {**self._measured(fitted), "tasks": tasks}
        return _answers(self.stages.run(f"tasks-{arm}", inputs, compute))

    def _lm_eval(self, fitted: Fitted) -> dict[str, Answers]:
        arm, entries = fitted.arm, self.evaluate.lm_eval

        def compute() -> dict[str, Any]:
            model, joint = self.joint(arm)
            tokenizer, cache = self.desk.encoder.tokenizer, self.folder / "lm_eval"
            with self.desk.progress.task(f"coordinator: lm-eval, {arm}", 1) as advance:
                found = ask_harness(model, tokenizer, joint, entries, cache=cache)
                advance(1)
            return {name: answers.content() for name, answers in found.items()}

        inputs = {**self._measured(fitted), "lm_eval": harness_inputs(entries)}
        return _answers(self.stages.run(f"lm-eval-{arm}", inputs, compute))

    def joint(self, arm: str) -> tuple[LoraModel, AdapterState]:
        """An arm's joint adapter, and the model that it fits: its rank may not be the recipe's."""
        state = read_tensors(self.adapter_file(arm))
        return self.desk.at_rank(state), state

    def adapter_file(self, arm: str) -> Path:
        """Where an arm's joint adapter lies once it is fitted."""
        return self.folder / "arms" / arm / "adapter_model.safetensors"

    def _measured(self, fitted: Fitted) -> dict[str, Any]:
        # The curve is looked at on the way and changes no adapter.
        fit = {k: v for k, v in fitted.content().items() if k != "curve"}
        # The bytes of the adapter: labels or a person's decisions may change it and no figure.
        fit["adapter"] = file_hash(self.adapter_file(fitted.arm))
        combine = self.combine.content()
        return {"fit": fit, "combine": combine, **self._inputs("measure", fitted.arm)}

    def silo_results(self, selected: Selected) -> dict[str, SiloResult]:
        """What is known of every silo, with exact counts and detection figures of those that share.

        A silo whose answer cannot be used is named, and stands there with what it said before.
        """
        kinds = list(self.evaluate.kinds)
        request = EvaluateRequest(
            recipe_hash=self.recipe.hash, selection_token=selected.token, kinds=kinds
        )

        def take(name: str, reply: EvaluateReply) -> dict[str, Any]:
            return check_evaluate(
                name,
                reply,
                n_rows=self.silos[name]["n_rows"],
                n_kept=selected.n_kept[name],
                kinds=kinds,
                compared=self.recipe.score.compare,
            )

        requests = dict.fromkeys(self.silos, request)
        shared = self.exchange.ask("evaluate", requests, take, optional=True)
        return {
            name: silo_result(
                name,
                {
                    "rows": silo["n_rows"],
                    "kept": selected.n_kept[name],
                    "threshold": selected.threshold.value,
                    **({"left_out": self.left_out.n_rows[name]} if self.left_out else {}),
                },
                domain=silo["domain"],
                shared=shared.get(name, {}),
            )
            for name, silo in self.silos.items()
        }

    def heldout(self) -> HeldOut:
        """Read and encode the held-out rows once."""
        if not hasattr(self, "_heldout"):
            assert self.evaluate.heldout is not None
            samples = read_file(self.evaluate.heldout).samples
            self._heldout = held_out(samples, self.desk.encoder, where="held-out set")
        return self._heldout

    # --- helpers

    def _fit(self, arm: str, token: str, folder: Path) -> dict[str, Any]:
        fitting = Fitting(
            recipe=self.recipe,
            combine=self.combine,
            federation=self.desk.federation,
            exchange=self.exchange,
            initial=self.desk.initial,
            public_loss=self.desk.public_loss,
            watch=self.desk.watch,
        )
        adapter, record = fitting.run(arm, folder, token=token)
        self.desk.model.save(adapter, self.folder / "arms" / arm)
        if arm == "clues":
            self.desk.model.save(adapter, self.folder / "adapter")
        steps = self.combine.rounds * self.combine.local_steps
        return {"steps": steps, **record}

    def _inputs(self, stage: str, arm: str = "") -> dict[str, Any]:
        silos = self._members(f"{stage}-{arm}" if arm else stage)
        # Public rows and base models count by their hash, not by where they lie: a run may move.
        content = counted_recipe(self.recipe)
        # Another rule for the threshold does not make anyone train or score again.
        # With a cascade it decides which rows get gradients.
        scored = () if self.recipe.score.cascade else ("score",)
        later = ("threshold",) if stage in ("train", *scored, "fit", "measure") else ()
        kept = {k: v for k, v in content.items() if k not in later}
        if stage == "score":
            kept["mixture"] = self.recipe.threshold.rule == "mixture"
            # Copies that the weights of the parts need are there for the threshold, too.
            if self.recipe.needs_copies and not self.recipe.weighs:
                kept["copies"] = True
        left_out = {"left_out": self.left_out.token} if self.left_out else {}
        return {"stage": stage, "recipe": kept, "silos": silos, **left_out}

    def _members(self, stage: str) -> dict[str, tuple[str, str]]:
        """Domain and token of the rows of the silos that a stage began with."""
        members = self.attendance.begin(stage)
        return {n: (s["domain"], s["token"]) for n, s in members.items()}

    def _told(self, stage: str, what: str) -> dict[str, Any]:
        """What silos said of their labels or of a person's decisions: tokens, where there are any."""
        members = self.attendance.begin(stage)
        return {n: s[what] for n, s in members.items() if s.get(what)}

    def _checkpoint_files(self, trained: Mapping[str, Any]) -> list[Path]:
        """Files of the checkpoints that are scored; none where every silo keeps its own."""
        names: Sequence[str] = trained.get("checkpoints", ())
        base = self.folder / "trajectory" / trained.get("folder", "")
        return [file for name in names for file in checkpoint_files(base / name)]


def _read_of(file: RowsFile) -> str:
    """Changes with what is read of a file."""
    content = source_hash(file.path)
    return hash_of([content, file.how]) if file.how else content


def _without_seconds(result: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in result.items() if k != "seconds"}


def _answers(result: Mapping[str, Any]) -> dict[str, Answers]:
    return {k: Answers.from_content(v) for k, v in _without_seconds(result).items()}
