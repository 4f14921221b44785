"""Rows of two other papers: dealt in small, as they are read with the authors' own template.

The question of both: which training rows are of the class of a test row? No row of theirs is in this
project; the folder that holds them is an argument.
"""

import gzip
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clues.config import derived_seed
from clues.data.damage import DAMAGE_KINDS, damage_rows
from clues.data.tokens import EncodedRow
from clues.errors import DataError
from clues.selection.units import MIN_ANCHORS

LIMIT = 128  # tokens of a row, as theirs
END = "</s>"  # written out at the end of DataInf's texts


@dataclass(frozen=True)
class OutsideSet:
    """One set, and how many of its rows are taken.

    Attributes:
        name: of the set, as results name it.
        source: folder of the paper.
        file: name of its files.
        train: training rows of every class; of each named class where classes differ.
        asked: how many classes are asked for.
        queries: test rows of each of them.
    """

    name: str
    source: str
    file: str
    train: int | Mapping[str, int]
    asked: int
    queries: int

    @property
    def left(self) -> bool:
        """Whether padding stands in front of the text, up to the limit; or behind the prompt."""
        return self.source == "failures"


# Those with stored or published figures first. The file of mixedM is that of mixedL.
SETS = (
    OutsideSet("grammars", "failures", "grammars", 3, 4, 3),
    OutsideSet("math", "failures", "math", 3, 4, 3),
    OutsideSet("mixedS", "failures", "mixedS", 15, 1, 12),
    OutsideSet("datainf-grammars", "datainf", "grammars", 3, 4, 3),
    OutsideSet("emotion", "failures", "emotion", 6, 4, 3),
    OutsideSet("datainf-math", "datainf", "math_without_reason", 3, 4, 3),
    OutsideSet("mixedL", "failures", "mixedL", {"harmful": 4, "benign": 36}, 1, 12),
    OutsideSet("datainf-math-reason", "datainf", "math_with_reason", 3, 4, 3),
    OutsideSet("backdoor", "failures", "backdoor", 12, 2, 6),
    OutsideSet("multibackdoor", "failures", "multibackdoor", 7, 4, 3),
    OutsideSet("multibackdoor5", "failures", "multibackdoor5", 5, 4, 3),
)


@dataclass(frozen=True)
class Text:
    """One row: what stands before the response, the response, and its class."""

    prompt: str = field(repr=False)
    response: str = field(repr=False)
    label: str


@dataclass(frozen=True)
class Dealt:
    """Rows of one draw; none is in two lists.

    Attributes:
        train: what the adapter is trained on, and what is scored.
        queries: test rows, each a question of its own.
        anchors: other test rows, of every class that is asked for the fewest that make a unit.
    """

    train: Sequence[Text]
    queries: Sequence[Text]
    anchors: Sequence[Text]


def read_texts(path: Path, source: str) -> list[Text]:
    """A file's rows under the authors' template.

    Raises:
        DataError: a row's text does not begin with its prompt.
    """
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    found: list[Text] = []
    for number, row in enumerate(rows):
        if source == "failures":
            prompt, response = f"[INST] {row['prompts']} [/INST] ", row["response"]
        else:
            prompt, text = row["prompt"], row["text"].removesuffix(END)
            if not text.startswith(prompt):
                raise DataError(
                    f"{path.name} line {number + 1}: the text does not begin with the prompt, so where "
                    "the response begins is not known. Take the files of DataInf as published."
                )
            response = text[len(prompt) :]
        found.append(Text(prompt, response, row["variation"]))
    return found


def deal(folder: Path, wanted: OutsideSet, *, seed: int) -> Dealt:
    """Draw a set's rows, class by class.

    Args:
        folder: holds the papers' folders.
        wanted: which set, and how many.
        seed: fixes which rows.

    Raises:
        DataError: a class has too few rows.
    """
    rng = random.Random(derived_seed(seed, "outside", wanted.name))
    where = folder / wanted.source
    train = _by_class(where / f"{wanted.file}.train.jsonl.gz", wanted.source, rng)
    test = _by_class(where / f"{wanted.file}.test.jsonl.gz", wanted.source, rng)
    rows: list[Text] = []
    for label, texts in train.items():
        n = wanted.train if isinstance(wanted.train, int) else wanted.train[label]
        rows += _first(texts, n, f"{wanted.name}, training rows of a class")
    queries: list[Text] = []
    anchors: list[Text] = []
    for label in rng.sample(sorted(test), wanted.asked):
        texts = test[label]
        taken = _first(texts, wanted.queries + MIN_ANCHORS, f"{wanted.name}, test rows of a class")
        queries += taken[: wanted.queries]
        anchors += taken[wanted.queries :]
    # Scores that tie keep the order of the rows, which must not be that of the classes.
    rng.shuffle(rows)
    return Dealt(rows, queries, anchors)


def _by_class(path: Path, source: str, rng: random.Random) -> dict[str, list[Text]]:
    found: dict[str, list[Text]] = {}
    for text in sorted(
        set(read_texts(path, source)), key=lambda t: (t.label, t.prompt, t.response)
    ):
        found.setdefault(text.label, []).append(text)
    for texts in found.values():
        rng.shuffle(texts)
    return found


def _first(texts: Sequence[Text], n: int, what: str) -> Sequence[Text]:
    if len(texts) < n:
        raise DataError(f"{what}: {len(texts)}, and {n} are needed. Take the files as published.")
    return texts[:n]


def damaged(
    anchors: Sequence[Text], foreign: Sequence[Text], *, seed: int
) -> tuple[list[Text], list[str]]:
    """One damaged copy of every anchor, and how it is damaged.

    Args:
        anchors: public rows.
        foreign: rows whose responses lend words to mix in.
        seed: fixes kinds and texts.
    """
    records = [{"instruction": text.prompt, "output": text.response} for text in anchors]
    copies, kinds = damage_rows(
        records,
        share=1.0,
        kinds=DAMAGE_KINDS,
        seed=derived_seed(seed, "outside", "copies"),
        foreign=[text.response for text in foreign],
    )
    texts = [
        Text(text.prompt, copy["output"], text.label)
        for text, copy in zip(anchors, copies, strict=True)
    ]
    return texts, [kind or "" for kind in kinds]


def encode(tokenizer: Any, texts: Sequence[Text], *, name: str) -> list[EncodedRow]:
    """Token ids, cut at the limit; the mask is that of the response.

    Raises:
        DataError: no token of a response is left.
    """
    rows: list[EncodedRow] = []
    for number, text in enumerate(texts):
        read = tokenizer(
            text.prompt + text.response,
            truncation=True,
            max_length=LIMIT,
            return_offsets_mapping=True,
        )
        start = len(text.prompt)
        mask = [end > start for _, end in read["offset_mapping"]]
        mask[0] = False  # nothing stands before it that could predict it
        if not any(mask):
            raise DataError(f"{name} row {number + 1}: no response is left at {LIMIT} tokens.")
        rows.append(EncodedRow(number, f"{name}-{number}", tuple(read["input_ids"]), tuple(mask)))
    return rows
