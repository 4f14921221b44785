"""Verbs of one stage: train, score, threshold, select, merge, evaluate, judge."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from clues.cli.opening import again, program, run_stage, show, show_path
from clues.cli.options import Config, Degenerate, Json, Out, Quiet, SkipNonfinite, err, out
from clues.cli.whole import run
from clues.config import RunConfig, load_config
from clues.errors import UsageError
from clues.printable import rows_in_words


def train(config: Config, folder: Out = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """Train briefly on all rows; rows are scored with its checkpoints, it makes no model for use."""
    opened, _ = run_stage(config, folder, "train", quiet=quiet)
    show_path(opened.run_dir.root, "folder", as_json=as_json)


def score(
    config: Config,
    folder: Out = None,
    as_json: Json = False,
    skip_nonfinite: SkipNonfinite = False,
    quiet: Quiet = False,
) -> None:
    """Score every row; scores stay in each silo's private folder."""
    opened, _ = run_stage(config, folder, "score", quiet=quiet, skip_nonfinite=skip_nonfinite)
    places = {n: opened.run_dir.silo(n) / "private" / "scores.parquet" for n in opened.silos}
    if as_json:
        out.print_json(json.dumps({name: str(place) for name, place in places.items()}))
        return
    for place in places.values():
        out.print(place, highlight=False, soft_wrap=True)


def threshold(
    config: Config, folder: Out = None, as_json: Json = False, quiet: Quiet = False
) -> None:
    """Set the one threshold from the scores of the public anchors, and say what it promises."""
    opened, outcome = run_stage(config, folder, "threshold", quiet=quiet)
    found = outcome.threshold
    if as_json:
        out.print_json(json.dumps(found.to_json()))
        return
    from clues.report.pairs import rule_in_words

    interval = found.interval
    rule = rule_in_words(found.rule, opened.config.recipe.threshold.aim)
    text = f"{rule}: {found.value if found.value is not None else found.ratio:.4g}"
    if interval:
        text += f", {found.confidence:.0%} interval {interval[0]:.4g} to {interval[1]:.4g}"
    out.print(f"{text}, from {found.n_anchors} anchor scores", highlight=False)
    if found.assurance is not None:
        share = 1 - opened.config.recipe.threshold.quantile
        out.print(
            f"keeps at least {share:.0%} of a group's clean rows with probability "
            f"{found.assurance:.1%}, if they score like its anchors",
            highlight=False,
        )
    from clues.collect import kept_copies

    for group, kinds in kept_copies(found, outcome.scored).items():
        shares = ", ".join(f"{kind} {share:.0%}" for kind, share in kinds.items())
        text = f"{group}: of damaged copies of its anchors it would keep {shares}"
        out.print(text, highlight=False, soft_wrap=True)


def select(
    config: Config,
    folder: Out = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be kept; write nothing.")
    ] = False,
    at: Annotated[
        float | None, typer.Option("--threshold", help="With --dry-run: this threshold instead.")
    ] = None,
    overrides: Annotated[
        list[Path] | None,
        typer.Option(
            "--overrides",
            help="What a person decided against the score, as exported from a silo's private "
            "report. Once for each silo; it replaces what was in force there.",
        ),
    ] = None,
    as_json: Json = False,
    degenerate: Degenerate = False,
    quiet: Quiet = False,
) -> None:
    """Decide about every row and write kept and dropped rows in the format that came in.

    Overrides stay in the silo and in force for every later run under the same recipe.
    What would another threshold keep? clues select CLUES.YAML --dry-run --threshold -2
    """
    if at is not None and not dry_run:
        raise UsageError(
            "--threshold needs --dry-run: one silo's own number is no global threshold. To use "
            "a number for all, set recipe.threshold to rule: preset."
        )
    given = _overrides_by_silo(overrides or (), load_config(config))
    stage = "threshold" if dry_run or given else "select"
    opened, outcome = run_stage(
        config, folder, stage, quiet=quiet, degenerate=degenerate or dry_run
    )
    if dry_run:
        _print_what_if(opened, outcome.threshold, at, given, as_json=as_json)
        return
    if given:
        from clues.pipeline import overrule

        outcome = overrule(opened, given)
    counts = {}
    for name, silo in opened.silos.items():
        selection = silo.select(outcome.threshold)
        counts[name] = {
            "rows": len(selection.decisions),
            "kept": len(selection.kept),
            "by_hand": sum(d.by_hand for d in selection.decisions),
        }
    if as_json:
        out.print_json(json.dumps(counts))
        return
    for name, count in counts.items():
        share = count["kept"] / count["rows"]
        by_hand = (
            f", {rows_in_words(count['by_hand'])} decided by a person" if count["by_hand"] else ""
        )
        text = f"{name}: {count['kept']} of {count['rows']} kept ({share:.0%}){by_hand}"
        out.print(text, highlight=False)
    for name, overruled in given.items():
        _say_wish(name, overruled.wish, again(opened, config))
    for name in opened.silos:
        page = opened.run_dir.silo(name) / "private" / "report.html"
        out.print(f"{name}, private report: {page}", highlight=False)
    out.print(
        f"To train on these rows and measure: {program()} run {again(opened, config)}",
        highlight=False,
        soft_wrap=True,
    )


def _say_wish(name: str, wish: Any, run: str) -> None:
    """A wish puts nothing in force: say what it is, and how to look at it for all silos."""
    if wish is None:
        return
    out.print(
        f"{name}: a person wishes for threshold {wish.threshold:.4g} instead of "
        f"{wish.in_force:.4g}; it would keep {rows_in_words(wish.kept)} there instead of "
        f"{wish.kept_in_force}. For all silos: {program()} select {run} --dry-run --threshold "
        f"{wish.threshold:.4g}",
        highlight=False,
        soft_wrap=True,
    )


def _print_what_if(
    opened: Any, now: Any, at: float | None, given: Mapping[str, Any], *, as_json: bool
) -> None:
    """Say what would be kept, beside what is."""
    from clues.whatif import what_if

    tried = now if at is None else replace(now, value=at, ratio=None)
    found = what_if(opened, now, tried, given)
    if as_json:
        out.print_json(json.dumps({name: asdict(silo) for name, silo in found.items()}))
        return
    own = f"each silo's own, to keep {now.ratio:.0%}" if now.value is None else f"{now.value:.4g}"
    text = f"Threshold in force: {own} ({now.rule})."
    out.print(text if at is None else f"{text} Tried: {at:.4g}.", highlight=False)
    for name, silo in found.items():
        line = f"{name}: {silo.kept_now} of {silo.rows} kept ({silo.kept_now / silo.rows:.0%})"
        if silo.refused:
            line += f"; would be refused: {silo.refused}"
        elif at is not None or given:
            line += f"; would be {silo.kept} ({(silo.kept or 0) / silo.rows:.0%})"
            line += f": {rows_in_words(silo.more)} more, {silo.fewer} fewer"
        by_hand = f", {rows_in_words(silo.by_hand)} decided by a person" if silo.by_hand else ""
        out.print(line + by_hand, highlight=False, soft_wrap=True)
    out.print("Nothing was written.", style="dim", highlight=False)


def _overrides_by_silo(paths: Sequence[Path], config: RunConfig) -> dict[str, Any]:
    """Read exported files; each says whose it is."""
    from clues.silo.overrides import read_overrides

    found: dict[str, Any] = {}
    names = [silo.name for silo in config.silos]
    for path in paths:
        overrides = read_overrides(path)
        if overrides.silo not in names:
            raise UsageError(
                f"{path.name}: it is of silo {overrides.silo[:63]!r}, which this run does not "
                f"have. Its silos: {', '.join(names)}."
            )
        if overrides.silo in found:
            raise UsageError(
                f"{path.name}: a second file of silo {overrides.silo}. Each replaces what was in "
                "force, so give one."
            )
        found[overrides.silo] = overrides
    return found


def merge(
    config: Config,
    folder: Out = None,
    as_json: Json = False,
    degenerate: Degenerate = False,
    quiet: Quiet = False,
) -> None:
    """Train on the kept rows, federated or merged, and write the joint adapter.

    It goes to coordinator/adapter in the run's folder, and opens in PEFT.
    """
    opened, outcome = run_stage(config, folder, "select", quiet=quiet, degenerate=degenerate)
    opened.coordinator.fit("clues", outcome.selected)
    show_path(opened.run_dir.coordinator / "adapter", "adapter", as_json=as_json)


def evaluate(
    config: Config,
    folder: Out = None,
    as_json: Json = False,
    degenerate: Degenerate = False,
    quiet: Quiet = False,
) -> None:
    """Compare models trained on all rows, on random ones and on the selection; the same as run."""
    run(config, folder=folder, as_json=as_json, degenerate=degenerate, quiet=quiet)


def judge(
    config: Config,
    folder: Out = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how many calls and tokens; ask nothing.")
    ] = False,
    private: Annotated[
        bool,
        typer.Option("--allow-private-prompts", help="Send rows of evaluate.judge.prompts."),
    ] = False,
    as_json: Json = False,
    degenerate: Degenerate = False,
    quiet: Quiet = False,
) -> None:
    """Have a model behind an OpenAI-compatible endpoint judge the joint models' answers.

    Held-out prompts, their reference answers and the joint models' answers are sent to it.
    Replies are stored as they come: the same command goes on where it stopped.
    """
    settings = load_config(config)
    from clues.coordinator.judge import estimate, judge_run

    cost = estimate(settings, allow_private=private)
    if dry_run and as_json:
        out.print_json(json.dumps(asdict(cost)))
    said = (
        f"{cost.prompts} prompts, {cost.calls} calls without repairs and retries, at most about "
        f"{cost.tokens_in:,} tokens in and {cost.tokens_out:,} out; stored replies cost nothing."
    )
    if not (dry_run and as_json) and not (quiet and not dry_run):
        (out if dry_run else err).print(said, highlight=False, soft_wrap=True)
    if dry_run:
        return
    from clues.evaluation.judge.endpoint import check_endpoint

    assert settings.evaluate.judge is not None
    check_endpoint(settings.evaluate.judge)
    opened, outcome = run_stage(config, folder, "report", quiet=quiet, degenerate=degenerate)
    from clues.pipeline import write_results

    judge_run(opened.config, opened.coordinator, allow_private=private)
    show(write_results(opened, outcome), as_json=as_json)
