"""Tasks of lm-eval on a joint model, as answers question by question beside our own tasks."""

import contextlib
import copy
import hashlib
import io
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from clues.config import LmEvalSettings
from clues.data.files import read_source
from clues.errors import DataError, NumericsError
from clues.evaluation.tasks import Answers
from clues.extras import require
from clues.model.adapters import AdapterState, LoraModel

PUBMEDQA = "pubmedqa"
_BATCH_ROWS = 8


def check_harness(entries: Sequence[LmEvalSettings]) -> None:
    """Refuse before any training what lm-eval would refuse after it, or would not notice.

    Raises:
        ExtraError: lm-eval is not installed.
        DataError: a file of data is missing or not what the task reads.
    """
    if entries:
        require("lm_eval", what="evaluate.lm_eval")
    for entry in entries:
        if entry.task == PUBMEDQA:
            _check_pubmedqa(entry)


def harness_inputs(entries: Sequence[LmEvalSettings]) -> list[dict[str, Any]]:
    """What the answers depend on, as plain JSON; where files lie does not count."""
    found = []
    for entry in entries:
        paths = [p for p in (Path(entry.task) if _is_file(entry) else None, entry.data) if p]
        hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
        names = {"task": Path(entry.task).name, "data": entry.data.name if entry.data else None}
        content = {**entry.model_dump(mode="json"), **names, "sha256": hashes}
        found.append({**content, "by": version("lm-eval")})
    return found


def ask_harness(
    model: LoraModel,
    tokenizer: Any,
    adapter: AdapterState,
    entries: Sequence[LmEvalSettings],
    *,
    cache: Path,
) -> dict[str, Answers]:
    """Run tasks of lm-eval on a model with an adapter.

    Args:
        model: carries the adapter.
        tokenizer: of the base model.
        adapter: the weights to measure.
        entries: the tasks.
        cache: folder for the rows that `datasets` unpacks.

    Returns:
        By task, as `evaluation.tasks.answer_task` for ours.

    Raises:
        DataError: a task is not known, or its data cannot be loaded.
    """
    from lm_eval.models import huggingface  # seconds to import, and an extra
    from lm_eval.tasks import TaskManager

    found: dict[str, Answers] = {}
    own = all(entry.task == PUBMEDQA or _is_file(entry) for entry in entries)
    with _quiet(), model.evaluating() as peft:
        model.set_state(adapter)
        # lm-eval sets the padding of the tokenizer that it gets.
        copied = copy.deepcopy(tokenizer)
        wrapper: Any = huggingface.HFLM
        harness = wrapper(pretrained=peft, tokenizer=copied, batch_size=_BATCH_ROWS)
        # To look through the tasks that come with lm-eval takes half a minute.
        manager = TaskManager(include_defaults=not own)
        for entry in entries:
            if not own and entry.task != PUBMEDQA and not _is_file(entry):
                _check_name(entry.task, manager.all_tasks)
            result = _evaluate(harness, manager, entry, cache=cache)
            for name, samples in result["samples"].items():
                found[name] = _answers(name, samples, harness)
    return found


def _evaluate(harness: Any, manager: Any, entry: LmEvalSettings, *, cache: Path) -> dict[str, Any]:
    import lm_eval
    from datasets.exceptions import DatasetsError
    from jinja2 import UndefinedError

    task: Any = entry.task
    if entry.data is not None:
        source = Path(str(files("clues") / "assets" / "lm_eval" / "pubmedqa.yaml"))
        path = source if entry.task == PUBMEDQA else Path(entry.task)
        task = yaml.safe_load(path.read_text(encoding="utf-8"))
        data = {"test": str(entry.data)}
        task["dataset_kwargs"] = {"data_files": data, "cache_dir": str(cache)}
    run: Any = lm_eval.simple_evaluate
    try:
        return run(
            model=harness,
            tasks=[task],
            num_fewshot=entry.num_fewshot,
            limit=entry.limit,
            task_manager=manager,
            bootstrap_iters=0,
        )
    except (OSError, ValueError, KeyError, DatasetsError, UndefinedError) as error:
        # The type alone: what `datasets` says about a bad file may hold a row.
        reason = type(error).__name__
    raise DataError(
        f"evaluate.lm_eval: task {Path(entry.task).name} cannot be run by lm-eval ({reason}). "
        "Its data may not be on this machine, or no longer load: give a local file with `data`, "
        "or fetch the data set first."
    )


def _answers(name: str, samples: Sequence[Mapping[str, Any]], harness: Any) -> Answers:
    first = [s for s in samples if s["filter"] == samples[0]["filter"]]
    metrics = [m for m in first[0]["metrics"] if isinstance(first[0].get(m), int | float | bool)]
    if not metrics:
        raise DataError(
            f"evaluate.lm_eval: task {name} has no figure for single questions, so arms cannot "
            "be compared on it. Leave it out."
        )
    headline = next((m for m in ("acc_norm", "acc") if m in metrics), metrics[0])
    kept = [m for m in ("acc_norm", "acc") if m in metrics] or [headline]
    likelihoods = [
        pair[0] for s in first for pair in s["filtered_resps"] if isinstance(pair, tuple)
    ]
    if not np.isfinite(np.array(likelihoods, float)).all():
        raise NumericsError(f"task {name}: a log-likelihood is not finite. Measure in float32.")
    by_choice = all(isinstance(pair, tuple) for s in first for pair in s["filtered_resps"])
    limit = harness.max_length + 1
    cut = sum(
        any(len(harness.tok_encode("".join(map(str, a[:2])))) > limit for a in s["arguments"])
        for s in first
        if by_choice
    )
    return Answers(
        figures={metric: tuple(float(s[metric]) for s in first) for metric in kept},
        n_choices=tuple(len(s["filtered_resps"]) if by_choice else None for s in first),
        languages=(None,) * len(first),
        left_out={},
        by=f"lm-eval {version('lm-eval')}",
        headline=headline,
        cut=cut,
    )


def _check_pubmedqa(entry: LmEvalSettings) -> None:
    if entry.data is None:
        raise DataError(
            "evaluate.lm_eval: the task pubmedqa of lm-eval does not load with current `datasets`; "
            "ours reads a local file. Give its rows as {task: pubmedqa, data: FILE.jsonl}."
        )
    _, table, _ = read_source(entry.data)
    needed = ({"instruction", "input", "answer"}, {"question", "context", "final_decision"})
    names = next((n for n in needed if n <= set(table.columns)), None)
    if names is None or not table.container.startswith("jsonl"):
        raise DataError(
            f"{entry.data}: task pubmedqa reads JSON Lines with instruction, input and answer, or "
            "with question, context and final_decision."
        )
    answer = "answer" if "answer" in names else "final_decision"
    for row, record in enumerate(table.records):
        # lm-eval takes an unknown answer for a wrong one, and goes on.
        if record.get(answer) not in ("yes", "no", "maybe"):
            raise DataError(f"{entry.data} {table.place(row)}: {answer} is not yes, no or maybe.")


def _check_name(name: str, known: Sequence[str]) -> None:
    if name not in known:
        close = get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise DataError(f"evaluate.lm_eval: lm-eval has no task {name!r}.{hint}")


def _is_file(entry: LmEvalSettings) -> bool:
    return entry.task.endswith((".yaml", ".yml"))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No bars and warnings of lm-eval, and the random numbers of others as they were."""
    log = logging.getLogger("lm_eval")
    before, level = (random.getstate(), np.random.get_state()), log.level
    log.setLevel(logging.ERROR)
    try:
        with torch.random.fork_rng(), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        log.setLevel(level)
        random.setstate(before[0])
        np.random.set_state(before[1])
