"""From one file of rows to a clean file: a run of one silo with settings for the model at hand.

Everything stays on this machine. The run lies in the folder beside what comes out of it, and goes on
there when the same is asked for again.
"""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from clues.atomic import atomic_write_bytes, make_private_folder, read_bytes
from clues.config import BUILT_IN, RunConfig, load_config
from clues.data.files import named_container
from clues.data.formats import RowFile, read_rows, write_rows
from clues.data.roundtrip import characters_lost
from clues.findings.look import look
from clues.model.adapters import load_tokenizer
from clues.model.layers import suggested
from clues.pipeline import Run, open_run, overrule, run_until
from clues.prepare.athand import at_hand
from clues.prepare.modelfit import shape_of
from clues.prepare.scaffold import (
    ONE_DOMAIN,
    PublicAnswer,
    check_data,
    check_model,
    halves_of,
)
from clues.progress import Progress
from clues.report.pairs import weak_promise
from clues.selection.threshold import Threshold
from clues.silo.overrides import Override, Overrides

FILES = {"kept": "kept", "dropped": "set_aside", "unscored": "unscored"}
LOSSY = 0.01  # share of the characters from which a tokenizer is worth a word
FIRST = 20  # rows that a person reads first
CHECKED = "a checked row"
NAMES = {
    "score": "with a low score",
    "person": "by a person",
    "turn": "with a low turn",
    "not usable": "null or empty",
    "duplicate": "repeated",
    "near_duplicate": "nearly repeated",
    "html": "with HTML",
    "boilerplate": "with a page's frame",
    "mojibake": "with broken letters",
    "refusal": "refusals",
    "prompt_repeated": "repeating their question",
    "cut": "cut",
    "language": "in another language",
    "near_empty": "nearly empty",
}


@dataclass(frozen=True)
class Cleaned:
    """What came out.

    Attributes:
        n_rows: in the file.
        n_kept: of them.
        n_unscored: without a score, and nothing speaks against them.
        why: how many rows are set aside, by why.
        files: what was written.
        warnings: what makes the outcome worth less than it says.
        page: the report, where rows were scored.
    """

    n_rows: int
    n_kept: int
    n_unscored: int
    why: dict[str, int]
    files: tuple[Path, ...]
    warnings: tuple[str, ...] = field(default=())
    page: Path | None = None

    @property
    def sentence(self) -> str:
        """The outcome for a person."""
        aside = sum(self.why.values())
        said = ", ".join(f"{n:,} {NAMES.get(why, why)}" for why, n in self.why.items())
        text = f"{aside:,} of {self.n_rows:,} rows set aside" + (f": {said}" if said else "")
        if self.n_unscored:
            text += f"; {self.n_unscored:,} have no score and are in {self._named('unscored')}"
        first = f"; read these {FIRST} first: {self.page}" if self.page and aside else ""
        return f"{text}{first}."

    def _named(self, name: str) -> str:
        return next((p.name for p in self.files if p.name.startswith(name)), name)

    def to_json(self) -> dict[str, Any]:
        """Figures and places."""
        return {
            "rows": self.n_rows,
            "kept": self.n_kept,
            "set_aside": self.why,
            "unscored": self.n_unscored,
            "warnings": list(self.warnings),
            "files": [str(path) for path in self.files],
            "report": str(self.page) if self.page else None,
            "sentence": self.sentence,
        }


def clean_file(
    rows: str,
    checked: Path,
    out: Path,
    *,
    model: str = BUILT_IN,
    schema: str | None = None,
    progress: Progress,
) -> Cleaned:
    """Score the rows against checked ones, look at their text, and write what is kept.

    Args:
        rows: a file, a folder, or a hub data set.
        checked: rows that a person has found good.
        out: folder for the outcome and the run; private.
        model: base model.
        schema: which columns hold prompt and answer, where several schemas fit.
        progress: where long steps report to.

    Raises:
        CluesError: rows, checked rows or model cannot be used.
    """
    make_private_folder(out)
    config, warned = _configure(rows, checked, out / "run", model=model, schema=schema)
    run = open_run(
        config,
        out / "run",
        progress=progress,
        allow_degenerate=True,
        skip_nonfinite=True,
    )
    found = run_until(run, "threshold").threshold
    assert found is not None
    run_until(run, "select")
    (silo,) = run.silos.values()
    kept_by_hand = _checked_among(run, checked, found)
    if kept_by_hand is not None:
        overrule(run, {silo.settings.name: kept_by_hand})
    private = silo.private
    decided = list(csv.DictReader(io.StringIO(read_bytes(private / "decisions.csv").decode())))
    files = _copied(private, out, silo.space.rows())
    warned += (
        [said]
        if (said := weak_promise(found.as_result(quantile=config.recipe.threshold.quantile)))
        else []
    )
    return Cleaned(
        **_counts(decided), files=files, warnings=tuple(warned), page=out / "report.html"
    )


def clean_by_text(rows: str, out: Path, *, schema: str | None = None) -> Cleaned:
    """Without checked rows: set aside what a reader sees in the text, and score nothing.

    Raises:
        CluesError: the rows cannot be used.
    """
    make_private_folder(out)
    file = read_rows(rows, schema=schema, lenient=True)
    seen = look([sample for sample in file.samples if sample.row not in file.unusable])
    decided: list[dict[str, str]] = []
    for sample in file.samples:
        sure = next((f for f in seen.of(sample.row) if f.sure), None)
        if (why := file.unusable.get(sample.row)) is not None:
            fate = ("dropped", "not usable", why)
        elif sure:
            fate = ("dropped", sure.kind, f"{sure.says}, {sure.place}")
        else:
            fate = ("kept", "", "")
        kinds = " ".join(dict.fromkeys(f.kind for f in seen.of(sample.row)))
        row = (str(sample.row), str(sample.row + 1), sample.id, *fate, kinds)
        names = ("row", "number", "id", "file", "why", "reason", "findings")
        decided.append(dict(zip(names, row, strict=True)))
    places = {name: [int(d["row"]) for d in decided if d["file"] == name] for name in FILES}
    files = [write_rows(file, at, out / FILES[name]) for name, at in places.items() if at]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(decided[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(decided)
    atomic_write_bytes(out / "decisions.csv", buffer.getvalue().encode(), private=True)
    _remove_others(out, files)
    warned = (
        "no checked rows were given, so nothing was scored: wrong, cut and odd answers that read "
        "well are all kept. clues sample makes a page to check 150 rows, in a quarter of an hour."
    )
    return Cleaned(**_counts(decided), files=(*files, out / "decisions.csv"), warnings=(warned,))


def _configure(
    rows: str, checked: Path, folder: Path, *, model: str, schema: str | None
) -> tuple[RunConfig, list[str]]:
    """Write the run's configuration for the model at hand, and what there is to warn of."""
    file = check_data(rows, schema=schema) or read_rows(rows, schema=schema, lenient=True)
    model = model if check_model(model) == BUILT_IN else _place(model)
    hand = at_hand(model)
    make_private_folder(folder)
    public = halves_of(PublicAnswer(ONE_DOMAIN, checked, None), folder / "input")
    built_in = model == BUILT_IN
    targets = "all-linear" if built_in else suggested(shape_of(model))
    recipe = {
        "model": {"name": model, "dtype": hand.dtype},
        "lora": {"target_modules": targets, **({"dropout": 0.0} if built_in else {})},
        "tokens": {"max_length": hand.max_length, "overlong": "truncate", "odd_turns": "fold"},
        "train": {"learning_rate": 2e-3 if built_in else 2e-4, "batch_size": hand.batch_size},
        "public": {
            ONE_DOMAIN: {
                "validation": str(public.validation.resolve()),
                "anchor": str((public.anchor or public.validation).resolve()),
            }
        },
    }
    silo = {
        # Not the file's: that may be no name, and its order of rows would hang on it.
        "name": "rows",
        "data": str(Path(rows).resolve()) if Path(rows).exists() else rows,
        "domain": ONE_DOMAIN,
        "schema": schema,
        "findings": "set_aside",
        # Nothing leaves and nothing is trained on the kept rows: there is no number to guard.
        "min_kept": 1,
        "max_selections": 1_000_000,
    }
    content = {"name": "clean", "recipe": recipe, "evaluate": {"arms": []}, "silos": [silo]}
    path = folder / "clues.yaml"
    atomic_write_bytes(path, yaml.safe_dump(content, sort_keys=False).encode(), private=True)
    config = load_config(path)
    return config, _warnings(config, file, tight=hand.tight)


def _warnings(config: RunConfig, rows: RowFile, *, tight: bool) -> list[str]:
    model = config.recipe.model
    warned: list[str] = []
    if tight:
        warned.append(
            "the base model may not fit into the free memory, even with one row at a time. Close "
            "other programs, or take a smaller model."
        )
    if model.name == BUILT_IN:
        warned.append(
            "the built-in model is for trying things out, and judges only what it understands. Name "
            "your own with --model."
        )
    lost = characters_lost(load_tokenizer(model), rows.samples)
    if lost.share > LOSSY:
        signs = f", among them {' '.join(lost.signs)}" if lost.signs else ""
        warned.append(f"the tokenizer loses {lost.share:.0%} of the characters{signs}.")
    return warned


def _place(model: str) -> str:
    return str(Path(model).resolve()) if Path(model).exists() else model


def _checked_among(run: Run, checked: Path, found: Threshold) -> Overrides | None:
    """Checked rows that stand in the file itself: a person has found them good, so they are kept."""
    (silo,) = run.silos.values()
    known = {sample.id for sample in read_rows(checked).samples}
    table = silo.space.scores()
    both = sorted(known & set(table.id))
    if not both:
        return None
    return Overrides(
        silo=silo.settings.name,
        recipe_hash=found.recipe_hash,
        overrides=tuple(Override(id=id_, keep=True, reason=CHECKED) for id_ in both),
    )


def _copied(private: Path, out: Path, rows: RowFile) -> tuple[Path, ...]:
    """The outcome where a user looks for it."""
    files: list[Path] = []
    for name, new in FILES.items():
        source = private / f"{name}{rows.suffix}"
        if source.exists():
            files.append(out / f"{new}{rows.suffix}")
            atomic_write_bytes(files[-1], source.read_bytes(), private=True)
    for name in ("decisions.csv", "report.html"):
        files.append(out / name)
        atomic_write_bytes(files[-1], (private / name).read_bytes(), private=True)
    _remove_others(out, files)
    return tuple(files)


def _remove_others(out: Path, files: Sequence[Path]) -> None:
    """Of an earlier run: nobody should find two answers side by side."""
    for name in FILES.values():
        for old in out.glob(f"{name}.*"):
            if old not in files and named_container(old):
                old.unlink()


def _counts(decided: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    files = Counter(decision["file"] for decision in decided)
    why = Counter(decision["why"] for decision in decided if decision["file"] == "dropped")
    return {
        "n_rows": len(decided),
        "n_kept": files["kept"],
        "n_unscored": files["unscored"],
        "why": dict(why.most_common()),
    }
