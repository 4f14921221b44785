"""Documents that a base model is pretrained on, by source, with a held-out part of each."""

import gzip
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from clues.prepare.facts import DOMAINS, make_entries, make_prose
from experiments.reserved import is_reserved

HELD_OUT_EVERY = 100
CORPORA = {
    "medquad": "medquad_nih_health_text_en.txt.gz",
    "anatomy": "openstax_anatomy_physiology_en.txt.gz",
    "finance": "openstax_principles_finance_en.txt.gz",
    "tico-en": "tico19_covid_en.txt.gz",
    "tico-es": "tico19_covid_es.txt.gz",
    "tico-fr": "tico19_covid_fr.txt.gz",
    "tico-ru": "tico19_covid_ru.txt.gz",
    "tico-zh": "tico19_covid_zh.txt.gz",
}
LINES_PER_DOCUMENT = {"medquad": 1, "anatomy": 8, "finance": 8}


@dataclass(frozen=True)
class Document:
    """A piece of text that stands alone; `held_out` documents are for measuring only."""

    source: str
    text: str
    held_out: bool


def corpus_documents(source: str, path: Path) -> Iterator[Document]:
    """Yield the documents of one corpus file; reserved MedQuAD questions are all held out."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = [line.strip() for line in file if line.strip()]
    size = LINES_PER_DOCUMENT.get(source, 12)
    for number, start in enumerate(range(0, len(lines), size)):
        text = "\n".join(lines[start : start + size])
        held_out = number % HELD_OUT_EVERY == 0
        if source == "medquad":
            question = text[: text.find("?") + 1]
            held_out = is_reserved(question)
        yield Document(source, text, held_out)


def generated_documents(*, seed: int, n_paragraphs: int) -> Iterator[Document]:
    """Yield paragraphs and glossary pages from the fact tables, never questions and answers."""
    for domain, languages in DOMAINS.items():
        for language in languages:
            paragraphs = make_prose(domain, language=language, seed=seed, n_paragraphs=n_paragraphs)
            # Pages teach a model to speak about the word that heads an entry.
            pages = make_entries(domain, language=language, seed=seed, n_pages=n_paragraphs // 2)
            for number, text in enumerate(chain(paragraphs, pages)):
                yield Document(f"facts-{domain}-{language}", text, number % HELD_OUT_EVERY == 0)


def all_documents(corpus: Path, *, seed: int, n_paragraphs: int) -> list[Document]:
    """Return every document in an order that depends on the seed alone.

    Raises:
        FileNotFoundError: a corpus file is missing from `corpus`.
    """
    documents: list[Document] = []
    for source, name in CORPORA.items():
        documents += corpus_documents(source, corpus / name)
    documents += generated_documents(seed=seed, n_paragraphs=n_paragraphs)
    random.Random(seed).shuffle(documents)
    return documents
