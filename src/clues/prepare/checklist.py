"""What a check found, what deserves a second look, and how it reads on a terminal. No torch."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clues.atomic import atomic_write_bytes
from clues.config import BUILT_IN, RunConfig
from clues.data.formats import not_read
from clues.printable import rows_are, rows_in_words
from clues.selection.rules import fewest_anchors, tolerance_rank

FEW_VALIDATION = 20
MANY_PASSES = 10  # of a training over the same rows, beyond which it learns them by heart
MANY_LOST = 0.05  # share of rows cut or left out that deserves a word
RESPONSE = (
    "\N{MATHEMATICAL LEFT WHITE SQUARE BRACKET}",
    "\N{MATHEMATICAL RIGHT WHITE SQUARE BRACKET}",
)


class Role(StrEnum):
    """What a file of rows is for."""

    SILO = "silo"
    VALIDATION = "validation"
    ANCHORS = "anchors"
    REJECTED = "rejected rows"
    HELD_OUT = "held-out"
    TASK = "task file"


@dataclass(frozen=True)
class Source:
    """A file of rows of a configuration.

    Attributes:
        role: what it is for.
        name: of the silo, the domain or the task file; empty for the held-out rows.
        set: of a validation set.
    """

    role: Role
    name: str = ""
    set: str = ""

    def __str__(self) -> str:
        """For people; no name is read out of it."""
        if self.role in (Role.ANCHORS, Role.REJECTED):
            return f"{self.name} {self.role}"
        if self.role is Role.VALIDATION:
            # The name that a single set gets by itself says nothing.
            return f"{self.name} validation {self.set}".removesuffix(" validation")
        return f"{self.role} {self.name}".rstrip()


@dataclass(frozen=True)
class FileCheck:
    """One file of rows.

    Attributes:
        name: silo or set, for people.
        role: what the rows are for.
        description: format as detected.
        n_rows: rows in the file.
        n_too_long: rows that do not fit and are left out.
        n_truncated: rows that are cut.
        n_duplicates: rows whose text stands earlier in the file.
        tokens: 5 %, 50 %, 95 % and largest length, prompt included.
        response_tokens: the same of what carries loss.
        n_odd_turns: rows that are left out because the chat template refuses their turns.
        n_unusable: rows that cannot be read, such as those whose answer is empty.
        lost: share of the characters that the tokenizer loses.
        lost_signs: signs among them.
        findings: what their text shows, and in how many rows.
        remarks: what the chat template does to rows, and to how many.
        as_marked: rows that are left out because they say so themselves, by reason.
        n_pairs: rows that are preference pairs; the chosen answer is the row's.
        unused: columns and keys of turns that are not read, and in how many rows they stand.
        n_chats: rows of which several turns are trained.
        n_turns: the trained turns of those.
    """

    name: str
    role: Role
    description: str
    n_rows: int
    n_too_long: int
    n_truncated: int
    n_duplicates: int
    tokens: tuple[int, ...]
    response_tokens: tuple[int, ...]
    n_odd_turns: int = 0
    n_unusable: int = 0
    lost: float = 0.0
    lost_signs: str = ""
    findings: Mapping[str, int] = field(default_factory=dict)
    remarks: Mapping[str, int] = field(default_factory=dict)
    as_marked: Mapping[str, int] = field(default_factory=dict)
    n_pairs: int = 0
    unused: Mapping[str, int] = field(default_factory=dict)
    n_chats: int = 0
    n_turns: int = 0

    @property
    def n_usable(self) -> int:
        """Rows that the model reads."""
        return self.n_rows - self.n_too_long - self.n_odd_turns - self.n_unusable


@dataclass(frozen=True)
class TaskCheck:
    """One multiple-choice task.

    Attributes:
        name: of the task.
        n_questions: that are asked.
        left_out: rows that are not asked, by reason.
    """

    name: str
    n_questions: int
    left_out: dict[str, int]


@dataclass(frozen=True)
class Check:
    """Everything that was looked at.

    Attributes:
        files: one per file.
        overlaps: pairs of sets that share rows, and how many.
        errors: what makes the run's figures worthless, or stops it.
        notes: what may be meant, and deserves a second look.
        warnings: what makes the run promise less than it says, or the model read other text.
        template: name of the template in use.
        n_parameters: of the base model.
        n_lora: trainable LoRA weights.
        steps: of the training whose checkpoints are scored, mean over silos.
        minutes: estimated time of every stage on this machine, by its name.
        passes: forward passes that a selection costs per private token, public rows included.
        memory_gb: estimated peak of one process.
        tasks: one per multiple-choice task.
        shown: rows to look at, as ids and masks; not part of `to_json`.
        bad: of every bad row what it is of, where it lies and why it is bad; likewise.
    """

    files: tuple[FileCheck, ...]
    overlaps: tuple[tuple[str, str, int], ...]
    errors: tuple[str, ...]
    notes: tuple[str, ...]
    template: str
    n_parameters: int
    n_lora: int
    steps: int
    minutes: Mapping[str, float]
    passes: float
    memory_gb: float
    tasks: tuple[TaskCheck, ...] = ()
    warnings: tuple[str, ...] = ()
    shown: tuple[tuple[str, tuple[tuple[str, bool], ...]], ...] = field(default=(), repr=False)
    bad: tuple[tuple[str, str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return figures only, no text."""
        return {k: v for k, v in asdict(self).items() if k not in ("shown", "bad")}


def notes_on(config: RunConfig, files: Sequence[FileCheck]) -> tuple[str, ...]:
    """What is allowed, but often not meant."""
    found: dict[str, list[str]] = {}
    for file in files:
        for note in _file_notes(config, file):
            found.setdefault(note, []).append(file.name)
    notes = [f"{', '.join(names)}: {note}" for note, names in found.items()]
    evaluate = config.evaluate
    if config.recipe.model.name == BUILT_IN and config.name != "demo":
        notes.append(
            "recipe.model.name is built-in, a base model for trying things out. It cannot judge "
            "what it does not understand: for data that matter, name a model folder."
        )
    if evaluate.arms and evaluate.heldout is None:
        notes.append(
            f"there is no evaluate.heldout: the arms {', '.join(evaluate.arms)} are trained and "
            "not compared. Name held-out rows, or set evaluate.arms: [] to stop after the selection."
        )
    if evaluate.arms and (often := _passes(config, files)) > MANY_PASSES:
        notes.append(
            f"a joint model goes over the rows of the smallest silo {often:.0f} times, and learns them by "
            "heart: combine.rounds x combine.local_steps x recipe.train.batch_size. Lower one of the "
            "first two; a few passes are usual."
        )
    return tuple(notes)


def _passes(config: RunConfig, files: Sequence[FileCheck]) -> float:
    """How often the training of a joint model sees the rows of the smallest silo."""
    n_rows = [file.n_rows for file in files if file.role is Role.SILO and file.n_rows]
    combine = config.combine
    steps = combine.rounds * combine.local_steps
    return steps * config.recipe.train.batch_size / min(n_rows) if n_rows else 0.0


def _file_notes(config: RunConfig, file: FileCheck) -> list[str]:
    """Notes on one file; those that are alike read alike, so that they can be put together."""
    limit = config.recipe.tokens.max_length
    ways = {
        "get no score": (file.n_too_long, "overlong: truncate scores a copy that is cut"),
        "are scored as a copy that is cut": (file.n_truncated, "kept rows stay whole"),
    }
    notes = [
        f"{n / file.n_rows:.0%} of the rows {what}: they are longer than {limit} tokens. {how}; or "
        "raise recipe.tokens.max_length as far as the model reads and memory allows."
        for what, (n, how) in ways.items()
        if n > MANY_LOST * file.n_rows
    ]
    if file.n_unusable:
        notes.append(
            f"{rows_in_words(file.n_unusable)} cannot be used: no answer, or an empty one, for example. "
            "They are dropped with that reason; strict: true in the silo's file stops for them."
        )
    if config.recipe.score.turns and file.n_chats and file.role is Role.SILO:
        notes.append(
            f"rows with several trained turns: {file.n_chats}, of {file.n_turns} turns in all. Every turn has "
            f"a score (threshold.low_turn: {config.recipe.threshold.low_turn})."
        )
    notes += [f"{rows_in_words(n)}: {kind}." for kind, n in file.findings.items()]
    if file.n_odd_turns:
        how = (
            " recipe.tokens.odd_turns: fold keeps most."
            if config.recipe.tokens.odd_turns == "drop"
            else ""
        )
        notes.append(
            f"{rows_are(file.n_odd_turns)} left out: the chat template refuses their turns.{how}"
        )
    notes += [f"{rows_in_words(n)}: {remark}." for remark, n in sorted(file.remarks.items())]
    notes += [f"{rows_are(n)} left out: {why}." for why, n in sorted(file.as_marked.items())]
    if file.n_pairs:
        notes.append(
            f"{rows_are(file.n_pairs)} {'a pair' if file.n_pairs == 1 else 'pairs'}: the chosen answer "
            "is trained and scored, the rejected one is not."
        )
    if file.unused:
        notes.append(not_read(file.unused, option="The setting columns"))
    if n := file.n_duplicates:
        notes.append(f"{rows_in_words(n)} repeat{'s' if n == 1 else ''} an earlier row.")
    if file.role in (Role.SILO, Role.HELD_OUT):
        return notes
    if file.role is Role.VALIDATION:
        few = f"{file.n_rows} rows give an unsteady direction; {FEW_VALIDATION} to 100 are better."
        return [*notes, few] if file.n_rows < FEW_VALIDATION else notes
    rule = config.recipe.threshold
    if file.role is not Role.ANCHORS or rule.rule != "anchor_tolerance":
        return notes
    rank, promised = tolerance_rank(file.n_usable, rule)
    if promised >= rule.confidence and rank == 1:
        second, fifth = (fewest_anchors(wanted, rule) for wanted in (2, 5))
        notes.append(
            f"the threshold is the lowest of {file.n_usable} anchor scores: one odd anchor moves it "
            f"so far down that little is dropped. With {second} rows it is the second lowest, with "
            f"{fifth} the fifth."
        )
    return notes


def write_bad_rows(bad: Sequence[tuple[str, str, str]], path: Path) -> None:
    """Write where bad rows lie and why they are bad, for nobody else to read.

    Raises:
        DataError: the file cannot be written.
    """
    text = io.StringIO()
    csv.writer(text).writerows([("rows of", "place", "reason"), *bad])
    atomic_write_bytes(path, text.getvalue().encode(), private=True)


def warnings_on(config: RunConfig, files: Sequence[FileCheck]) -> tuple[str, ...]:
    """What makes the run promise less than it says, or the model read other text than the rows'."""
    found: list[str] = []
    rule = config.recipe.threshold
    chats = {role: any(f.n_chats for f in files if f.role is role) for role in Role}
    if config.recipe.score.turns and chats[Role.SILO] and not chats[Role.ANCHORS]:
        found.append(
            "no anchor row has several trained turns, and the first turn of a chat is not like its "
            "later ones: a low turn means little. Take chats as anchors, or set score.turns: false."
        )
    for file in files:
        if file.lost > MANY_LOST / 5:
            signs = f", among them {' '.join(file.lost_signs)}" if file.lost_signs else ""
            found.append(
                f"{file.name}: the tokenizer loses {file.lost:.0%} of the characters{signs}. The model "
                "reads another text than the rows have; take a model whose tokenizer knows them."
            )
        if file.role is not Role.ANCHORS or rule.rule != "anchor_tolerance":
            continue
        _, promised = tolerance_rank(max(file.n_usable, 1), rule)
        if promised < rule.confidence:
            left = "" if file.n_usable == file.n_rows else f" of {file.n_rows}"
            found.append(
                f"{file.name}: {file.n_usable}{left} rows are short enough to be used, and they keep "
                f"{1 - rule.quantile:.0%} of the clean rows with probability {promised:.0%} only. It "
                f"takes {fewest_anchors(1, rule)} for {rule.confidence:.0%}: add checked rows, or let "
                "longer ones in (recipe.tokens)."
            )
    return tuple(found)


def print_check(check: Check, console: Console, *, command: str) -> None:
    """Show a check on a terminal.

    Args:
        check: what was found.
        console: where to.
        command: what to type next if nothing is wrong.
    """
    if check.files:
        console.print(_files_table(check))
        console.print(
            Text(
                "Tokens: median (longest), the response's part beside it. Repeated: same text as an "
                "earlier row. No score, cut: too long (the notes name other reasons).",
                style="dim",
            )
        )
    for task in check.tasks:
        reasons = "; ".join(
            f"{rows_in_words(n)} left out: {why}" for why, n in task.left_out.items()
        )
        line = f"Task {task.name}: {task.n_questions:,} questions. {reasons}".rstrip()
        console.print(Text(line), soft_wrap=True)
    if check.shown:
        console.print(
            f"\nAs the model reads them; {RESPONSE[0]}this{RESPONSE[1]} is trained and scored:",
            highlight=False,
        )
    for name, pieces in check.shown:
        text = Text(f"\n{name}: ", style="bold")
        for piece, is_response in pieces:
            shown = f"{RESPONSE[0]}{piece}{RESPONSE[1]}" if is_response else piece
            text.append(shown, style="bold green" if is_response else "dim")
        console.print(text)
    console.print(
        f"\nTemplate {check.template}. Base model {check.n_parameters:,} parameters, LoRA "
        f"{check.n_lora:,}.",
        highlight=False,
    )
    if check.steps:
        console.print(
            f"Warm-up {check.steps} steps per silo. Estimate for this machine, the whole run: "
            f"{duration(sum(check.minutes.values()))}, {check.memory_gb:.1f} GB.",
            highlight=False,
        )
        long = {stage: minutes for stage, minutes in check.minutes.items() if minutes >= 1}
        if long:
            parts = ", ".join(f"{stage} {duration(minutes)}" for stage, minutes in long.items())
            console.print(f"Of that: {parts}.", highlight=False)
        console.print(
            f"The selection costs {check.passes:.1f} forward passes per private token, public rows "
            "included.",
            highlight=False,
        )
    notes = [f"{a} and {b} share {rows_in_words(n)}." for a, b, n in check.overlaps] + [
        *check.notes
    ]
    said = (
        ("note", "yellow", notes),
        ("warning", "bold magenta", check.warnings),
        ("error", "red", check.errors),
    )
    for kind, style, lines in said:
        for line in lines:
            console.print(Text(f"{kind}: {line}", style=style), soft_wrap=True)
    if not check.errors:
        console.print(f"No error found. Next: {command}", highlight=False, soft_wrap=True)


def duration(minutes: float) -> str:
    """Minutes in words that claim no more than an estimate knows."""
    if minutes < 1:
        return "under a minute"
    if minutes < 1.5:
        return "about a minute"
    return f"about {minutes:.0f} minutes" if minutes < 90 else f"about {minutes / 60:.0f} hours"


def _files_table(check: Check) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    headings = ("rows of", "format", "rows", "tokens", "response", "repeated", "no score", "cut")
    for heading in headings:
        numeric = heading not in ("rows of", "format")
        table.add_column(
            heading, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric
        )
    for file in check.files:
        table.add_row(
            # A silo's name is a name and not a style.
            Text(file.name),
            Text(file.description.replace(" rows in ", ", ")),
            f"{file.n_rows:,}",
            f"{file.tokens[1]} ({file.tokens[3]})",
            f"{file.response_tokens[1]} ({file.response_tokens[3]})",
            _or_dot(file.n_duplicates),
            _or_dot(
                file.n_too_long + file.n_odd_turns + file.n_unusable + sum(file.as_marked.values())
            ),
            _or_dot(file.n_truncated),
        )
    return table


def _or_dot(n: int) -> str:
    """Zero is the usual case and should not draw the eye."""
    return f"{n:,}" if n else "\N{MIDDLE DOT}"
