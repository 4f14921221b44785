"""Questions and prose about well known facts, written from the tables in `assets/facts`.

The offline demo needs rows whose truth is known. A table holds relations (drug -> class,
country -> capital); each relation holds, per language, facts and sentence templates.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

DOMAINS: dict[str, tuple[str, ...]] = {
    "medicine": ("en", "es"),
    "finance": ("en",),
    "geography": ("en", "es"),
}

N_CHOICES = 4


@dataclass(frozen=True)
class Fact:
    """One true statement: `value` stands in `relation` to `subject`."""

    domain: str
    language: str
    relation: str
    subject: str
    value: str

    @property
    def id(self) -> str:
        """A string that names this fact in every run, such as `geography/en/capital/France`."""
        return f"{self.domain}/{self.language}/{self.relation}/{self.subject}"


@dataclass(frozen=True)
class _Relation:
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    prose: tuple[str, ...]
    related: tuple[frozenset[str], ...]  # values too close to be each other's wrong choice
    facts: tuple[Fact, ...]


def load_facts(domain: str, *, language: str) -> tuple[Fact, ...]:
    """Read every fact of one domain, in table order.

    Args:
        domain: a key of `DOMAINS`.
        language: one of `DOMAINS[domain]`.

    Returns:
        The facts; subjects and values carry their article where the language needs one.

    Raises:
        ValueError: there is no table for this domain and language.
    """
    return tuple(fact for relation in _relations(domain, language) for fact in relation.facts)


def make_questions(domain: str, *, language: str, seed: int) -> list[dict]:
    """Write every question about a domain: each fact with each question template.

    The seed fixes only the order. Wording and wrong choices depend on the fact and the
    question template alone, so a question reads the same under every seed.

    Args:
        domain: a key of `DOMAINS`.
        language: one of `DOMAINS[domain]`.
        seed: fixes the order of the rows.

    Returns:
        Rows with `instruction`, `output`, `choices` (four full answers that differ only in
        the value), `answer` (index of the right choice), `domain`, `language`, `relation`
        and `fact` (the fact's id).

    Raises:
        ValueError: there is no table for this domain and language.
    """
    rows = [
        _question_row(relation, i_fact, i_question)
        for relation in _relations(domain, language)
        for i_fact in range(len(relation.facts))
        for i_question in range(len(relation.questions))
    ]
    random.Random(seed).shuffle(rows)
    return rows


def make_prose(domain: str, *, language: str, seed: int, n_paragraphs: int) -> Iterator[str]:
    """Write paragraphs of 3 to 8 statements, for pretraining; never a question.

    Paragraphs alternate at random between facts of one relation and all facts of a few
    subjects. Subjects are dealt from a shuffled deck, so every fact comes back regularly.

    Args:
        domain: a key of `DOMAINS`.
        language: one of `DOMAINS[domain]`.
        seed: fixes everything that is drawn.
        n_paragraphs: how many paragraphs to write.

    Yields:
        One paragraph, without a line break.

    Raises:
        ValueError: there is no table for this domain and language.
    """
    rng = random.Random(seed)
    relations = _relations(domain, language)
    by_subject: dict[str, list[tuple[_Relation, Fact]]] = {}
    for relation in relations:
        for fact in relation.facts:
            by_subject.setdefault(fact.subject, []).append((relation, fact))
    n_facts = [len(relation.facts) for relation in relations]
    deck: list[str] = []
    for _ in range(n_paragraphs):
        drawn: list[tuple[_Relation, Fact]] = []
        if rng.random() < 0.5:
            relation = rng.choices(relations, weights=n_facts)[0]
            n_sentences = min(rng.randint(3, 8), len(relation.facts))
            drawn = [(relation, fact) for fact in rng.sample(relation.facts, n_sentences)]
        else:
            # at most 5 + 3 sentences, because no subject has more than three facts
            n_least = rng.randint(3, 6)
            while len(drawn) < n_least:
                if not deck:
                    deck = rng.sample(sorted(by_subject), len(by_subject))
                facts = by_subject[deck.pop()]
                drawn.extend(rng.sample(facts, len(facts)))
        yield " ".join(_render(rng.choice(rel.prose), fact, fact.value) for rel, fact in drawn)


def make_entries(domain: str, *, language: str, seed: int, n_pages: int) -> Iterator[str]:
    """Write glossary pages for pretraining: a heading word, then statements about it.

    Args:
        domain: a key of `DOMAINS`.
        language: one of `DOMAINS[domain]`.
        seed: fixes everything that is drawn.
        n_pages: how many pages to write.

    Yields:
        One page of 5 entries, a line each.

    Raises:
        ValueError: there is no table for this domain and language.
    """
    rng = random.Random(seed)
    drawn = [(rel, fact) for rel in _relations(domain, language) for fact in rel.facts]
    for _ in range(n_pages):
        lines = []
        for relation, fact in rng.sample(drawn, 5):
            sentence = _render(rng.choice(relation.prose), fact, fact.value)
            lines.append(f"{_render('{s}', fact, '')}\n{sentence}")
        yield "\n\n".join(lines)


def _question_row(relation: _Relation, i_fact: int, i_question: int) -> dict:
    fact = relation.facts[i_fact]
    template = relation.answers[(i_fact + i_question) % len(relation.answers)]
    rng = random.Random(f"{fact.id}#{i_question}")
    close = {fact.value}.union(*(group for group in relation.related if fact.value in group))
    wrong = sorted({other.value for other in relation.facts} - close)
    values = [fact.value, *rng.sample(wrong, N_CHOICES - 1)]
    rng.shuffle(values)
    choices = [_render(template, fact, value) for value in values]
    answer = values.index(fact.value)
    return {
        "instruction": _render(relation.questions[i_question], fact, ""),
        "output": choices[answer],
        "choices": choices,
        "answer": answer,
        "domain": fact.domain,
        "language": fact.language,
        "relation": fact.relation,
        "fact": fact.id,
    }


def _render(template: str, fact: Fact, value: str) -> str:
    """Fill a template, contract Spanish `de el` to `del`, and start with a capital."""
    text = template.format(s=fact.subject, v=value)
    if fact.language == "es":
        text = text.replace(" de el ", " del ")
    first = next(i for i, character in enumerate(text) if character.isalnum())
    return text[:first] + text[first].upper() + text[first + 1 :]


def _relations(domain: str, language: str) -> tuple[_Relation, ...]:
    if language not in DOMAINS.get(domain, ()):
        known = ", ".join(f"{name} ({'/'.join(DOMAINS[name])})" for name in DOMAINS)
        raise ValueError(f"no fact table for {domain!r} in {language!r}. There are: {known}.")
    path = files("clues") / "assets" / "facts" / f"{domain}.json"
    table = json.loads(path.read_text(encoding="utf-8"))
    relations = []
    for entry in table["relations"]:
        part = entry["languages"][language]
        relations.append(
            _Relation(
                questions=tuple(part["questions"]),
                answers=tuple(part["answers"]),
                prose=tuple(part["prose"]),
                related=tuple(frozenset(group) for group in part["related"]),
                facts=tuple(Fact(domain, language, entry["name"], s, v) for s, v in part["facts"]),
            )
        )
    return tuple(relations)
