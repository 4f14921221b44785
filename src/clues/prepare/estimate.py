"""How long a run will take on this machine, said before it begins."""

from clues.config import RunConfig
from clues.data.tokens import EncodedRow, encode_rows
from clues.pipeline import Run
from clues.prepare.checklist import Role, Source
from clues.prepare.cost import work_of
from clues.prepare.pace import measured_pace
from clues.scoring.cost import Size
from clues.silo.silo import Silo

DRAWN = 200  # rows that stand for a silo's
FEW_TOKENS = 20_000  # that many take no time worth a word


def minutes_ahead(run: Run, config: RunConfig) -> float:
    """Minutes that a run of silos on this machine takes from the beginning; 0 where that is next to nothing.

    A batch is timed, and the work counted, as `clues check` does.

    Raises:
        CluesError: model or rows cannot be used.
    """
    desk = run.coordinator.desk
    sizes: dict[Source, Size] = {}
    for domain in config.recipe.public:
        for name, rows in desk.validation(domain).items():
            sizes[Source(Role.VALIDATION, domain, name)] = Size.of(rows)
        sizes[Source(Role.ANCHORS, domain)] = Size.of(desk.anchors(domain))
        sizes[Source(Role.REJECTED, domain)] = sum(map(Size.of, desk.rejected(domain)), Size())
    drawn: list[EncodedRow] = []
    for name, silo in run.silos.items():
        some, times = _some_rows(silo, run)
        drawn += some
        sizes[Source(Role.SILO, name)] = Size.of(some).times(times)
    work = work_of(config, sizes)
    if not drawn or sum(stage.equivalents for stage in work.values()) < FEW_TOKENS:
        return 0.0
    pace = measured_pace(desk.model, drawn)
    return sum(pace.minutes(stage) for stage in work.values())


def _some_rows(silo: Silo, run: Run) -> tuple[list[EncodedRow], float]:
    """Every k-th row of a silo as tokens, and for how many each of them stands."""
    read = silo.space.rows()
    usable = [sample for sample in read.samples if sample.row not in read.unusable]
    step = max(1, len(usable) // DRAWN)
    some = usable[::step]
    encoder = run.coordinator.desk.encoder
    rows = encode_rows(some, encoder, where=f"silo {silo.settings.name}").rows
    return list(rows), len(usable) / len(some)
