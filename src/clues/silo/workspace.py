"""What a silo keeps on its own disk, and what it works with: recipe, model, rows, public sets."""

import hmac
import json
import logging
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from clues.atomic import atomic_write_bytes, make_private_folder, read_bytes
from clues.config import (
    RAY,
    ComputeSettings,
    ModelSettings,
    PublicFile,
    Recipe,
    SiloModel,
    SiloSettings,
    differing,
    short,
    validate,
)
from clues.data.formats import RowFile, read_rows
from clues.data.samples import Sample
from clues.data.tokenfile import encode_into
from clues.data.tokens import EncodedRow, EncodedRows, RowEncoder, encode_rows
from clues.data.views import View, row_numbers
from clues.errors import DataError, RecipeMismatchError
from clues.extras import require
from clues.findings.look import Findings, look
from clues.model.adapters import Checkpoint, LoraModel, load_checkpoint
from clues.model.place import identify
from clues.model.recomputing import check_recomputing
from clues.model.training import Observer, Trained, train
from clues.progress import Progress
from clues.rundir import hash_of, read_json, read_record, source_hash, write_json
from clues.scoring.installed import refuse_missing
from clues.scoring.shards import Sharing, Team
from clues.scoring.table import ScoreTable
from clues.scoring.trajectory import group_names
from clues.scoring.trial import try_out
from clues.scoring.watch import Watch
from clues.selection.decisions import UNSCORED, UNUSABLE, Apart
from clues.selection.threshold import Threshold
from clues.silo.curves import Curve, Piece, reported
from clues.underway import PROGRESS

N_KEY_BYTES = 32
EARLIER = "earlier"  # folder of the outbox: replies that left and answer no request any more
log = logging.getLogger("clues")
LEFT_OUT = "duplicates.json"
SEVERAL = "in another silo"
ELSEWHERE = "the same question stands in another silo"
LoadModel = Callable[[Recipe], tuple[LoraModel, RowEncoder]]
Identify = Callable[[ModelSettings], dict[str, str]]


class Workspace:
    """One silo's folder and means. Everything is read when it is first asked for, and once."""

    def __init__(
        self,
        settings: SiloSettings,
        folder: Path,
        *,
        load_model: LoadModel,
        progress: Progress,
        one_owner: bool = False,
        team: Team | None = None,
        identify: Identify = identify,
    ) -> None:
        """Take what `Silo` was given; nothing is read yet."""
        self.settings = settings
        self.private, self.outbox = folder / "private", folder / "outbox"
        self.one_owner, self.team = one_owner, team
        self.load_model, self.progress, self.identify = load_model, progress, identify
        self.memory: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """The silo's name, for messages."""
        return self.settings.name

    def set_aside(self, kind: str) -> None:
        """Answer no more with the stored replies of a kind; they have left, so they are kept."""
        for old in sorted(self.outbox.glob(f"{kind}-*.clues")):
            self.keep_earlier(read_bytes(old), old.name, kind=kind)
            old.unlink()

    def has_answered(self) -> bool:
        """Whether any answer has left this folder."""
        return any(self.outbox.glob("**/*.clues"))

    def keep_earlier(self, reply: bytes, name: str, *, kind: str) -> None:
        """Keep a reply that left and will answer nothing again; two of one name side by side."""
        make_private_folder(self.outbox / EARLIER)
        mark = f"{kind}-{name.partition('-')[2].removesuffix('.clues')}-{hash_of(reply.hex())[:8]}"
        atomic_write_bytes(self.outbox / EARLIER / f"{mark}.clues", reply, private=True)

    def own_model(self, recipe: Recipe) -> Recipe:
        """The recipe with this silo's own base model; nothing that was sent says where it lies."""
        return with_own_model(recipe, self.settings.model)

    def check_model(self, recipe: Recipe) -> None:
        """See that this silo's base model consists of the files that a recipe names.

        Raises:
            RecipeMismatchError: it does not, or the recipe names none.
            DataError: there is no base model here.
        """
        theirs = recipe.model.files
        if not theirs:
            raise RecipeMismatchError(
                f"silo {self.name}: the recipe does not say which files the base model consists of."
            )
        mine = self.identify(self.own_model(recipe).model)
        if what := differing(mine, theirs):
            raise RecipeMismatchError(
                f"silo {self.name}: the base model here is not the one of the recipe ({what}). "
                "Fetch the same files, or set model in the silo's file to where they are."
            )

    def recipe(self) -> Recipe:
        """The recipe that hello brought.

        Raises:
            RecipeMismatchError: no hello yet.
        """
        if "recipe" not in self.memory:
            path = self.private / "recipe.json"
            if not path.exists():
                raise RecipeMismatchError(f"silo {self.name}: no recipe yet; hello first.")
            content = read_json(path, advice="Start again with hello.")
            # The place as our settings have it now, whatever was stored.
            stored = validate(Recipe, content, where="the stored recipe")
            self.memory["recipe"] = self.own_model(stored)
        return self.memory["recipe"]

    def model(self) -> LoraModel:
        """The base model with its adapter."""
        if "model" not in self.memory:
            model, self.memory["encoder"] = self.load_model(self.recipe())
            if self.compute().gradient_checkpointing:
                check_recomputing(model.peft.get_base_model())
            try_out(model, self.recipe().score)
            refuse_missing(self.recipe().score)
            self.memory["model"] = model
        return self.memory["model"]

    def encoder(self) -> RowEncoder:
        """Text to tokens, for this model."""
        self.model()
        return self.memory["encoder"]

    def rows(self) -> RowFile:
        """The private rows as the file has them."""
        if "rows" not in self.memory:
            self.memory["rows"] = read_rows(
                self.settings.data,
                schema=self.settings.schema_name,
                columns=self.settings.read_columns,
                lenient=not self.settings.strict,
            )
        return self.memory["rows"]

    def usable(self) -> EncodedRows:
        """The private rows as tokens, and those that cannot be used with the reason."""
        if "usable" not in self.memory:
            unusable = self.rows().unusable
            samples = (sample for sample in self.rows().samples if sample.row not in unusable)
            folder, where = self.private / "tokens", f"silo {self.name}"
            make_private_folder(self.private)
            self.memory["usable"] = encode_into(folder, samples, self.encoder(), where=where)
        return self.memory["usable"]

    def encoded(self) -> EncodedRows:
        """The usable rows without those that another silo keeps; these are dropped, too."""
        if self.recipe().duplicates is None:
            return self.usable()
        if "encoded" not in self.memory:
            left, usable = set(self.left_out()), self.usable()
            here = [n for n, place in enumerate(row_numbers(usable.rows)) if place not in left]
            rows = View(usable.rows, here)
            dropped = {**usable.dropped, **dict.fromkeys(left, ELSEWHERE)}
            self.memory["encoded"] = EncodedRows(rows, dropped)
        return self.memory["encoded"]

    def left_out(self) -> list[int]:
        """Positions of the rows that another silo keeps; none where the recipe does not look.

        Raises:
            DataError: the coordinator has not said yet which they are.
        """
        if self.recipe().duplicates is None:
            return []
        if "left_out" not in self.memory:
            stored = self.stored_left_out()
            if stored is None:
                raise DataError(
                    f"silo {self.name}: the recipe looks for the same question in several silos, "
                    "and the coordinator has not said yet which rows to leave out. Start again "
                    "with hello."
                )
            self.memory["left_out"] = stored
        return self.memory["left_out"]

    def stored_left_out(self) -> list[int] | None:
        """The list as it lies here; None where there is none of this recipe and these rows."""
        path = self.private / LEFT_OUT
        if not path.exists():
            return None
        try:
            content = read_record(path, advice="The coordinator is asked again.")
        except DataError as error:
            log.warning("%s", error)
            return None
        made_of = {"recipe": self.recipe().hash, "rows": self.data_token()}
        return content["left"] if made_of.items() <= content.items() else None

    def left_token(self) -> str:
        """Changes with the rows that another silo keeps; empty where the recipe does not look."""
        if self.recipe().duplicates is None:
            return ""
        return self.token(f"left out {self.left_out()}")

    def rows_token(self) -> str:
        """Changes with the rows, and with which of them another silo keeps."""
        left = self.left_token()
        return f"{self.data_token()}-{left}" if left else self.data_token()

    def anchors(self) -> list[EncodedRow]:
        """The public anchor rows of the silo's domain."""
        return self._public(self.recipe().public[self.settings.domain].anchor, "anchors")

    def validation(self) -> dict[str, list[EncodedRow]]:
        """The public validation rows of the silo's domain, by set."""
        sets = self.recipe().public[self.settings.domain].validation
        return {n: self._public(file, f"validation set {n}") for n, file in sets.items()}

    def _public(self, file: PublicFile, where: str) -> list[EncodedRow]:
        return list(encode_rows(self._samples(file, where), self.encoder(), where=where).rows)

    def _place(self, file: PublicFile, where: str) -> Path:
        path = next((self.private / "public").glob(f"{file.sha256}.*"), None)
        if path is None:
            raise DataError(f"silo {self.name}: {where} are missing. Start again with hello.")
        return path

    def checked(self) -> list[Sample]:
        """The public rows of the silo's domain as text."""
        public = self.recipe().public[self.settings.domain]
        return [s for file in public.files for s in self._samples(file, "public rows")]

    def _samples(self, file: PublicFile, where: str) -> Sequence[Sample]:
        path = self._place(file, where)
        return read_rows(path, schema=file.schema_name, columns=file.columns).samples

    def findings(self) -> Findings:
        """What the text of the rows shows a reader; nothing where the silo's settings are all off."""
        if "findings" not in self.memory:
            kinds, rows = self.settings.findings.looked_for, self.rows()
            samples = [sample for sample in rows.samples if sample.row not in rows.unusable]
            self.memory["findings"] = look(samples, self.checked() if kinds else (), kinds=kinds)
        return self.memory["findings"]

    def order_seed(self) -> int | None:
        """Number from which the order of rows in training follows; None where it is a secret."""
        if self.settings.order_seed is not None:
            return self.settings.order_seed
        return self.recipe().seed if self.one_owner else None

    def n_aside(self) -> int:
        """How many rows every training sets aside, so that no two trainings differ by one row."""
        secret = self.order_seed() is None and self.settings.privacy is None
        return self.settings.min_kept if secret else 0

    def fewest_kept(self) -> int:
        """The fewest rows that a selection may keep: those that train, and those set aside."""
        return self.settings.min_kept + self.n_aside()

    def data_token(self) -> str:
        """Changes when the rows change, and tells nobody without the silo's key what they are."""
        if "data_token" not in self.memory:
            self.memory["data_token"] = self.token("".join(s.id for s in self.rows().samples))
        return self.memory["data_token"]

    def source_hash(self) -> str:
        """Changes with any byte of what the rows were read from: other columns, order, format."""
        if "source_hash" not in self.memory:
            path = Path(self.settings.data)
            if path.exists():
                self.memory["source_hash"] = source_hash(path)
            else:
                # A hub data set has no file here; what was read of it stands for it.
                table = self.rows().table
                records = [list(record.items()) for record in table.read(table.columns)]
                text = json.dumps([table.container, records], default=str)
                self.memory["source_hash"] = hash_of(text)
        return self.memory["source_hash"]

    def secret(self) -> bytes:
        """The silo's own key, made at the first use.

        Raises:
            DataError: the file is not a key; with a known one, anybody could guess what is hidden.
                Or it is missing where answers have left: under another key, what was asked of the
                same rows would count as asked of others.
        """
        path = self.private / "data.key"
        if not path.exists() and self.has_answered():
            raise DataError(
                f"{path}: missing, and answers have left this folder. What was asked about the rows "
                "is counted by it. Put it back, or start the run in a new folder."
            )
        if not path.exists():
            atomic_write_bytes(path, secrets.token_bytes(N_KEY_BYTES), private=True)
        key = read_bytes(path)
        if len(key) != N_KEY_BYTES:
            raise DataError(
                f"{path}: not a key ({len(key)} bytes instead of {N_KEY_BYTES}). Put it back, or "
                "start the run in a new folder."
            )
        return key

    def token(self, text: str) -> str:
        """Changes with a text, and tells nobody without the silo's key what it is."""
        return hmac.new(self.secret(), text.encode(), "sha256").hexdigest()[:16]

    def keep(
        self,
        kept: Sequence[int],
        *,
        overruled: str = "",
        untrained: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        """Write down the selection that is in force, and what it was made of.

        Args:
            kept: row numbers.
            overruled: token of the overrides that it followed; empty for none.
            untrained: by row number, positions of the turns of kept rows that are not trained.
        """
        made_of = {"recipe": self.recipe().hash, "rows": self.rows_token(), "overruled": overruled}
        turns = {str(row): list(own) for row, own in (untrained or {}).items()}
        content = {**made_of, "kept": list(kept), **({"untrained": turns} if turns else {})}
        write_json(self.private / "selection.json", content)

    def untrained(self) -> dict[int, list[int]]:
        """By number of a kept row, positions of its turns that are not trained; errors as `kept`."""
        self.kept()
        path = self.private / "selection.json"
        content = read_json(path, advice="Select again.").get("untrained", {})
        try:
            return {int(row): [int(turn) for turn in own] for row, own in content.items()}
        except (AttributeError, TypeError, ValueError):
            raise DataError(f"{path}: damaged (not turns by row). Select again.") from None

    def kept(self, *, overruled: str | None = None) -> list[int]:
        """Row numbers of the selection that is in force.

        Args:
            overruled: token of the overrides that it must have followed; None for any.

        Raises:
            DataError: nothing is selected yet under this recipe, or rows or overrides have changed
                since.
        """
        path = self.private / "selection.json"
        content = read_json(path, advice="Select again.") if path.exists() else {}
        made_of = {"recipe": self.recipe().hash, "rows": self.rows_token()}
        if isinstance(content, dict) and made_of.items() <= content.items():
            kept = content.get("kept")
            if overruled not in (None, content.get("overruled", "")):
                raise DataError(
                    f"silo {self.name}: a person has overruled rows since the selection, and no "
                    "joint model trains on what they may have dropped. Run clues select."
                )
            if isinstance(kept, list) and all(type(row) is int for row in kept):
                return kept
            raise DataError(f"{path}: damaged (not row numbers). Select again.")
        raise DataError(
            f"silo {self.name}: nothing is selected yet under recipe {short(self.recipe().hash)} and of "
            "these rows. Run clues select."
        )

    def scores(self) -> ScoreTable:
        """The table of private scores."""
        return ScoreTable.read(self.private / "scores.parquet")

    def turn_table(self) -> ScoreTable:
        """Scores of turns, one line per turn."""
        return ScoreTable.read(self.private / "turns.parquet")

    def turn_anchors(self) -> dict[str, dict[str, list[float]]]:
        """Raw scores of one turn of every anchor, by group and name."""
        return self._side("turn_anchors.json")

    def threshold(self) -> Threshold:
        """The threshold of the selection that is in force.

        Raises:
            DataError: nothing is selected yet.
        """
        path = self.private / "threshold.json"
        if not path.exists():
            raise DataError(f"silo {self.name}: nothing is selected yet. Run clues select.")
        content = read_json(path, advice="Select again.")
        try:
            return Threshold.from_json(content)
        except (KeyError, TypeError, ValueError, AttributeError):
            reason = "not a threshold"
        raise DataError(f"{path}: damaged ({reason}). Select again.")

    def unscored(self) -> dict[int, str]:
        """Rows without a score, by position, and why."""
        return {row: apart.reason for row, apart in self.apart().items()}

    def apart(self) -> dict[int, Apart]:
        """Rows that no score decides about, by position."""
        rows = self.rows()
        lost = dict.fromkeys(map(int, self._side("nonfinite.json")), "its score is not finite")
        why = {
            **{row: (UNSCORED, reason) for row, reason in self.encoded().dropped.items()},
            # Another silo keeps them, so here they are dropped.
            **dict.fromkeys(self.left_out(), (SEVERAL, ELSEWHERE)),
            **{row: (UNSCORED, reason) for row, reason in lost.items()},
            **{row: (UNUSABLE, reason) for row, reason in rows.unusable.items()},
        }
        return {row: Apart(rows.samples[row].id, *found) for row, found in why.items()}

    def compared_anchors(self) -> dict[str, dict[str, list[float]]]:
        """Anchor scores under every score beside the deciding one, by its name and group."""
        return self._side("compared.json")

    def lost(self) -> list[str]:
        """Content ids of the rows whose score is not finite; none where nothing was scored."""
        if not (self.private / "nonfinite.json").exists():
            return []
        return list(self._side("nonfinite.json").values())

    def sent_weights(self) -> dict[str, float]:
        """Weights of the parts that the coordinator has weighed, as the score request had them."""
        return self._side("weights.json")

    def anchor_scores(self) -> dict[str, dict[str, list[float]]]:
        """Raw anchor scores of the silo's groups, by group and name."""
        return self._side("anchors.json")

    def write_side_files(
        self,
        *,
        anchors: Mapping[str, Mapping[str, np.ndarray]],
        compared: Mapping[str, Mapping[str, np.ndarray]],
        lost: Sequence[EncodedRow],
        weights: Mapping[str, float],
    ) -> None:
        """Keep what belongs to the score table and is no column of it.

        Args:
            anchors: raw anchor scores by group and name.
            compared: anchor scores by name of a score beside the deciding one, and by group.
            lost: rows whose score is not finite.
            weights: of the parts of the score that the coordinator has weighed.
        """
        write_json(self.private / "weights.json", dict(weights))
        write_json(self.private / "compared.json", as_lists(compared))
        write_json(self.private / "anchors.json", as_lists(anchors))
        write_json(self.private / "nonfinite.json", {str(row.row): row.id for row in lost})

    def _side(self, name: str) -> dict[str, Any]:
        path = self.private / name
        if not path.exists():
            raise DataError(f"silo {self.name}: private/{name} is missing. Score the silo again.")
        content = read_json(path, advice="Score the silo again.")
        if isinstance(content, dict):
            return content
        raise DataError(f"{path}: damaged (not by name). Score the silo again.")

    def groups(self) -> list[str]:
        """Names of the groups that the silo's scores are put into units by."""
        return group_names(self.recipe(), self.name, self.settings.domain)

    def trajectory_folder(self, recipe: Recipe, fold: int) -> Path:
        """Where a fold's own checkpoints lie."""
        name = f"{recipe.scoring_hash}-{self.rows_token()}"
        return self.private / "checkpoints" / name / f"fold-{fold}"

    def inrun_folder(self) -> Path:
        """Where scores taken during training lie."""
        return self.private / "inrun" / f"{self.recipe().scoring_hash}-{self.rows_token()}"

    def own_checkpoints(self, recipe: Recipe, fold: int) -> list[Checkpoint]:
        """A fold's own checkpoints, in the order of training.

        Raises:
            DataError: not trained yet.
        """
        folder = self.trajectory_folder(recipe, fold)
        if not (folder / "done").exists():
            raise DataError(f"silo {self.name}: there are no checkpoints yet. Train first.")
        found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
        return [load_checkpoint(path) for path in found]

    @contextmanager
    def sharing(self) -> Iterator[Sharing]:
        """Inside: where shards lie, and the workers of the silo's cluster where it has one."""
        settings, folder = self.compute(), self.private / "shards"
        watch = Watch(self.private / PROGRESS, settings.engine)
        if settings.engine != RAY:
            yield Sharing(folder, self.team, watch=watch)
            return
        from clues.cluster.scoring import RayEngine  # needs the extra `ray`

        with RayEngine(settings, self.recipe(), on_workers=watch.workers) as engine:
            yield Sharing(folder, engine=engine, watch=watch)

    def compute(self) -> ComputeSettings:
        """Where this silo scores and trains."""
        return self.settings.compute or ComputeSettings()

    def check_compute(self) -> None:
        """See that the silo's cluster answers, before hours of work lead up to it.

        Raises:
            ExtraError: Ray is not installed.
            ClusterError: no Ray answers at the address.
        """
        settings = self.compute()
        if settings.report_to != "none" and self.settings.privacy is None:
            kind = settings.report_to
            require(kind, what=f"silo {self.name}: compute.report_to: {kind}")
        if settings.engine == RAY:
            require("ray", what=f"silo {self.name}: compute: ray")
            from clues.cluster.connection import check_answers  # Ray is for those who have it

            if settings.address:
                check_answers(settings.address, wait_s=settings.wait_s)

    def train(
        self,
        rows: Sequence[EncodedRow],
        what: Piece,
        *,
        observer: Observer | None = None,
        **how: Any,
    ) -> Trained:
        """Train on these rows with the recipe's settings and a bar; `how` as `training.train`."""
        # The Trainer would make it open to others.
        make_private_folder(self.private / "scratch")
        watch = Watch(self.private / PROGRESS)
        batch, n_steps = self.recipe().train.batch_size, how["n_steps"]
        watch.begin(f"training, {what.shown}", part="step", n_parts=n_steps, n_rows=batch * n_steps)
        # The rounds of a training are one curve.
        name = f"{self.name} {what.training} {short(self.recipe().hash)}"
        curve = Curve(name, self.private / "curves")
        with (
            self.progress.task(f"{self.name}: {what.shown}", n_steps) as advance,
            reported(self.compute().report_to, curve, n_rows=len(rows)) as on_loss,
        ):
            how |= {
                "scratch": str(self.private / "scratch"),
                "on_step": lambda: (advance(1), watch.took(batch)),
            }
            if self._trains_together(observer):
                from clues.cluster.training import train_on_cluster  # needs the extra `ray`

                trained = train_on_cluster(self.compute(), self.recipe(), self.model(), rows, **how)
                if on_loss:
                    schedule = how["schedule"]
                    for step, loss in enumerate(trained.losses, how.get("first_step", 0)):
                        on_loss(step + 1, loss, schedule.peak * schedule.factor(step))
                return trained
            how |= {"settings": self.recipe().train, "observer": observer}
            how["on_loss"] = on_loss
            how["gradient_checkpointing"] = self.compute().gradient_checkpointing
            return train(self.model(), rows, **how)

    def _trains_together(self, observer: Observer | None) -> bool:
        """Whether workers share a training; who watches every step must be in its process."""
        several = self.compute().train_workers > 1
        if several and observer:
            log.warning(
                "silo %s: in-run scores are taken in one process; so is this training.", self.name
            )
        return several and not observer

    def clean_scratch(self) -> None:
        """Remove what the Trainer left."""
        shutil.rmtree(self.private / "scratch", ignore_errors=True)


def as_lists(
    scores: Mapping[str, Mapping[str, np.ndarray]],
) -> dict[str, dict[str, list[float]]]:
    """Plain JSON of scores by two names."""
    return {
        outer: {name: [float(x) for x in values] for name, values in inner.items()}
        for outer, inner in scores.items()
    }


def with_own_model(recipe: Recipe, own: SiloModel | None) -> Recipe:
    """The recipe with the base model where a silo's own settings say it lies."""
    place = (own or SiloModel()).model_dump()
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=place)})
