"""What a reader sees in a row: every kind is found, named with its place, and clean rows are left alone."""

import pytest

from clues.config import FindingsSettings, validate
from clues.data.samples import Message, Sample
from clues.errors import ConfigError
from clues.findings.base import KINDS, SAYS
from clues.findings.look import look

QUESTION = "What should a patient with a fever of 39 degrees do at home?"
ANSWER = (
    "Rest, drink enough water and measure the temperature twice a day. If the fever does not fall "
    "within three days, or if the patient is confused, a doctor has to be called at once."
)
CHECKED = tuple(
    (
        f"What is known about illness number {n}, and how is it treated?",
        f"{ANSWER} Case {n} is closed.",
    )
    for n in range(40)
)


def sample(row: int, question: str, answer: str) -> Sample:
    return Sample(row, (Message("user", question), Message("assistant", answer)))


CHECKED_ROWS = [sample(n, *pair) for n, pair in enumerate(CHECKED)]


def found(answer: str, question: str = QUESTION):
    """What is found in one row beside the checked ones."""
    return look([sample(0, question, answer)], CHECKED_ROWS).of(0)


def sure(answer: str, question: str = QUESTION) -> set[str]:
    return {finding.kind for finding in found(answer, question) if finding.sure}


DAMAGED = {
    "refusal": (
        "As an AI language model, I can't give medical advice.",
        "I'm sorry, but I cannot help with that.",
        "I\u2019m sorry, I can\u2019t assist with that request.",
        "Unfortunately, I am unable to answer this question.",
        "I do not have access to real-time information about patients, so I leave it there.",
        "Lo siento, pero no puedo responder a esa pregunta.",
        "En tant que mod\u00e8le de langage, je ne donne pas de conseils.",
        "Als KI-Sprachmodell darf ich dazu nichts sagen.",
        "\u4f5c\u4e3a\u4e00\u4e2a\u4eba\u5de5\u667a\u80fd\u8bed\u8a00\u6a21\u578b\uff0c\u6211\u65e0\u6cd5\u56de\u7b54\u8fd9\u4e2a\u95ee\u9898\u3002",
    ),
    "html": (
        f"<p>{ANSWER}</p>",
        f"{ANSWER}<br><br/>",
        f'<div class="a">{ANSWER}',
        ANSWER.replace(" and ", " &amp; ").replace(", ", ",&nbsp;", 1),
    ),
    "boilerplate": (f"{ANSWER} All rights reserved. Click here to subscribe to our newsletter.",),
    "mojibake": (
        ANSWER.replace(" at once", "\u2019s").encode().decode("cp1252"),
        f"{ANSWER} \ufffd\ufffd",
        "Die Temperatur fällt nicht, sagt die Ärztin für Kinder.".encode().decode("latin-1"),
    ),
    "prompt_repeated": (QUESTION, f"{QUESTION} {ANSWER}", f"{ANSWER}\n### Instruction:\nGo on."),
    "near_empty": ("...", "N/A", "-", "no no no", "I don't know", "ok"),
    "language": (
        "El paciente debe descansar, beber mucha agua y medir la temperatura dos veces al d\u00eda hasta que baje.",
        "Der Patient soll sich ausruhen, viel Wasser trinken und zweimal am Tag die Temperatur messen.",
        "\u75c5\u4eba\u5e94\u8be5\u4f11\u606f\uff0c\u591a\u559d\u6c34\uff0c\u6bcf\u5929\u6d4b\u91cf\u4e24\u6b21\u4f53\u6e29\uff0c\u5fc5\u8981\u65f6\u53bb\u533b\u9662\u3002",
    ),
    "cut": (
        "Rest, drink enough water and measure the temperature twice a",
        "Rest, drink enough water, take the medicine after meals and",
        f"{ANSWER} Another thing to remember is, above all,",
    ),
}


@pytest.mark.parametrize(
    ("kind", "answer"), [(kind, answer) for kind, answers in DAMAGED.items() for answer in answers]
)
def test_damage_of_every_kind_is_found_and_called_by_its_name(kind, answer):
    assert kind in sure(answer)
    finding = next(f for f in found(answer) if f.kind == kind)
    assert finding.turn == 1
    assert 0 <= finding.start < finding.end <= len(answer)
    assert SAYS[kind] in finding.says


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (QUESTION, ANSWER),
        # Words of a refusal in the middle of a text, or in an answer about assistants.
        (QUESTION, f"{ANSWER} Many parents write: I am afraid I cannot help my child."),
        ("What does a chatbot say when it refuses?", "As an AI language model, I cannot help."),
        # Tags where code is wanted; signs that are no tags.
        (
            "Write HTML for a list of two items.",
            "<ul><li>One</li><li>Two</li></ul> is a list of two.",
        ),
        (QUESTION, f"{ANSWER} The difference was small (p < 0.05, a <b if n > 3)."),
        # A translation, and an answer in the language of its question.
        ("Translate into Spanish: rest and drink enough water.", DAMAGED["language"][0]),
        (
            "\u00bfQu\u00e9 debe hacer en casa un paciente que tiene fiebre alta?",
            DAMAGED["language"][0],
        ),
        # Accents are no broken letters.
        (
            QUESTION,
            f"{ANSWER} Ask for Dr. Müller at the café in São Paulo, 25 °C, £5 \N{EN DASH} “now”.",
        ),
        ("Is it N/A or known?", "N/A"),
        ("What is known?\nInsulin", f"What is known? Much is. {ANSWER}"),
        # A sentence that was cut before it was translated; letters of a list.
        (
            "Translate into English: En casa hay que descansar, beber agua y medir la",
            "At home one has to rest, drink enough water and measure the",
        ),
        ("Which letters are in the list, in the order of the alphabet?", "b, c, d, f, g, x, y"),
        # Into a language that nobody here knows, whatever the answer is taken for.
        (f"Put it into the Zhuang language. {QUESTION}", DAMAGED["language"][0]),
        (f"Put it into the Zhuang language. {QUESTION}", DAMAGED["language"][1]),
    ],
)
def test_a_clean_row_is_not_set_aside(question, answer):
    assert sure(answer, question) == set()


def test_the_first_of_equal_rows_stays_unless_it_has_another_fault():
    texts = [ANSWER, f"<p>{ANSWER}</p><br>", ANSWER, ANSWER.upper() + "!"]
    rows = [sample(n, QUESTION, text) for n, text in enumerate(texts)]
    seen = look(rows, CHECKED_ROWS)
    assert {f.kind for f in seen.of(0)} == set()
    assert [f.kind for f in seen.of(2)] == ["duplicate"]
    assert [f.kind for f in seen.of(3)] == ["duplicate"], "case and signs do not make another row"
    assert "row 1" in seen.of(2)[0].says
    # The broken one comes first in the file, and goes all the same.
    turned = look(
        [sample(0, QUESTION, ANSWER.replace("drink", "dr\ufffdink")), sample(1, QUESTION, ANSWER)],
        CHECKED_ROWS,
    )
    assert [f.kind for f in turned.of(0)] == ["mojibake", "near_duplicate"]
    assert turned.of(1) == ()


def test_nearly_the_same_is_found_and_another_question_on_the_same_table_is_not():
    table = "\n".join(
        f"In year {n} the sales of division {n * 7} were high and the costs low" for n in range(60)
    )
    rows = [
        sample(
            0, f"Which division sold most in the last year?\n{table}", f"The last one. {ANSWER}"
        ),
        sample(
            1, f"Which division sold most in the last year?\n{table}", f"The last one, {ANSWER}."
        ),
        sample(
            2, f"Which division had the lowest costs of all?\n{table}", f"The last one. {ANSWER}"
        ),
        sample(3, f"Which division sold most in the last year?\n{table}", "Division 413 did."),
    ]
    seen = look(rows, CHECKED_ROWS)
    assert [[f.kind for f in seen.of(n) if f.sure] for n in range(4)] == [
        *([], ["duplicate"], [], [])
    ]
    near = [*rows[:1], sample(1, rows[0].prompt[0].content, f"The last one. {ANSWER} Ask there.")]
    assert [f.kind for f in look(near, CHECKED_ROWS).of(1)] == ["near_duplicate"]


@pytest.mark.parametrize("n_words", [24, 42, 80])
def test_one_changed_word_is_nearly_the_same_in_a_short_answer_too(n_words):
    words = [f"{chr(97 + n % 26)}{chr(97 + n // 26)}ord" for n in range(n_words)]
    asked = "What did the last report say about the plans of the company?"
    rows = [sample(0, asked, f"{' '.join(words)}.")]

    def kinds(place, word):
        other = [*words[:place], word, *words[place + 1 :]]
        seen = look([*rows, sample(1, asked, f"{' '.join(other)}.")], CHECKED_ROWS).of(1)
        return [f.kind for f in seen if f.sure]

    assert kinds(20, "also") == ["near_duplicate"]
    # Half of the words are others, or the one that is another is a number.
    half = [f"{word}er" if n % 2 else word for n, word in enumerate(words)]
    seen = look([*rows, sample(1, asked, f"{' '.join(half)}.")], CHECKED_ROWS).of(1)
    assert not [f for f in seen if f.kind == "near_duplicate"]
    words[20] = "2018"
    rows[0] = sample(0, asked, f"{' '.join(words)}.")
    assert kinds(20, "2019") == []


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("Write to anna.berg@example.org now.", "e-mail"),
        ("Call +49 30 1234 5678 today.", "telephone"),
        ("Pay to DE89 3704 0044 0532 0130 00 soon.", "bank account"),
        ("The card 4111 1111 1111 1111 was used.", "card"),
        ("Date of birth: 3 May 1970.", "record"),
    ],
)
def test_personal_data_is_a_flag_and_never_more(text, what):
    (finding,) = (f for f in found(f"{ANSWER} {text}") if f.kind == "personal_data")
    assert what in finding.says
    assert not finding.sure


@pytest.mark.parametrize(
    "text", ["Sales were 1,452,304,118 in 2019.", "4111 1111 1111 1112", "3.14159265358979"]
)
def test_numbers_of_a_table_are_no_personal_data(text):
    assert "personal_data" not in {f.kind for f in found(f"{ANSWER} {text}")}


def test_without_checked_rows_the_rows_themselves_say_what_is_usual():
    rows = [*CHECKED_ROWS, sample(40, QUESTION, DAMAGED["language"][0])]
    assert [f.kind for f in look(rows).of(40) if f.sure] == ["language"]


SPANISH = DAMAGED["language"][0]
LONG_QUESTION = (
    f"{QUESTION} Say what the parents should watch for during the first two days at home."
)


@pytest.mark.parametrize(
    ("question", "set_aside"),
    [
        (LONG_QUESTION, True),
        # Spanish soldiers speak no Spanish to us; a translation into another tongue is no reason.
        (f"{LONG_QUESTION} Two Spanish doctors and a French nurse disagree.", True),
        (f"Translate into French: {LONG_QUESTION}", True),
        # Named, or in one line of a question that is mostly in English.
        (f"{LONG_QUESTION} Answer in Spanish.", False),
        (f"{LONG_QUESTION} You are given a Spanish sentence.", False),
        (f"{LONG_QUESTION}\nEl paciente tiene fiebre alta desde ayer por la noche.", False),
        # In brackets, in quotes, and at the end of what a person lists.
        (f"{LONG_QUESTION} Convert it into the Castilian (Spanish) language.", False),
        (f"{LONG_QUESTION} Write a text in 'Spanish' language.", False),
        # Of languages in other letters, whose sentence nobody can tell.
        ("Translate from Gujarati to Panjabi: \u0aa8\u0ac0\u0a9a\u0ac7", True),
        ("Translate: \u0aa8\u0ac0\u0a9a\u0ac7", False),
        # What "is translated" is told, not asked.
        (f"{LONG_QUESTION} Roman numerals are also translated.", True),
        (f"{LONG_QUESTION} The text must be translated.", False),
        # Of a language whose texts are taken for Spanish where only some are told apart.
        (f"Translate into Galician: {LONG_QUESTION}", False),
        ("Fever?", False),
    ],
)
def test_rows_of_many_languages_need_a_reason_for_each(question, set_aside):
    """Checked rows have English and Spanish answers, each to a question of its own language."""
    spanish = "\u00bfQu\u00e9 debe hacer en casa un paciente que tiene fiebre alta desde hace dos d\u00edas?"
    checked = [*CHECKED_ROWS, *(sample(50 + n, spanish, f"{SPANISH} {n}") for n in range(20))]
    row = sample(0, question, SPANISH)
    kinds = {f.kind for f in look([row], checked).of(0) if f.sure}
    assert kinds == ({"language"} if set_aside else set())


@pytest.mark.parametrize(
    ("asks", "answer", "set_aside"),
    [
        # Told apart from Portuguese only among all languages, and from Danish.
        (
            "Translate into Galician: ",
            "O paciente debe descansar e beber moita auga, e volver ao m\u00e9dico se os s\u00edntomas non melloran axi\u00f1a, e tomar "
            "dous comprimidos cada d\u00eda.",
            False,
        ),
        (
            "Translate into Norwegian: ",
            "Pasientene skal hvile og drikke mye vann, og g\u00e5 til legen igjen hvis feberen ikke gir seg.",
            False,
        ),
        (
            "Translate into Filipino: ",
            "Il paziente deve riposare, bere molta acqua e misurare la temperatura due volte al giorno.",
            True,
        ),
        # A country is no language, and a table's line may look like one.
        (
            "In Germany and Portugal: ",
            "Der Patient soll sich ausruhen und viel Wasser trinken, bis das Fieber nachl\u00e4sst.",
            True,
        ),
        (
            "Accrued expenses\nGST and employment taxes payable\nOther payables\n",
            "Le m\u00e9decin a prescrit des boissons et du repos, et il faut mesurer la temp\u00e9rature matin et soir.",
            True,
        ),
    ],
)
def test_what_a_question_names_and_speaks_is_read_as_a_person_would(asks, answer, set_aside):
    kinds = {f.kind for f in look([sample(0, asks + LONG_QUESTION, answer)], CHECKED_ROWS).of(0)}
    assert ("language" in kinds) == set_aside


def test_a_question_that_ends_with_a_colon_excuses_no_answer_that_is_cut():
    for asked in (f"{QUESTION}\nAnswer:", f"{QUESTION}\nRest, drink water and"):
        found_here = sure("Rest, drink enough water and measure the temperature twice a", asked)
        assert ("cut" in found_here) == asked.endswith(":")


def test_what_is_beside_the_language_is_said_and_is_never_empty():
    """German is a language of the checked rows; the question's own language is not clear."""
    german = "Was soll ein Kind mit hohem Fieber zu Hause tun, wenn es nicht trinken will?"
    answer = DAMAGED["language"][1]
    checked = [*CHECKED_ROWS, *(sample(50 + n, german, f"{answer} {n}") for n in range(20))]
    asked = "Translate from Gujarati into Oriya: \u0aa8\u0ac0\u0a9a\u0ac7"
    (finding,) = look([sample(0, asked, answer)], checked).of(0)
    assert finding.detail == "de, the question names others"
    (finding,) = look([sample(0, LONG_QUESTION, answer)], checked).of(0)
    assert finding.detail == "de, question en"
    rows = [*CHECKED_ROWS, sample(40, QUESTION, SPANISH)]
    (finding,) = [f for f in look(rows).of(40) if f.kind == "language"]
    assert finding.detail == "es, most rows en"


def test_a_language_of_many_rows_still_needs_a_reason_in_each():
    """A tenth of the rows are Spanish throughout; one more answers an English question."""
    asked = "\u00bfQu\u00e9 debe hacer en casa un paciente que tiene fiebre alta desde hace dos d\u00edas?"
    rows = [sample(n, LONG_QUESTION, f"{ANSWER} {n}") for n in range(36)]
    rows += [sample(36 + n, asked, f"{SPANISH} {n}") for n in range(4)]
    rows += [sample(40, LONG_QUESTION, SPANISH)]
    found = look(rows, CHECKED_ROWS)
    told = [n for n in range(41) if any(f.kind == "language" and f.sure for f in found.of(n))]
    assert told == [40]


def test_no_finding_holds_text_of_its_row():
    text = f"<p>MARKER {ANSWER}</p> mail MARKER@example.org, and the"
    said = [f"{f!r} {f.says} {f.place}" for f in found(text, f"MARKER {QUESTION}")]
    assert said
    assert not any("MARKER" in line for line in said)


def test_settings_take_one_word_or_one_for_each_kind():
    def settings(given):
        return validate(FindingsSettings, given, where="silo.yaml")

    assert set(FindingsSettings.model_fields) == set(KINDS)
    assert FindingsSettings().looked_for == ()
    assert settings(False).looked_for == (), "YAML reads off as false"
    assert set(settings("set_aside").setting_aside) == {*KINDS} - {"personal_data"}
    assert settings("flag").setting_aside == ()
    assert settings({"cut": "flag", "html": False}).looked_for == ("cut",)
    for wrong in ("keep", {"refusals": "flag"}, {"personal_data": "set_aside"}, 3):
        with pytest.raises(ConfigError, match=r"silo\.yaml"):
            settings(wrong)


def test_only_what_is_looked_for_is_found():
    rows = [sample(0, QUESTION, DAMAGED["refusal"][0])]
    assert look(rows, CHECKED_ROWS, kinds=("html",)).by_row == {}
    assert look(rows, CHECKED_ROWS, kinds=()).counts() == {}
    assert look(rows, CHECKED_ROWS).counts() == {"refusal": 1}
