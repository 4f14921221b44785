"""The judge of a run: which prompts, whose answers, what it costs, and where the verdicts lie."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clues.atomic import atomic_write_bytes, make_folder
from clues.config import JudgeSettings, RowsFile, SharedConfig, derived_seed
from clues.coordinator.coordinator import Coordinator
from clues.data.formats import read_file
from clues.data.samples import Sample
from clues.errors import ConfigError, DataError
from clues.evaluation.judge.endpoint import Endpoint, check_endpoint
from clues.evaluation.judge.figures import pairwise_figures, reference_figures
from clues.evaluation.judge.panel import ask_all
from clues.evaluation.judge.prompts import Inquiry, Verdict, about_pair, about_reference
from clues.results.tasks import JudgeResult
from clues.rundir import file_hash, hash_of, read_record, write_record

Answers = Mapping[str, Mapping[int, str]]
_CHARACTERS_A_TOKEN = 4  # of English text; a rough figure for an estimate
# What decides how fast and how often is asked, not what is answered.
_NOT_ASKED = {"api_key_env", "max_calls", "concurrency", "timeout_s", "retries"}


@dataclass(frozen=True)
class Estimate:
    """What judging a run takes at most, if nothing is answered yet and nothing repaired.

    Attributes:
        prompts: how many.
        calls: requests.
        tokens_in: about; four characters a token, and answers as long as they may be.
        tokens_out: at most.
    """

    prompts: int
    calls: int
    tokens_in: int
    tokens_out: int


def settings_of(config: SharedConfig, *, allow_private: bool) -> JudgeSettings:
    """The judge's settings, with only the arms that the run has.

    Raises:
        ConfigError: there is no judge, no prompt, no arm, or the prompts are not the public ones.
    """
    judge, evaluate = config.evaluate.judge, config.evaluate
    if judge is None:
        raise ConfigError(
            "evaluate.judge is missing. Give it base_url and model of an OpenAI-compatible "
            "endpoint; docs/evaluation.md shows how."
        )
    if judge.prompts is None and evaluate.heldout is None:
        raise ConfigError("evaluate.judge needs evaluate.heldout: its rows are what is asked.")
    if judge.prompts is not None and not allow_private:
        raise ConfigError(
            f"evaluate.judge.prompts: {judge.prompts.name} is not the public held-out set, and its "
            "rows would be sent to the endpoint. If they may leave, add --allow-private-prompts."
        )
    arms = [a for a in evaluate.arms if a in judge.arms and (a != "oracle" or config.labelled)]
    if not arms:
        raise ConfigError("evaluate.judge.arms: this run has none of them.")
    modes = tuple(judge.mode)
    if "pairwise" in modes and (judge.against not in arms or len(arms) < 2):
        raise ConfigError(
            f"evaluate.judge.mode pairwise compares with arm {judge.against}, and needs another "
            f"one. The arms to be judged are: {', '.join(arms)}."
        )
    return judge.model_copy(update={"arms": tuple(arms)})


def prompts_of(config: SharedConfig, judge: JudgeSettings) -> list[Sample]:
    """The rows that are asked, in the file's order; the same ones in every run."""
    samples = read_file(_asked(config, judge)).samples
    if len(samples) <= judge.n_prompts:
        return list(samples)
    draw = np.random.default_rng(derived_seed(config.recipe.seed, "judge", "prompts"))
    chosen = draw.choice(len(samples), judge.n_prompts, replace=False)
    return [samples[i] for i in sorted(chosen)]


def _asked(config: SharedConfig, judge: JudgeSettings) -> RowsFile:
    """The file of prompts: the judge's own, or the held-out rows."""
    file = RowsFile(path=judge.prompts) if judge.prompts else config.evaluate.heldout
    assert file is not None
    return file


def estimate(config: SharedConfig, *, allow_private: bool = False) -> Estimate:
    """What judging would take, without training, answering or asking anything."""
    judge = settings_of(config, allow_private=allow_private)
    samples = prompts_of(config, judge)
    longest = "x" * (_CHARACTERS_A_TOKEN * judge.max_answer_tokens)
    same = {arm: {s.row: longest + arm for s in samples} for arm in judge.arms}
    inquiries = _inquiries(judge, samples, same)[0]
    characters = sum(len(m["content"]) for i in inquiries for m in i.messages)
    return Estimate(
        prompts=len(samples),
        calls=len(inquiries),
        tokens_in=characters // _CHARACTERS_A_TOKEN,
        tokens_out=len(inquiries) * judge.max_reply_tokens,
    )


def judge_run(
    config: SharedConfig, coordinator: Coordinator, *, allow_private: bool = False
) -> JudgeResult:
    """Have every arm answer, and every answer judged; write verdicts and figures.

    Raises:
        CluesError: the endpoint gives no answers; those it gave are stored.
    """
    judge = settings_of(config, allow_private=allow_private)
    check_endpoint(judge)
    samples, n_long = _fitting(coordinator, prompts_of(config, judge))
    answers = {arm: _answers(coordinator, judge, arm, samples) for arm in judge.arms}
    inquiries, identical = _inquiries(judge, samples, answers)
    folder = coordinator.folder / "judge"
    endpoint = Endpoint(judge, folder / "replies")
    with coordinator.desk.progress.task("coordinator: judge", len(inquiries)) as advance:
        verdicts = ask_all(endpoint, inquiries, on_rows=advance)
    judged = list(zip(inquiries, verdicts, strict=True))
    for mode in judge.mode:
        _write_verdicts(folder / f"{mode}.jsonl", [p for p in judged if p[0].mode == mode])
    by_mode = {mode: [p for p in judged if p[0].mode == mode] for mode in judge.mode}
    found: dict[str, Any] = {}
    if "reference" in by_mode:
        found["reference"] = reference_figures(by_mode["reference"], seed=config.recipe.seed)
    if "pairwise" in by_mode:
        found["pairwise"] = pairwise_figures(by_mode["pairwise"], identical)
    about = {"model": judge.model, "prompts": len(samples), "too_long": n_long}
    figures = JudgeResult(**about, against=judge.against, **found)
    key = _key(config, coordinator, judge)
    content = {"inputs": key, "figures": figures.model_dump(exclude_unset=True)}
    write_record(folder / "figures.json", content)
    return figures


def stored_figures(config: SharedConfig, coordinator: Coordinator) -> JudgeResult | None:
    """Figures of the last `clues judge`, if adapters, prompts and settings are still the same."""
    path = coordinator.folder / "judge" / "figures.json"
    if config.evaluate.judge is None or not path.exists():
        return None
    judge = settings_of(config, allow_private=True)
    advice = "Remove it, and run clues judge again."
    found = read_record(path, advice=advice)
    if found.get("inputs") != _key(config, coordinator, judge):
        return None
    try:
        # As JSON, where a list stands for a tuple.
        return JudgeResult.model_validate_json(json.dumps(found["figures"]))
    # What pydantic raises is a ValueError.
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path}: not readable. {advice}") from None


def _key(config: SharedConfig, coordinator: Coordinator, judge: JudgeSettings) -> str:
    file = _asked(config, judge)
    return hash_of(
        {
            "judge": judge.model_dump(mode="json", exclude=_NOT_ASKED | {"prompts"}),
            "prompts": file_hash(file.path),
            **file.how,
            "recipe": config.recipe.hash,
            "adapters": {arm: file_hash(coordinator.adapter_file(arm)) for arm in judge.arms},
        }
    )


def _fitting(coordinator: Coordinator, samples: Sequence[Sample]) -> tuple[list[Sample], int]:
    """Prompts that fit into the recipe's length; a cut prompt would be another one."""
    encoder = coordinator.desk.encoder
    limit = encoder.settings.max_length
    kept = [s for s in samples if len(encoder.encode_prompt(s)) <= limit]
    if not kept:
        raise DataError(
            f"evaluate.judge: none of {len(samples)} prompts fits into {limit} tokens. Raise "
            "recipe.tokens.max_length."
        )
    return kept, len(samples) - len(kept)


def _answers(
    coordinator: Coordinator, judge: JudgeSettings, arm: str, samples: Sequence[Sample]
) -> dict[int, str]:
    """What an arm's joint model says, from the disk where the same adapter has said it before."""
    from clues.evaluation.generation import generate  # torch takes seconds to import

    encoder, recipe = coordinator.desk.encoder, coordinator.recipe
    prompts = [encoder.encode_prompt(sample) for sample in samples]
    key = hash_of(
        {
            "model": recipe.model.files,
            "adapter": file_hash(coordinator.adapter_file(arm)),
            "dtype": recipe.model.dtype,
            "prompts": prompts,
            "max_tokens": judge.max_answer_tokens,
        }
    )
    path = coordinator.folder / "judge" / "answers" / f"{arm}-{key[:16]}.jsonl"
    if not path.exists():
        model, state = coordinator.joint(arm)
        with coordinator.desk.progress.task(f"coordinator: answer, {arm}", len(prompts)) as advance:
            said = generate(
                model,
                encoder.tokenizer,
                prompts,
                state,
                max_tokens=judge.max_answer_tokens,
                on_rows=advance,
            )
        rows = [{"row": s.row, "answer": text} for s, text in zip(samples, said, strict=True)]
        _write_lines(path, rows)
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        return {line["row"]: line["answer"] for line in map(json.loads, lines)}
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path}: not readable. Remove it, and it is written again.") from None


def _inquiries(
    judge: JudgeSettings, samples: Sequence[Sample], answers: Answers
) -> tuple[list[Inquiry], dict[str, int]]:
    """Everything to ask; and by arm how many pairs are identical, which nobody needs to ask."""
    found: list[Inquiry] = []
    others = [arm for arm in judge.arms if arm != judge.against]
    identical = dict.fromkeys(others, 0)
    for sample in samples:
        about = (sample.prompt, sample.response)
        if "reference" in judge.mode:
            for arm in judge.arms:
                text = answers[arm][sample.row]
                found.append(about_reference(sample.row, arm, *about, text))
        for arm in others if "pairwise" in judge.mode else ():
            pair = (answers[arm][sample.row], answers[judge.against][sample.row])
            if pair[0] == pair[1]:
                identical[arm] += 1
            else:
                found += about_pair(sample.row, arm, *about, pair)
    return found, identical


def _write_verdicts(path: Path, judged: Sequence[tuple[Inquiry, Verdict]]) -> None:
    """Numbers and names only; the judge's words stay in the folder of replies."""
    kept = ("row", "arm", "place")
    lines = [{**{k: getattr(i, k) for k in kept}, **asdict(verdict)} for i, verdict in judged]
    _write_lines(path, lines)


def _write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    make_folder(path.parent)
    # Escaped: a line separator inside a text must not end a line.
    text = "".join(json.dumps(line) + "\n" for line in lines)
    atomic_write_bytes(path, text.encode())
