"""The fact tables are complete, and what is written from them is true and repeatable."""

import json
import re
from importlib.resources import files

import pytest

from clues.prepare.facts import DOMAINS, N_CHOICES, load_facts, make_prose, make_questions

PAIRS = [(domain, language) for domain, languages in DOMAINS.items() for language in languages]
every_table = pytest.mark.parametrize(("domain", "language"), PAIRS)


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_relation_has_exactly_the_languages_of_its_domain(domain):
    table = json.loads((files("clues") / f"assets/facts/{domain}.json").read_text("utf-8"))
    for relation in table["relations"]:
        assert tuple(relation["languages"]) == DOMAINS[domain], relation["name"]
        for part in relation["languages"].values():
            assert len(set(part["questions"])) == 4, relation["name"]
            assert len(set(part["answers"])) == 2, relation["name"]
            assert len(set(part["prose"])) in (5, 6), relation["name"]
            assert not set(part["answers"]) & set(part["prose"]), "prose repeats an answer"
            for template in part["questions"]:
                assert re.findall(r"{\w*}", template) == ["{s}"], template
            for template in part["answers"] + part["prose"]:
                assert sorted(re.findall(r"{\w*}", template)) == ["{s}", "{v}"], template


@every_table
def test_facts_have_no_duplicates_and_no_stray_space(domain, language):
    facts = load_facts(domain, language=language)
    assert len({fact.id for fact in facts}) == len(facts)
    for fact in facts:
        assert fact.subject == fact.subject.strip() != ""
        assert fact.value == fact.value.strip() != ""
        assert len(fact.value.split()) <= 14


@every_table
def test_there_are_enough_questions_and_none_is_asked_twice(domain, language):
    rows = make_questions(domain, language=language, seed=0)
    assert len(rows) == 4 * len(load_facts(domain, language=language))
    assert len(rows) >= 900
    assert len({row["instruction"] for row in rows}) == len(rows)


@every_table
def test_the_output_is_the_choice_at_answer_and_the_other_choices_are_wrong(domain, language):
    fact_of = {fact.id: fact for fact in load_facts(domain, language=language)}
    for row in make_questions(domain, language=language, seed=0):
        fact = fact_of[row["fact"]]
        assert len(set(row["choices"])) == len(row["choices"]) == N_CHOICES
        assert row["choices"][row["answer"]] == row["output"]
        assert fact.value.lower() in row["output"].lower(), row["output"]
        for choice in row["choices"]:
            assert fact.subject.lower() in choice.lower(), choice
        assert (row["domain"], row["language"]) == (domain, language)
        assert row["relation"] == fact.relation


@every_table
def test_every_placeholder_is_filled_and_sentences_are_well_formed(domain, language):
    rows = make_questions(domain, language=language, seed=0)
    texts = [text for row in rows for text in (row["instruction"], *row["choices"])]
    texts.extend(make_prose(domain, language=language, seed=0, n_paragraphs=500))
    for text in texts:
        assert not re.search(r"[{}]|  | [.,?]|\n", text), text
        assert text.rstrip()[-1] in ".?", text
        assert text.lstrip("\u00bf")[0].isupper() or text.lstrip("\u00bf")[0].isdigit(), text
        if language == "es":
            assert not re.search(r"\b(de|a) el ", text), text


@every_table
def test_the_seed_fixes_the_rows_and_only_their_order(domain, language):
    rows = make_questions(domain, language=language, seed=3)
    assert make_questions(domain, language=language, seed=3) == rows
    other = make_questions(domain, language=language, seed=4)
    assert other != rows
    assert sorted(map(str, other)) == sorted(map(str, rows)), "a seed changed a question"


@every_table
def test_the_right_choice_stands_in_every_position(domain, language):
    rows = make_questions(domain, language=language, seed=0)
    for position in range(N_CHOICES):
        share = sum(row["answer"] == position for row in rows) / len(rows)
        assert 0.2 < share < 0.3, "the position gives the answer away"


@every_table
def test_prose_is_3_to_8_statements_and_repeatable(domain, language):
    def paragraphs(seed: int) -> list[str]:
        return list(make_prose(domain, language=language, seed=seed, n_paragraphs=300))

    assert paragraphs(1) == paragraphs(1) != paragraphs(2)
    for paragraph in paragraphs(1):
        assert 3 <= len(re.findall(r"\.(?: |$)", paragraph)) <= 8, paragraph
        assert "?" not in paragraph


@every_table
def test_prose_tells_every_fact(domain, language):
    text = " ".join(make_prose(domain, language=language, seed=0, n_paragraphs=1500)).lower()
    sentences = text.split(". ")
    for fact in load_facts(domain, language=language):
        subject, value = fact.subject.lower(), fact.value.lower()
        assert any(subject in s and value in s for s in sentences), fact.id


@every_table
def test_prose_never_repeats_an_answer_sentence(domain, language):
    answers = {row["output"] for row in make_questions(domain, language=language, seed=0)}
    for paragraph in make_prose(domain, language=language, seed=0, n_paragraphs=1500):
        sentences = {f"{s.rstrip('.')}." for s in paragraph.split(". ")}
        assert not sentences & answers


def test_an_unknown_domain_or_language_is_refused():
    with pytest.raises(ValueError, match="There are: medicine"):
        load_facts("law", language="en")
    with pytest.raises(ValueError, match="no fact table for 'finance' in 'es'"):
        make_questions("finance", language="es", seed=0)
    with pytest.raises(ValueError, match="no fact table"):
        next(make_prose("finance", language="es", seed=0, n_paragraphs=1))
