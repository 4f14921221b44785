"""A whole run in order, resumable; what is finished is not done again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from clues.atomic import atomic_write_bytes, close_to_others, make_folder, make_private_folder
from clues.carriers.local import LocalTransport
from clues.collect import arms_of, collect_results
from clues.config import RunConfig, SharedConfig, SiloSettings, dump_yaml
from clues.config.loading import local_folder, with_files
from clues.coordinator.coordinator import Coordinator
from clues.coordinator.outcomes import Outcome
from clues.data.rowskey import make_rows_key
from clues.errors import UsageError
from clues.evaluation.choice import Measured
from clues.evaluation.tasks import Answers
from clues.model.cache import ModelCache
from clues.progress import Progress
from clues.report.cards import adapter_card
from clues.report.shared import render_html, render_markdown
from clues.results.run import Results
from clues.rundir import RunDir, write_json
from clues.scoring.shards import Team
from clues.silo.overrides import Overrides
from clues.silo.silo import Silo
from clues.wall.ledger import Ledger, summary, verify
from clues.wall.transport import Transport

STAGES = (
    *("hello", "duplicates", "train", "score", "threshold", "select", "fit", "measure"),
    "report",
)


@dataclass(frozen=True)
class Run:
    """A run under way: both sides of the wall, or the coordinator alone with no silo here.

    Attributes:
        config: of the run.
        run_dir: its folder.
        coordinator: the public side.
        silos: those that are here, by name.
        skip_nonfinite: drop rows whose score is not finite, with that reason, and go on.
    """

    config: SharedConfig
    run_dir: RunDir
    coordinator: Coordinator
    silos: dict[str, Silo]
    skip_nonfinite: bool = False


def open_run(
    config: RunConfig,
    root: Path,
    *,
    progress: Progress,
    allow_degenerate: bool = False,
    skip_nonfinite: bool = False,
    team: Team | None = None,
    cache: ModelCache | None = None,
) -> Run:
    """Create or continue a run's folder and set up both sides.

    Raises:
        LedgerError: the folder's ledger is broken.
    """
    run_dir = RunDir(root)
    for settings in config.silos:
        make_folder(run_dir.silo(settings.name))
    cache = cache or ModelCache()
    silos = {
        settings.name: Silo(
            settings,
            run_dir.silo(settings.name),
            load_model=partial(cache.load, device=(settings.compute or config.compute).device),
            progress=progress,
            allow_degenerate=allow_degenerate,
            one_owner=True,
            team=team,
            identify=cache.identify,
        )
        for settings in _with_keys(config, run_dir)
    }
    answers = {name: silo.answer for name, silo in silos.items()}
    transport = LocalTransport(answers, Ledger(run_dir.ledger))
    how = {"progress": progress, "cache": cache, "device": config.compute.device}
    run = open_coordinator(config, root, transport=transport, **how)
    return replace(run, silos=silos, skip_nonfinite=skip_nonfinite)


def _with_keys(config: RunConfig, run_dir: RunDir) -> Sequence[SiloSettings]:
    """The silos' settings; where none names the key that hides questions, the run makes one."""
    if config.recipe.duplicates is None or any(silo.duplicates_key for silo in config.silos):
        return config.silos
    if not run_dir.rows_key.exists():
        make_rows_key(run_dir.rows_key)
    key = {"duplicates_key": str(run_dir.rows_key)}
    return [silo.model_copy(update=key) for silo in config.silos]


def open_coordinator(
    config: SharedConfig,
    root: Path,
    *,
    transport: Transport,
    progress: Progress,
    cache: ModelCache | None = None,
    device: str = "auto",
) -> Run:
    """Set up the coordinator's side alone; the silos are where the transport leads."""
    run_dir, cache = RunDir(root), cache or ModelCache()
    config = identified(config, cache)
    # Silos' adapters lie in it: not for other users of this machine.
    make_private_folder(run_dir.coordinator)
    close_to_others(run_dir.coordinator)
    make_folder(run_dir.coordinator / "stages")
    atomic_write_bytes(root / "config.resolved.yaml", dump_yaml(config).encode())
    coordinator = Coordinator(
        config.recipe,
        config.combine,
        config.evaluate,
        run_dir.coordinator,
        transport=transport,
        load_model=partial(cache.load, device=device),
        progress=progress,
        federation=config.federation,
    )
    return Run(config, run_dir, coordinator, {})


def identified(config: SharedConfig, cache: ModelCache) -> SharedConfig:
    """The configuration with the hashes of the base model's files; a hub model is fetched for it.

    Raises:
        DataError: the model cannot be had.
        ConfigError: it is not the one that the configuration names.
    """
    model = config.recipe.model
    if model.files and local_folder(model.name) is not None:
        return config
    model = with_files(model, cache.fetched(model))
    recipe = config.recipe.model_copy(update={"model": model})
    return config.model_copy(update={"recipe": recipe})


def run_until(run: Run, stage: str = "report") -> Outcome:
    """Run all stages up to this one, each on what the one before it found.

    Raises:
        CluesError: a stage cannot be finished; those before it stay finished.
    """
    if stage not in STAGES:
        raise UsageError(f"there is no stage {stage!r}. Stages: {', '.join(STAGES)}.")
    outcome = _public_stages(run, last=STAGES.index(stage))
    for silo in run.silos.values():
        silo.clean_scratch()
    if stage != "report":
        return outcome
    return replace(outcome, results=write_results(run, outcome))


def _public_stages(run: Run, *, last: int) -> Outcome:
    """The order of the stages; nowhere else is it written."""
    coordinator, outcome = run.coordinator, Outcome()

    def reached(stage: str) -> bool:
        return STAGES.index(stage) <= last

    coordinator.hello()
    if not reached("duplicates"):
        return outcome
    coordinator.duplicates()
    if not reached("train"):
        return outcome
    trained = coordinator.train()
    outcome = replace(outcome, trained=trained)
    if not reached("score"):
        return outcome
    scored = coordinator.score(trained)
    outcome = replace(outcome, scored=scored)
    # Who was left out has not scored.
    for name in () if run.skip_nonfinite else sorted(run.silos.keys() & coordinator.silos):
        run.silos[name].refuse_nonfinite()
    if not reached("threshold"):
        return outcome
    threshold = coordinator.threshold(scored)
    outcome = replace(outcome, threshold=threshold)
    if not reached("select"):
        return outcome
    selected = coordinator.select(threshold)
    outcome = replace(outcome, selected=selected)
    if not reached("fit"):
        return outcome
    fitted = {arm: coordinator.fit(arm, selected) for arm in arms_of(run.config)}
    outcome = replace(outcome, fitted=fitted)
    if not reached("measure"):
        return outcome
    measured: dict[str, Measured] = {}
    answers: dict[str, Mapping[str, Answers]] = {}
    for arm, adapter in fitted.items():
        measured[arm] = coordinator.measure(adapter)
        answers[arm] = coordinator.answers(adapter)
    return replace(outcome, measured=measured, answers=answers)


def overrule(run: Run, overrides: Mapping[str, Overrides]) -> Outcome:
    """Put persons' decisions in force, all or none, and select again.

    Raises:
        CluesError: some do not fit; then none is in force.
    """
    threshold = run_until(run, "threshold").threshold
    assert threshold is not None
    for name, decided in overrides.items():
        run.silos[name].select(threshold, decided)
    for name, decided in overrides.items():
        run.silos[name].overrule(decided, threshold)
    # Through hello the coordinator learns that a silo will answer anew.
    return run_until(run, "select")


def write_results(run: Run, outcome: Outcome) -> Results:
    """Write results.json, results.md, report.html, the adapter's card and the manifest."""
    results = collect_results(run.config, run.coordinator, outcome)
    root = run.run_dir.root
    results.write(root / "results.json")
    atomic_write_bytes(root / "results.md", render_markdown(results).encode())
    page = render_html(results, ledger_summary=summary(verify(run.run_dir.ledger)))
    atomic_write_bytes(root / "report.html", page.encode())
    adapter = run.run_dir.coordinator / "adapter"
    if adapter.exists():
        card = adapter_card(results, license=run.config.license)
        atomic_write_bytes(adapter / "README.md", card.encode())
    keys = {"name", "date", "machine", "base_model", "recipe_hash", "seeds", "versions"}
    write_json(root / "manifest.json", results.model_dump(include=keys))
    return results
