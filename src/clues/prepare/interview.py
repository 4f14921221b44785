"""Answers for a first configuration: from flags, and from a person for what no flag says."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from clues.config import BUILT_IN, Columns
from clues.errors import UsageError
from clues.prepare.scaffold import (
    ONE_DOMAIN,
    Answers,
    PublicAnswer,
    Side,
    SiloAnswer,
    check_model,
    check_name,
    public_answer,
    public_domain,
    silo_answer,
)

Value = TypeVar("Value")
EXAMPLE = "clues init --silo hospital-a=rows.jsonl --public checked.jsonl"
NO_CHECKED = (
    "No checked rows yet? clues sample ROWS.jsonl writes a page on which 150 of your rows are looked "
    "at in a quarter of an hour; it saves checked.json. Then call clues init again."
)


class Ask(Protocol):
    """Put a question to a person until `read` accepts the answer."""

    def __call__(self, question: str, read: Callable[[str], Value], *, default: str = "") -> Value:
        """Return what `read` makes of the answer; `read` refuses with a CluesError."""
        ...


@dataclass(frozen=True)
class Flags:
    """What stood on the command line; nothing is None or empty where it did not."""

    path: Path
    side: Side
    name: str | None
    silos: Sequence[str]
    public: Sequence[str]
    heldout: Path | None
    model: str | None
    labels: str | None
    columns: Columns | None = None
    address: str | None = None


def answers_of(flags: Flags, ask: Ask | None) -> Answers:
    """Put together what the flags say and what a person answers.

    Args:
        flags: of the command line.
        ask: how to ask; None where nobody can answer.

    Raises:
        UsageError: nobody can be asked, and something is missing; or a flag cannot be used.
    """
    # A person who has given flags wants no question but for what is missing.
    all_asked = ask if not (flags.silos or flags.public) else None
    silos = _silos(flags, ask)
    public = _public(flags, silos, ask)
    if flags.heldout and not flags.heldout.exists():
        raise UsageError(f"{flags.heldout}: there is no such file.")
    heldout, model = flags.heldout, flags.model
    if all_asked and flags.side != "silo":
        heldout = heldout or all_asked(
            "Public test rows to compare models on, or Enter for none", _file_or_none
        )
    if all_asked:
        model = model or all_asked(
            "Base model: built-in to try it out, a folder, or a hub name",
            check_model,
            default=BUILT_IN,
        )
    name = flags.name or flags.path.resolve().parent.name or "run"
    if flags.name is None and not name[0].isalnum():
        name = "run"
    return Answers(
        path=flags.path,
        side=flags.side,
        name=check_name(name.replace(" ", "-"), what="a run"),
        silos=silos,
        public=public,
        heldout=heldout,
        model=check_model(model or BUILT_IN),
        labels=flags.labels,
        columns=flags.columns,
        address=flags.address,
        expected=_expected(flags),
    )


def _expected(flags: Flags) -> tuple[str, ...]:
    """Names of the silos that will connect; of a coordinator alone."""
    if flags.address is None:
        return ()
    if flags.side == "all":
        raise UsageError(
            "--address is for silos on other machines: it goes with --for coordinator or --for silo."
        )
    if flags.side == "silo" and len(flags.silos) > 1:
        raise UsageError("--address goes with one silo: each has a machine and a key of its own.")
    if flags.side == "silo":
        return ()
    if not flags.silos:
        raise UsageError("--address: name everybody who will connect: --silo NAME, once for each.")
    names = [check_name(name, what="a silo") for name in flags.silos]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"two silos are called {twice[0]}.")
    return tuple(names)


def _silos(flags: Flags, ask: Ask | None) -> tuple[SiloAnswer, ...]:
    if flags.side == "coordinator":
        if flags.silos and flags.address is None:
            raise UsageError(
                "--for coordinator lists no silo: each keeps its own file. Write it there with "
                "--for silo. With --address HOST:PORT, --silo NAME says who will connect."
            )
        return ()
    named = [public_domain(text) for text in flags.public]
    domain = (named[0] if len(named) == 1 else None) or ONE_DOMAIN
    if flags.side == "silo" and any(":" not in text.partition("=")[0] for text in flags.silos):
        raise UsageError(
            "a silo's file names its domain, as the coordinator's recipe does: "
            "--silo NAME:DOMAIN=FILE."
        )
    if flags.silos:
        return tuple(
            silo_answer(text, domain=domain, columns=flags.columns) for text in flags.silos
        )
    if ask is None:
        raise UsageError(f"no silo is named, and nobody can be asked here. Try: {EXAMPLE}")
    return _asked_silos(ask, domain, flags)


def _asked_silos(ask: Ask, domain: str, flags: Flags) -> tuple[SiloAnswer, ...]:
    silos: list[SiloAnswer] = []
    question = "File with a silo's private rows (jsonl, json, csv, parquet, arrow)"
    read = partial(_silo_or_none, columns=flags.columns)
    while found := ask(question, partial(read, domain=domain, needed=not silos)):
        name = ask("Name of this silo", lambda text: _new_name(text, silos), default=found.name)
        domain = ask(
            "Domain of its rows: subject and language",
            lambda text: check_name(text, what="a domain"),
            default=found.domain,
        )
        silos.append(replace(found, name=name, domain=domain))
        if flags.side == "silo":
            break
        question = "File of another silo, or Enter for no more"
    return tuple(silos)


def _public(flags: Flags, silos: Sequence[SiloAnswer], ask: Ask | None) -> tuple[PublicAnswer, ...]:
    if flags.side == "silo":
        if flags.public:
            raise UsageError("--for silo takes no --public: public rows are the coordinator's.")
        return ()
    domains = list(dict.fromkeys(silo.domain for silo in silos)) or [ONE_DOMAIN]
    if flags.public:
        return tuple(
            public_answer(text, domain=domains[0], columns=flags.columns) for text in flags.public
        )
    if ask is None:
        raise UsageError(
            "no checked rows are named: rows that somebody has looked at and found good, in one file or "
            f"two. Try: {EXAMPLE}. {NO_CHECKED}"
        )
    if not silos:
        domains = ask("Domains, separated by spaces", _domains, default=ONE_DOMAIN)
    return tuple(_asked_public(ask, domain, flags.columns) for domain in domains)


def _asked_public(ask: Ask, domain: str, columns: Columns | None) -> PublicAnswer:
    answer = ask(
        f"Checked rows for {domain}, that somebody has found good: a file (it is split in two), or "
        "VALIDATION,ANCHOR; Enter if there are none",
        lambda text: public_answer(text, domain=domain, columns=columns) if text else None,
    )
    if answer is None:
        # Asking again would not make them.
        raise UsageError(NO_CHECKED)
    return answer


def _silo_or_none(
    text: str, domain: str, *, needed: bool, columns: Columns | None
) -> SiloAnswer | None:
    return silo_answer(text, domain=domain, columns=columns) if text or needed else None


def _new_name(text: str, silos: Sequence[SiloAnswer]) -> str:
    if text in {silo.name for silo in silos}:
        raise UsageError(f"a silo is called {text} already.")
    return check_name(text, what="a silo")


def _domains(text: str) -> list[str]:
    return [check_name(name, what="a domain") for name in text.split()]


def _file_or_none(text: str) -> Path | None:
    if text and not Path(text).is_file():
        raise UsageError(f"{text}: there is no such file.")
    return Path(text) if text else None
