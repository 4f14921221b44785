"""What to look at before anything heavy starts: masks, lengths, duplicates, overlaps, cost."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from clues.config import Recipe, RowsFile, RunConfig
from clues.data.formats import RowFile, read_rows
from clues.data.roundtrip import Lost, characters_lost
from clues.data.samples import Sample
from clues.data.tokens import (
    NO_CALLS,
    ODD_TURNS,
    UNTRAINED,
    UNWANTED,
    EncodedRow,
    EncodedRows,
    RowEncoder,
    encode_rows,
)
from clues.errors import BadRowsError, CluesError, DataError
from clues.evaluation.questions import asked_rows, read_tasks
from clues.evaluation.tasks import encode_task
from clues.findings.base import SAYS
from clues.findings.look import look
from clues.model.adapters import LoraModel
from clues.model.cache import ModelCache
from clues.model.fitness import notes_on_base, notes_on_numbers
from clues.model.place import fetch
from clues.prepare.checklist import (
    Check,
    FileCheck,
    Role,
    Source,
    TaskCheck,
    notes_on,
    warnings_on,
)
from clues.prepare.cost import per_private_token, work_of
from clues.prepare.pace import Pace, measured_pace
from clues.printable import rows_in_words
from clues.scoring.cost import Size
from clues.scoring.direction import scored_weights
from clues.scoring.installed import refuse_missing
from clues.scoring.trajectory import n_train_steps
from clues.scoring.trial import try_out
from clues.selection.units import MIN_ANCHORS
from clues.selection.weighing import check_rejected


def check_run(config: RunConfig, *, n_shown: int) -> Check:
    """Read every file, encode every row, time one batch.

    Args:
        config: the run.
        n_shown: sample rows of the first silo whose mask is shown.

    Raises:
        CluesError: the base model or the configuration cannot be used at all.
    """
    recipe = config.recipe
    refuse_missing(recipe.score)
    fetch(recipe.model)
    model, encoder = ModelCache().load(recipe, device=config.compute.device)
    try_out(model, recipe.score)
    files: list[FileCheck] = []
    errors: list[str] = []
    bad: list[tuple[str, str, str]] = []
    ids: dict[Source, set[str]] = {}
    texts: dict[Source, Sequence[Sample]] = {}
    encoded: dict[Source, Sequence[EncodedRow]] = {}
    strict = {silo.name: silo.strict for silo in config.silos}
    for source, (path, how, labels) in _sources(config).items():
        lenient = source.role is Role.SILO and not strict[source.name]
        try:
            rows = read_rows(path, **how, lenient=lenient)
        except CluesError as error:
            errors.append(f"{source}: {error}")
            if isinstance(error, BadRowsError):
                bad += [(str(source), place, reason) for place, reason in error.rows]
            continue
        samples = [sample for sample in rows.samples if sample.row not in rows.unusable]
        try:
            kept = encode_rows(samples, encoder, where=str(source))
        except CluesError as error:
            errors.append(str(error))  # it says whose rows they are
            continue
        ids[source] = {sample.id for sample in rows.samples}
        encoded[source] = kept.rows
        bad += [(str(source), rows.table.place(row), why) for row, why in rows.unusable.items()]
        lost = characters_lost(encoder.tokenizer, samples)
        texts[source] = samples
        files.append(_file_check(source, rows, kept, labels, lost))
        try:
            if labels:
                rows.column(labels)
        except CluesError as error:
            errors.append(f"{source}, labels: {error}")
        if source.role is Role.ANCHORS and rows.n_rows < MIN_ANCHORS:
            errors.append(f"{source}: {rows.n_rows} rows, at least {MIN_ANCHORS} are needed.")
        if source.role is Role.REJECTED:
            errors += _too_few_rejected(len(kept.rows), recipe, source)
    files = _with_findings(config, files, texts)
    errors += _model_errors(config, model)
    tasks, asked = _tasks(config, encoder, ids, errors)
    overlaps = _overlaps(ids)
    errors += [
        f"{a} and {b} share {rows_in_words(n)}. Remove what they share from one of the two."
        for a, b, n in overlaps
        if _spoils(a, b)
    ]
    silo_rows = {s.name: rows for s, rows in encoded.items() if s.role is Role.SILO}
    first = next(iter(silo_rows.values()), ())
    sizes = {source: Size.of(rows) for source, rows in encoded.items()}
    work = work_of(config, sizes, asked=asked + _choices(texts, encoded))
    pace = measured_pace(model, first) if first else None
    steps = [n_train_steps(recipe.train, len(rows)) for rows in silo_rows.values()]
    return Check(
        files=tuple(files),
        overlaps=tuple((str(a), str(b), n) for a, b, n in overlaps),
        errors=tuple(errors),
        warnings=warnings_on(config, files),
        notes=(
            *notes_on(config, files),
            *notes_on_base(model.peft.get_base_model(), encoder.tokenizer, recipe.tokens),
            *_template_notes(encoder, model, encoded.values()),
            *notes_on_numbers(recipe.model, model.device),
        ),
        template=encoder.template,
        n_parameters=sum(p.numel() for n, p in model.peft.named_parameters() if ".lora_" not in n),
        n_lora=sum(p.numel() for p in model.parameters().values()),
        steps=round(float(np.mean(steps))) if steps else 0,
        minutes={str(stage): pace.minutes(done) for stage, done in work.items()} if pace else {},
        passes=per_private_token(work, sizes),
        memory_gb=_memory(model, pace) if pace else 0.0,
        tasks=tasks,
        shown=tuple(_shown(encoder, row) for row in first[:n_shown]),
        bad=tuple(bad),
    )


def _with_findings(
    config: RunConfig, files: Sequence[FileCheck], texts: dict[Source, Sequence[Sample]]
) -> list[FileCheck]:
    """The files of silos with what a reader would see in their rows, beside the checked ones."""
    domains = {silo.name: silo.domain for silo in config.silos}
    found: list[FileCheck] = []
    for source, file in zip(texts, files, strict=True):
        if source.role is Role.SILO:
            domain = domains[source.name]
            checked = [
                s for other, rows in texts.items() if _speaks_for(other, domain) for s in rows
            ]
            counts = look(texts[source], checked).counts()
            file = replace(file, findings={SAYS[kind]: n for kind, n in counts.items()})
        found.append(file)
    return found


def _too_few_rejected(n_rows: int, recipe: Recipe, source: Source) -> list[str]:
    try:
        check_rejected(n_rows, recipe, where=str(source))
    except DataError as error:
        return [str(error)]
    return []


def _speaks_for(source: Source, domain: str) -> bool:
    return source.role in (Role.VALIDATION, Role.ANCHORS) and source.name == domain


def _sources(config: RunConfig) -> dict[Source, tuple[str | Path, dict[str, Any], str | None]]:
    """Every file of rows: where it lies, how it is read, and its column of labels, if any."""
    found: dict[Source, tuple[str | Path, dict[str, Any], str | None]] = {
        Source(Role.SILO, silo.name): (
            silo.data,
            {"schema": silo.schema_name, "columns": silo.read_columns},
            silo.labels,
        )
        for silo in config.silos
    }
    files: dict[Source, RowsFile] = {}
    for domain, public in config.recipe.public.items():
        for name, file in public.validation.items():
            files[Source(Role.VALIDATION, domain, name)] = file
        files[Source(Role.ANCHORS, domain)] = public.anchor
        if public.reject:
            files[Source(Role.REJECTED, domain)] = public.reject
    if config.evaluate.heldout:
        files[Source(Role.HELD_OUT)] = config.evaluate.heldout
    for source, file in files.items():
        found[source] = (file.path, {"schema": file.schema_name, "columns": file.columns}, None)
    return found


def _spoils(a: Source, b: Source) -> bool:
    """Whether shared rows make figures worthless; with a silo's rows that is the silo's affair.

    Held-out rows and questions of tasks are all for tests, and may be the same.
    """
    roles = {a.role, b.role}
    return Role.SILO not in roles and not roles <= {Role.HELD_OUT, Role.TASK}


def _model_errors(config: RunConfig, model: LoraModel) -> list[str]:
    """What the recipe names and the model lacks: blocks and projections, found before training."""
    recipe = config.recipe
    if not (recipe.score.forms or recipe.score.inrun):
        return []
    frozen_a = recipe.score.shared and recipe.train.aggregation == "ffa"
    try:
        scored_weights(model, recipe.score, frozen_a=frozen_a)
    except CluesError as error:
        return [str(error)]
    return []


def _tasks(
    config: RunConfig, encoder: RowEncoder, ids: dict[Source, set[str]], errors: list[str]
) -> tuple[tuple[TaskCheck, ...], float]:
    """Read every task as the run will; its rows join `ids`, what stops it joins `errors`.

    Returns:
        The tasks, and the tokens of all their choices.
    """
    try:
        encoded = [encode_task(task, encoder) for task in read_tasks(config.evaluate.tasks)]
        for task in config.evaluate.tasks:
            named = ids.setdefault(Source(Role.TASK, task.path.name), set())
            named |= {sample.id for sample in asked_rows(task)}
    except CluesError as error:
        errors.append(f"evaluate.tasks: {error}")
        return (), 0.0
    tokens = sum(len(row.ids) for t in encoded for rows in t.options for row in rows)
    return tuple(TaskCheck(t.name, len(t.options), t.left_out) for t in encoded), float(tokens)


def _choices(
    texts: dict[Source, Sequence[Sample]], encoded: dict[Source, Sequence[EncodedRow]]
) -> float:
    """About how many tokens the choices of held-out rows have: each is read with its question."""
    source = Source(Role.HELD_OUT)
    lengths = {row.row: len(row.ids) for row in encoded.get(source, ())}
    found = texts.get(source, ())
    return float(sum(len(s.choices) * lengths.get(s.row, 0) for s in found))


def _template_notes(
    encoder: RowEncoder, model: LoraModel, files: Iterable[Sequence[EncodedRow]]
) -> list[str]:
    """What the template writes that no row says: a date, and what ends an answer."""
    notes = []
    if encoder.chat is not None and encoder.chat.writes_date:
        day = encoder.settings.date.isoformat()
        notes.append(
            f"the chat template writes today's date. It is told {day} on every day (tokens.date), so "
            "that scores do not depend on the day."
        )
    rows = [row for found in files for row in found]
    trained = {i for row in rows for i, counts in zip(row.ids, row.mask, strict=True) if counts}
    if rows and not trained & (stops := _stop_tokens(encoder, model)):
        names = ", ".join(str(encoder.tokenizer.convert_ids_to_tokens(i)) for i in sorted(stops))
        notes.append(
            "no token at which the model stops is ever trained "
            f"({names or 'it names none'}): trained on these rows, it may not know where to end an "
            "answer. Repair the chat template, or name the token that it writes as eos_token."
        )
    return notes


def _stop_tokens(encoder: RowEncoder, model: LoraModel) -> set[int]:
    """Ids at which the model stops as its files say."""
    settings: Any = getattr(model.peft.get_base_model(), "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    found = named if isinstance(named, list) else [named]
    return {i for i in (*found, encoder.tokenizer.eos_token_id) if i is not None}


def _file_check(
    source: Source, rows: RowFile, encoded: EncodedRows, labels: str | None, lost: Lost
) -> FileCheck:
    def spread(values: list[int]) -> tuple[int, ...]:
        return tuple(int(v) for v in np.quantile(values, [0.05, 0.5, 0.95, 1.0]))

    reasons = Counter(encoded.dropped.values())
    own = {reason: reasons[reason] for reason in (UNTRAINED, UNWANTED, NO_CALLS) if reasons[reason]}
    n_odd = reasons[ODD_TURNS]
    return FileCheck(
        name=str(source),
        role=source.role,
        description=rows.description,
        n_rows=rows.n_rows,
        n_too_long=len(encoded.dropped) - n_odd - sum(own.values()),
        n_truncated=sum(row.truncated for row in encoded.rows),
        n_duplicates=rows.n_rows - len({sample.id for sample in rows.samples}),
        tokens=spread([len(row.ids) for row in encoded.rows]),
        response_tokens=spread([row.n_response_tokens for row in encoded.rows]),
        n_odd_turns=n_odd,
        n_unusable=len(rows.unusable),
        lost=lost.share,
        lost_signs=lost.signs,
        remarks=dict(Counter(str(remark) for row in encoded.rows for remark in row.remarks)),
        as_marked=own,
        n_pairs=sum(bool(sample.rejected) for sample in rows.samples),
        unused={name: n for name, n in rows.unused.items() if name != labels},
        n_chats=sum(bool(row.turns) for row in encoded.rows),
        n_turns=sum(len({run.turn for run in row.turns}) for row in encoded.rows),
    )


def _overlaps(ids: dict[Source, set[str]]) -> tuple[tuple[Source, Source, int], ...]:
    names = list(ids)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    found = [(a, b, len(ids[a] & ids[b])) for a, b in pairs]
    return tuple((a, b, n) for a, b, n in found if n)


def _memory(model: LoraModel, pace: Pace) -> float:
    """The peak of a batch, and what the optimiser holds beside the weights of the adapter."""
    n_lora = sum(p.numel() for p in model.parameters().values())
    return pace.memory_gb + 3 * 4 * n_lora / 1e9


def _shown(encoder: RowEncoder, row: EncodedRow) -> tuple[str, tuple[tuple[str, bool], ...]]:
    """Decode runs of prompt and response tokens."""
    pieces: list[tuple[str, bool]] = []
    start = 0
    for end in range(1, len(row.ids) + 1):
        if end == len(row.ids) or row.mask[end] != row.mask[start]:
            pieces.append((encoder.tokenizer.decode(list(row.ids[start:end])), row.mask[start]))
            start = end
    return f"row {row.row + 1}", tuple(pieces)
