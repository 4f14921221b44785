"""The command line: verbs, and nothing else."""

import atexit
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from clues import __version__, cli_network
from clues.cli_calm import calm_libraries
from clues.config import RunConfig, load_config
from clues.errors import CluesError, UsageError
from clues.federation.ledger import Entry, compare, summary, verify
from clues.scaffold import Side

app = typer.Typer(
    help=(
        "Select good instruction rows across data owners, with one threshold for all.\n\n"
        "New here? clues demo shows everything on generated rows, clues init writes a "
        "configuration for your own files, clues check looks at it, clues run runs it."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    suggest_commands=False,  # click suggests already
    context_settings={"help_option_names": ["-h", "--help"]},
)
WHOLE, STAGE, AUDIT = "Whole runs", "One stage (what it needs runs first)", "Audit"
out, err = Console(), Console(stderr=True)

Config = Annotated[
    # click 8.5 hides the help of typer's arguments, so the name has to say it.
    Path,
    typer.Argument(metavar="CLUES.YAML", help="The run's configuration.", show_default=False),
]
Out = Annotated[Path | None, typer.Option("--out", help="The run's folder. Default: runs/NAME.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Degenerate = Annotated[
    bool,
    typer.Option("--allow-degenerate", help="Accept a selection that keeps nothing or everything."),
]
SkipNonfinite = Annotated[
    bool,
    typer.Option("--skip-nonfinite", help="Drop rows whose score is NaN or infinite, and say so."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]


def _open(
    config: RunConfig,
    folder: Path | None,
    *,
    quiet: bool,
    degenerate: bool = False,
    skip_nonfinite: bool = False,
) -> Any:
    from clues.federation.workers import finish, help_scoring, team_of_environment

    team, local_rank = team_of_environment()
    calm_libraries()
    root = folder or Path("runs") / config.name
    if team.rank > 0:
        help_scoring(root, team, local_rank=local_rank)
        raise typer.Exit
    if team.size > 1:
        atexit.register(finish, root)
    from clues.pipeline import open_run  # torch takes seconds to import
    from clues.progress import Silent, Terminal

    return open_run(
        config,
        root,
        progress=Silent() if quiet else Terminal(err),
        allow_degenerate=degenerate,
        skip_nonfinite=skip_nonfinite,
        team=team,
    )


def _stage(config: Path, folder: Path | None, stage: str, **how: bool) -> Any:
    run = _open(load_config(config), folder, **how)
    from clues.pipeline import run_until

    run_until(run, stage)
    return run


def _show(result: Any, *, as_json: bool) -> None:
    if as_json:
        out.print_json(json.dumps(result, allow_nan=False))
        return
    from clues.report.terminal import print_table

    print_table(result, out)


def _show_path(path: Path, what: str, *, as_json: bool) -> None:
    if as_json:
        out.print_json(json.dumps({what: str(path)}))
    else:
        out.print(path, highlight=False, soft_wrap=True)


@app.command(rich_help_panel=WHOLE)
def demo(
    folder: Annotated[Path, typer.Option("--out", help="Where data and run go.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(help="Of data, training and threshold.")] = 42,
    data_only: Annotated[
        bool, typer.Option("--data-only", help="Write the rows and the configuration, and stop.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the whole method on five generated silos; needs no network and no GPU.

    About six minutes on two cores. Data go to runs/demo/input, everything else beside them.
    """
    from clues.demo import write_demo

    path = write_demo(folder / "input", seed=seed)
    if data_only:
        _show_path(path, "config", as_json=as_json)
        return
    from clues.pipeline import run_until

    config = load_config(path)
    err.print(
        "Five silos, questions in two languages, 80 / 50 / 40 / 20 / 10 % of the rows damaged.",
        highlight=False,
    )
    run = _open(config, folder, quiet=quiet)
    _show(run_until(run), as_json=as_json)
    if not as_json:
        _say_where(run, path)


@app.command(rich_help_panel=WHOLE)
def init(
    path: Annotated[Path, typer.Argument(metavar="[CLUES.YAML]", show_default=False)] = Path(
        "clues.yaml"
    ),
    silos: Annotated[
        list[str] | None,
        typer.Option(
            "--silo",
            metavar="NAME=FILE",
            help="Private rows of one owner; once for each. NAME:DOMAIN=FILE where there are "
            "several domains.",
        ),
    ] = None,
    public: Annotated[
        list[str] | None,
        typer.Option(
            "--public",
            metavar="[DOMAIN=]FILE",
            help="Public rows of known quality, dealt at random into validation and anchor rows; "
            "or VALIDATION,ANCHOR. Once for each domain.",
        ),
    ] = None,
    heldout: Annotated[
        Path | None, typer.Option("--heldout", help="Public test rows to compare models on.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Base model: built-in, a folder or a hub name."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", help="Experiments: column that is empty where a row is good."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Of the run. Default: the folder's name.")
    ] = None,
    side: Annotated[
        Side,
        typer.Option(
            "--for",
            help="all: everything on this machine. coordinator: without silos. silo: one silo's "
            "file alone.",
        ),
    ] = "all",
    as_json: Json = False,
) -> None:
    """Write a commented configuration for your own files; asks for what no option says.

    CLUES.YAML is where to write it (default: clues.yaml); each silo's own file goes beside it. No
    file is overwritten. One silo alone gets a configuration that cleans its rows and trains no
    joint model. Without a terminal nothing is asked:

    clues init --silo hospital-a=rows.jsonl --public checked.jsonl
    """
    from clues.interview import Flags, answers_of
    from clues.scaffold import write_scaffold

    flags = Flags(path, side, name, silos or (), public or (), heldout, model, labels)
    written = write_scaffold(answers_of(flags, _ask if sys.stdin.isatty() else None))
    if as_json:
        out.print_json(json.dumps({"written": [str(file) for file in written]}))
        return
    for file in written:
        out.print(f"written: {file}", highlight=False, soft_wrap=True)
    if side == "all":
        out.print(f"Next: clues check {path}", highlight=False, soft_wrap=True)


def _ask(question: str, read: Callable[[str], Any], *, default: str = "") -> Any:
    """Ask on the terminal until the answer can be used."""

    def value(text: str) -> Any:
        try:
            return read(text.strip())
        except CluesError as error:
            raise typer.BadParameter(str(error)) from None

    return typer.prompt(question, default=default, show_default=bool(default), value_proc=value)


@app.command(rich_help_panel=WHOLE)
def run(
    config: Config,
    folder: Out = None,
    as_json: Json = False,
    degenerate: Degenerate = False,
    skip_nonfinite: SkipNonfinite = False,
    quiet: Quiet = False,
) -> None:
    """Run everything; a run that was interrupted goes on where it stopped."""
    how = {"degenerate": degenerate, "skip_nonfinite": skip_nonfinite}
    opened = _open(load_config(config), folder, quiet=quiet, **how)
    from clues.pipeline import run_until

    _show(run_until(opened), as_json=as_json)
    if not as_json:
        _say_where(opened, config)


def _say_where(opened: Any, config: Path) -> None:
    """Tell what to open next, and how to overrule rows."""
    from clues.report.terminal import print_next

    root = opened.run_dir.root
    print_next(root, list(opened.silos), out, program=_program(), arguments=_again(opened, config))


def _again(opened: Any, config: Path) -> str:
    """What to type after a verb to mean the same run."""
    root, usual = opened.run_dir.root, Path("runs") / opened.config.name
    return str(config) if root == usual else f"{config} --out {root}"


def _program() -> str:
    """This program as the user can type it: its name alone only where the shell finds it."""
    own = Path(sys.argv[0])
    found = shutil.which("clues")
    if found and Path(found).resolve() == own.resolve():
        return "clues"
    return os.path.relpath(own) if own.is_relative_to(Path.cwd()) else str(own)


@app.command(rich_help_panel=WHOLE)
def check(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="CLUES.YAML", help="The run's configuration.", show_default=False),
    ] = None,
    as_json: Json = False,
    rows: Annotated[int, typer.Option(help="Rows to show with their loss mask.", min=0)] = 2,
    federation: Annotated[
        str | None,
        typer.Option(
            "--federation",
            metavar="COORD.YAML|HOST:PORT",
            help="Instead: look at a coordinator's public address from outside, and say who "
            "answers there.",
        ),
    ] = None,
    ca: Annotated[
        Path | None, typer.Option("--ca", help="With --federation HOST:PORT: its authority.")
    ] = None,
) -> None:
    """Look at data, masks, lengths, overlaps and cost before anything heavy starts.

    Errors stop a run or make its figures worthless; notes may be meant. Rows are shown on this
    terminal only; --rows 0 shows none, and neither does --json.
    """
    if federation is not None:
        if config is not None:
            raise UsageError("give CLUES.YAML or --federation, not both.")
        cli_network.check_federation(federation, ca=ca, as_json=as_json)
        return
    if config is None:
        raise UsageError("name the run's configuration: clues check CLUES.YAML")
    settings = load_config(config)
    calm_libraries()
    from clues.check import check_run
    from clues.checklist import print_check

    found = check_run(settings, n_shown=0 if as_json else rows)
    if as_json:
        out.print_json(json.dumps(found.to_json()))
    else:
        print_check(found, out, command=f"clues run {config}")
    if found.errors:
        raise typer.Exit(3)


@app.command(rich_help_panel=STAGE)
def train(config: Config, folder: Out = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """Train briefly on all rows; rows are scored with its checkpoints, it makes no model for use."""
    opened = _stage(config, folder, "train", quiet=quiet)
    _show_path(opened.run_dir.root, "folder", as_json=as_json)


@app.command(rich_help_panel=STAGE)
def score(
    config: Config,
    folder: Out = None,
    as_json: Json = False,
    skip_nonfinite: SkipNonfinite = False,
    quiet: Quiet = False,
) -> None:
    """Score every row; scores stay in each silo's private folder."""
    opened = _stage(config, folder, "score", quiet=quiet, skip_nonfinite=skip_nonfinite)
    places = {n: opened.run_dir.silo(n) / "private" / "scores.parquet" for n in opened.silos}
    if as_json:
        out.print_json(json.dumps({name: str(place) for name, place in places.items()}))
        return
    for place in places.values():
        out.print(place, highlight=False, soft_wrap=True)


@app.command(rich_help_panel=STAGE)
def threshold(
    config: Config, folder: Out = None, as_json: Json = False, quiet: Quiet = False
) -> None:
    """Set the one threshold from the scores of the public anchors, and say what it promises."""
    opened = _stage(config, folder, "threshold", quiet=quiet)
    found = opened.coordinator.threshold()
    if as_json:
        out.print_json(json.dumps(found.to_json()))
        return
    interval = found.interval
    text = f"{found.rule}: {found.value if found.value is not None else found.ratio:.4g}"
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


@app.command(rich_help_panel=STAGE)
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
    opened = _stage(config, folder, stage, quiet=quiet, degenerate=degenerate or dry_run)
    if dry_run:
        _print_what_if(opened, at, given, as_json=as_json)
        return
    if given:
        from clues.pipeline import overrule

        overrule(opened, given)
    counts = {}
    for name, silo in opened.silos.items():
        selection = silo.select(opened.coordinator.threshold())
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
        by_hand = f", {count['by_hand']} rows decided by a person" if count["by_hand"] else ""
        text = f"{name}: {count['kept']} of {count['rows']} kept ({share:.0%}){by_hand}"
        out.print(text, highlight=False)
    for name in opened.silos:
        page = opened.run_dir.silo(name) / "private" / "report.html"
        out.print(f"{name}, private report: {page}", highlight=False)
    out.print(
        f"To train on these rows and measure: {_program()} run {_again(opened, config)}",
        highlight=False,
        soft_wrap=True,
    )


def _print_what_if(
    opened: Any, at: float | None, given: Mapping[str, Any], *, as_json: bool
) -> None:
    """Say what would be kept, beside what is."""
    from clues.whatif import what_if

    now = opened.coordinator.threshold()
    tried = now if at is None else replace(now, value=at, ratio=None)
    found = what_if(opened, tried, given)
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
            line += f": {silo.more} rows more, {silo.fewer} fewer"
        by_hand = f", {silo.by_hand} rows decided by a person" if silo.by_hand else ""
        out.print(line + by_hand, highlight=False, soft_wrap=True)
    out.print("Nothing was written.", style="dim", highlight=False)


def _overrides_by_silo(paths: Sequence[Path], config: RunConfig) -> dict[str, Any]:
    """Read exported files; each says whose it is."""
    from clues.federation.overrides import read_overrides

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


@app.command(rich_help_panel=STAGE)
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
    opened = _stage(config, folder, "select", quiet=quiet, degenerate=degenerate)
    opened.coordinator.fit("clues")
    _show_path(opened.run_dir.coordinator / "adapter", "adapter", as_json=as_json)


@app.command(rich_help_panel=STAGE)
def evaluate(
    config: Config,
    folder: Out = None,
    as_json: Json = False,
    degenerate: Degenerate = False,
    quiet: Quiet = False,
) -> None:
    """Compare models trained on all rows, on random ones and on the selection; the same as run."""
    run(config, folder, as_json, degenerate, quiet=quiet)


@app.command(rich_help_panel=STAGE)
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
    from clues.judging import estimate, judge_run

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
    from clues.evaluation.judge_endpoint import check_endpoint

    assert settings.evaluate.judge is not None
    check_endpoint(settings.evaluate.judge)
    opened = _stage(config, folder, "report", quiet=quiet, degenerate=degenerate)
    from clues.pipeline import write_results

    judge_run(opened.config, opened.coordinator, allow_private=private)
    _show(write_results(opened), as_json=as_json)


@app.command(rich_help_panel=WHOLE)
def report(config: Config, folder: Out = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """Write results.json, results.md, report.html and every silo's private report again."""
    opened = _stage(config, folder, "report", quiet=quiet)
    for silo in opened.silos.values():
        silo.write_review()
    _show_path(opened.run_dir.root / "report.html", "report", as_json=as_json)


@app.command(rich_help_panel=AUDIT)
def ledger(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN_FOLDER", help="The run's folder, or a ledger.")
    ],
    other: Annotated[
        Path | None,
        typer.Argument(metavar="OTHER_SIDE", help="With --verify: the other side's, to compare."),
    ] = None,
    check_chain: Annotated[
        bool, typer.Option("--verify", help="Only say whether the chain holds and both agree.")
    ] = False,
    every: Annotated[
        bool, typer.Option("--messages", help="List every message with its time and SHA-256.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what crossed the wall: by silo, direction and kind.

    RUN_FOLDER is a run's folder, such as runs/demo, or a ledger.jsonl. OTHER_SIDE is the same of
    the other side, which --verify compares with the first.
    """
    if other and not check_chain:
        raise UsageError("a second ledger is for --verify, which compares the two.")
    entries = verify(_ledger_file(folder))
    agreed = compare(entries, verify(_ledger_file(other))) if other else {}
    if as_json:
        found = {"messages": len(entries), "chain_holds": True}
        found |= {"both_sides": agreed} if other else {}
        listed = [asdict(entry) for entry in entries] if every else summary(entries)
        out.print_json(json.dumps(found if check_chain else listed))
        return
    for name, n in agreed.items():
        out.print(f"{name}: both sides have the same {n} messages.", highlight=False)
    if check_chain:
        out.print(f"{len(entries)} messages, the chain holds.", highlight=False)
        return
    _print_ledger(entries, every=every)


def _print_ledger(entries: Sequence[Entry], *, every: bool) -> None:
    for e in entries if every else ():
        line = f"{e.n:>5} {e.time} {e.silo:<20} {e.direction:<3} {e.kind:<15}"
        out.print(f"{line} {e.n_bytes:>11,} {e.sha256}", highlight=False, soft_wrap=True)
    for row in [] if every else summary(entries):
        line = f"{row['silo']:<20} {row['direction']:<4} {row['kind']:<16}"
        out.print(
            f"{line} {row['messages']:>5} messages {row['bytes']:>12,} bytes", highlight=False
        )
    out.print(
        "out: left the silo. in: came to it. The messages that left lie in silos/SILO/outbox.",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )


def _ledger_file(place: Path) -> Path:
    return place / "ledger.jsonl" if place.is_dir() else place


@app.command(rich_help_panel=AUDIT)
def approve(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="A silo's folder, or a run's for all in it."),
    ],
    as_json: Json = False,
) -> None:
    """Let a silo with `approval: true` select, after somebody has looked at its scores.

    FOLDER is a silo's folder, such as runs/demo/silos/harbor-bank, or a run's for all in it.
    """
    from clues.federation.permission import approve as approve_silos

    names = approve_silos(folder)
    if as_json:
        out.print_json(json.dumps({"approved": names}))
        return
    for name in names:
        out.print(f"{name}: approved for the scores as they are now.", highlight=False)


@app.command(rich_help_panel=WHOLE)
def experiment(
    name: Annotated[str, typer.Argument(help="Its name; --list shows all.")] = "",
    scale: Annotated[
        str, typer.Option(help="small (two cores) or real (GPUs and a hub).")
    ] = "small",
    seeds: Annotated[int, typer.Option(min=1, help="How many; 0, 1, 2 and so on.")] = 3,
    model: Annotated[
        str | None, typer.Option(help="Another base model: a folder or a hub name.")
    ] = None,
    data: Annotated[Path, typer.Option(help="Folder of the data files.")] = Path("data"),
    recipes: Annotated[Path, typer.Option(help="Folder of the experiments.")] = Path("experiments"),
    work: Annotated[Path, typer.Option(help="Where runs go, so that they can go on.")] = Path(
        "runs/experiments"
    ),
    show_list: Annotated[bool, typer.Option("--list", help="List the experiments.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Repeat one of the paper's tables, all arms and seeds; goes on where it stopped.

    NAME is one that --list shows. Figures go to the folder results of the experiment; make results
    puts them on the page of results.
    """
    from clues.experiment.spec import known_experiments, load_experiment

    if show_list or not name:
        for known in known_experiments(recipes):
            out.print(f"{known:<12} {load_experiment(known, recipes).title}", highlight=False)
        return
    spec = load_experiment(name, recipes)
    chosen = spec.scales.get(scale)  # pyright: ignore[reportArgumentType, reportCallIssue]
    if chosen is None:
        known = ", ".join(spec.scales)
        raise UsageError(f"experiment {name} has no scale {scale!r}; it has {known}.")
    calm_libraries()
    from clues.experiment.run import Plan, run_seed
    from clues.experiment.tables import experiment_tables
    from clues.progress import Silent, Terminal

    plan = Plan(name, chosen, scale, model, data, work / name, recipes / name / "results")
    err.print(f"{spec.title}. Cost: {chosen.cost}.", highlight=False)
    files = [
        run_seed(plan, seed, progress=Silent() if quiet else Terminal(err)) for seed in range(seeds)
    ]
    stored = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    if as_json:
        out.print_json(json.dumps(stored))
        return
    out.print("\n".join(experiment_tables(stored)), markup=False, highlight=False, soft_wrap=True)
    out.print(f"\nStored: {', '.join(str(f) for f in files)}", highlight=False, soft_wrap=True)


@app.command(rich_help_panel=AUDIT)
def version() -> None:
    """Print the version."""
    out.print(__version__, highlight=False)


app.command(rich_help_panel=cli_network.PANEL)(cli_network.serve)
app.command(rich_help_panel=cli_network.PANEL)(cli_network.join)
app.command(rich_help_panel=cli_network.PANEL)(cli_network.edge)
app.add_typer(cli_network.keys, name="keys", rich_help_panel=cli_network.PANEL)


def main() -> None:
    """Run a verb; a user's error becomes one message and an exit code."""
    try:
        app(prog_name="clues")
    except CluesError as error:
        err.print(f"clues: {error}", markup=False, highlight=False, style="red", soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        err.print("Interrupted. The same command goes on where it stopped.", highlight=False)
        sys.exit(130)


if __name__ == "__main__":
    main()
