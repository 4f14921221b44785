"""What the coordinator works with in every stage: recipe, base model, public rows, silos to ask."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clues.config import REJECT, FederationSettings, Recipe, RowsFile, derived_seed
from clues.coordinator.attendance import Attendance
from clues.coordinator.bounds import capped
from clues.coordinator.curve import Watch, watched_loss, watched_rows
from clues.coordinator.exchange import Exchange
from clues.data.damage import damaged_copies
from clues.data.formats import read_file
from clues.data.tokens import EncodedRow, RowEncoder, encode_rows
from clues.model.adapters import AdapterState, Checkpoint, LoraModel
from clues.progress import Progress
from clues.scoring.direction import mean_gradient, scored_weights
from clues.scoring.forms import form_directions
from clues.scoring.trajectory import N_PROBES, anchors_at_coordinator, score_rows
from clues.scoring.trial import try_out
from clues.selection.weighing import check_rejected
from clues.wall.transport import Transport

LoadModel = Callable[[Recipe], tuple[LoraModel, RowEncoder]]


class Desk:
    """The coordinator's means. It sees public rows and replies; it opens no silo's folder."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        *,
        transport: Transport,
        load_model: LoadModel,
        progress: Progress,
        federation: FederationSettings,
    ) -> None:
        """Load the base model and make the initial adapter from the recipe's seed."""
        self.recipe, self.folder, self.federation = recipe, folder, federation
        self.load_model, self.progress = load_model, progress
        self.attendance = Attendance(
            folder / "absences.json", recipe_hash=recipe.hash, quorum=federation.quorum
        )
        self.exchange = Exchange(
            transport,
            self.attendance,
            recipe_hash=recipe.hash,
            max_message_mb=federation.max_message_mb,
        )
        self.model, self.encoder = load_model(recipe)
        try_out(self.model, recipe.score)
        self.initial = self.model.initial
        self.watch = Watch(self._watched_loss)
        self._rows: dict[str, Sequence[EncodedRow]] = {}

    @property
    def silos(self) -> dict[str, dict[str, Any]]:
        """Silos that take part, and what hello told about them."""
        return self.attendance.members

    @property
    def domains(self) -> list[str]:
        """Domains of the silos that take part."""
        return sorted({silo["domain"] for silo in self.silos.values()})

    @property
    def n_rows(self) -> list[int]:
        """Rows that each silo counts for: as announced, and no more than its share allows."""
        announced = [silo["n_rows"] for silo in self.silos.values()]
        return [round(n) for n in capped(announced, self.federation.max_share)]

    def members(self, domain: str) -> list[str]:
        """Silos of one domain."""
        return [name for name, silo in self.silos.items() if silo["domain"] == domain]

    def validation(self, domain: str) -> dict[str, list[EncodedRow]]:
        """A domain's public validation rows, by set."""
        return {
            name: self._encoded(file, f"validation set {name}")
            for name, file in self.recipe.public[domain].validation.items()
        }

    def anchors(self, domain: str) -> list[EncodedRow]:
        """A domain's public anchor rows."""
        return self._encoded(self.recipe.public[domain].anchor, f"anchors of {domain}")

    def direction_rows(self, domain: str) -> dict[str, list[EncodedRow]]:
        """The public rows that give directions, by set; empty where the score has none."""
        if not self.recipe.score.sends_directions:
            return {}
        sets = self.validation(domain)
        rejected, _ = self.rejected(domain)
        return {**sets, REJECT: rejected} if rejected else sets

    def rejected(self, domain: str) -> tuple[list[EncodedRow], list[EncodedRow]]:
        """A domain's rejected rows: those that give the direction, and those that only test it.

        Raises:
            DataError: there are too few for both.
        """
        file = self.recipe.public[domain].reject
        if file is None or self.recipe.score.reject_weight == 0:
            return [], []
        rows = self._encoded(file, f"rejected rows of {domain}")
        check_rejected(len(rows), self.recipe, where=f"{file.path.name}, {domain}")
        # Aim model changes the threshold and no score: it has its copies without them.
        n_test = len(rows) // 2 if self.recipe.weighs else 0
        seed = derived_seed(self.recipe.seed, "rejected", domain)
        order = np.random.default_rng(seed).permutation(len(rows)).tolist()
        return [rows[n] for n in order[n_test:]], [rows[n] for n in order[:n_test]]

    def damaged_anchors(self, domain: str) -> tuple[list[EncodedRow], list[str]]:
        """Damaged copies of a domain's anchors, and how each is damaged.

        Raises:
            DataError: an answer that no damage can change.
        """
        public = self.recipe.public
        # Foreign words come from other domains; where there is none, from the validation rows.
        others = [d for d in sorted(public) if d != domain] or [domain]
        foreign = [
            sample.response
            for other in others
            for file in public[other].validation.values()
            for sample in read_file(file).samples
        ]
        samples = list(read_file(public[domain].anchor).samples)
        seed = derived_seed(self.recipe.seed, "controls", domain)
        copies, kinds = damaged_copies(
            samples, seed=seed, foreign=foreign, kinds=self.recipe.score.copies
        )
        where = f"damaged anchors of {domain}"
        rows = list(encode_rows(copies, self.encoder, where=where).rows)
        return rows, [kinds[row.row] for row in rows]

    def scored_weights(self) -> list[str]:
        """Names of the LoRA weights whose gradients make the score."""
        frozen_a = self.recipe.score.shared and self.recipe.train.aggregation == "ffa"
        return scored_weights(self.model, self.recipe.score, frozen_a=frozen_a)

    def at_rank(self, state: AdapterState) -> LoraModel:
        """The model itself, or one with as much room as a merged adapter needs."""
        rank = next(t.shape[0] for n, t in state.items() if ".lora_A." in n)
        if rank == self.recipe.lora.rank:
            return self.model
        update = {"rank": rank, "alpha": self.model.scaling * rank}
        lora = self.recipe.lora.model_copy(update=update)
        return self.load_model(self.recipe.model_copy(update={"lora": lora}))[0]

    def public_loss(self, state: AdapterState) -> tuple[float, AdapterState]:
        """Mean loss over all public validation sets, each with one vote, and its gradient."""
        model = self.at_rank(state)
        model.freeze_a(frozen=False)
        sets = [rows for domain in self.recipe.public for rows in self.validation(domain).values()]
        total, gradient = 0.0, {name: torch.zeros_like(t) for name, t in state.items()}
        for rows in sets:
            slope, loss = mean_gradient(model, rows, state, weights=list(state))
            total += loss / len(sets)
            for name in gradient:
                gradient[name] += slope[name] / len(sets)
        return total, gradient

    def try_out(self, point: Checkpoint, *, scores: bool) -> None:
        """Compute with a checkpoint of the warm-up what the run will need of it, on few public rows.

        Args:
            point: as the silos made it.
            scores: whether anchors will be scored here.

        Raises:
            NumericsError: something is not finite.
        """
        self._watched_loss(point.adapter)
        settings = self.recipe.score
        for domain in self.domains if scores and anchors_at_coordinator(self.recipe) else ():
            sets = self.direction_rows(domain)
            few = {name: rows[:N_PROBES] for name, rows in sets.items()}
            weights = self.scored_weights()
            directions = form_directions(
                self.model, few, point, form=settings.form, weights=weights
            )
            rows = self.anchors(domain)[:N_PROBES]
            score_rows(self.model, rows, [point], [directions], settings=settings)

    def _watched_loss(self, state: AdapterState) -> float:
        if not hasattr(self, "_watched"):
            self._watched = watched_rows(
                {f"{d}/{n}": r for d in self.recipe.public for n, r in self.validation(d).items()}
            )
        # A round is looked at for the curve, and to find who makes its loss infinite.
        if not hasattr(self, "_seen") or self._seen[0] is not state:
            self._seen = (state, watched_loss(self.at_rank(state), self._watched, state))
        return self._seen[1]

    def _encoded(self, file: RowsFile, where: str) -> list[EncodedRow]:
        """A public file's rows; each stage asks for them, and they are read once."""
        key = file.model_dump_json()
        if key not in self._rows:
            self._rows[key] = encode_rows(read_file(file).samples, self.encoder, where=where).rows
        return list(self._rows[key])
