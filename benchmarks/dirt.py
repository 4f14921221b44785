"""Damage of eleven kinds as rows from life have it, to measure findings with.

The wordings are other ones than those that the rules were written with.
"""

import random
from collections.abc import Callable, Sequence

Row = dict[str, str]
REFUSALS = (
    "As an AI language model, I cannot provide medical or financial advice.",
    "I'm sorry, but I can't help with that request.",
    "I apologize, but as an artificial intelligence I do not have access to that information.",
    "I\u2019m afraid I am not able to answer this question.",
    "Sorry, I cannot assist with that. Please consult a professional.",
    "I am just an AI model and do not have personal opinions on this topic.",
    "Unfortunately, I am unable to provide an answer to this question.",
    "As a large language model trained by OpenAI, I don't browse the internet.",
    "It would not be appropriate for me to answer that.",
    "I cannot fulfill this request.",
    "Lo siento, pero no puedo ayudar con eso.",
    "Je suis d\u00e9sol\u00e9, mais je ne peux pas r\u00e9pondre \u00e0 cette question.",
)
FOREIGN = (
    "El paciente debe tomar la medicina dos veces al d\u00eda y volver a la consulta si la fiebre no baja en tres d\u00edas.",
    "Das Unternehmen hat seine Zahlen f\u00fcr das vergangene Jahr noch nicht ver\u00f6ffentlicht, rechnet aber mit einem Gewinn.",
    "Le m\u00e9decin a prescrit un traitement qui doit \u00eatre suivi pendant au moins deux semaines sans interruption.",
    "La societ\u00e0 ha dichiarato che i ricavi sono cresciuti grazie alle vendite nei mercati esteri durante l'anno.",
    "O doente deve descansar e beber muita \u00e1gua, e voltar ao m\u00e9dico se os sintomas n\u00e3o melhorarem.",
)
EMPTY = ("N/A", "...", "-", "ok", "None", "see above", "TBD", "?", "I don't know.", "null")
FRAME = " Skip to main content. Read more. All rights reserved. Click here to subscribe to our newsletter."


def _refusal(row: Row, _: Sequence[Row], rng: random.Random) -> str:
    said = rng.choice(REFUSALS)
    return said if rng.random() < 0.7 else f"{said} {row['output'][:80]}"


def _html(row: Row, _: Sequence[Row], rng: random.Random) -> str:
    words = row["output"].split()
    at = rng.randrange(len(words))
    words[at] = rng.choice(
        (f"<b>{words[at]}</b>", f"<a href='x'>{words[at]}</a>", f"{words[at]}<br/><br/>")
    )
    ways = (
        f"<p>{' '.join(words)}</p>",
        f'<div class="text">{" ".join(words)}&nbsp;</div>',
        " ".join(words),
    )
    return rng.choice(ways)


def _ocr(row: Row, _: Sequence[Row], rng: random.Random) -> str:
    swaps = {"l": "1", "o": "0", "e": "c", "i": "l", "m": "rn", "s": "5", "a": "@"}
    return "".join(swaps.get(c, c) if rng.random() < 0.25 else c for c in row["output"])


def _truncated(row: Row, _: Sequence[Row], rng: random.Random) -> str:
    text = row["output"]
    return text[: max(2, int(len(text) * rng.uniform(0.2, 0.7)))].rstrip()


def _wrong(row: Row, rows: Sequence[Row], rng: random.Random) -> str:
    others = [r["output"] for r in rng.sample(rows, 5) if r["output"] != row["output"]]
    return others[0]


def _language(row: Row, _: Sequence[Row], rng: random.Random) -> str:
    return " ".join(rng.sample(FOREIGN, 1) * (1 + len(row["output"]) // 400))


def _repeated(row: Row, _: Sequence[Row], rng: random.Random) -> str:
    return row["instruction"] if rng.random() < 0.5 else f"{row['instruction']} {row['output']}"


def _empty(row: Row, _: Sequence[Row], rng: random.Random) -> str:
    return rng.choice(EMPTY)


def _mojibake(row: Row, _: Sequence[Row], rng: random.Random) -> str:
    text = row["output"].replace("'", "\u2019").replace('"', "\u201d").replace(" - ", " \u2013 ")
    if text.isascii():
        text = f"\u201c{text}\u201d"
    return (
        text.encode().decode("cp1252", errors="replace")
        if rng.random() < 0.8
        else text.encode().decode("latin-1")
    )


def _frame(row: Row, _: Sequence[Row], rng: random.Random) -> str:
    return row["output"] + FRAME


KINDS: dict[str, Callable[[Row, Sequence[Row], random.Random], str]] = {
    "refusal": _refusal,
    "html": _html,
    "boilerplate": _frame,
    "mojibake": _mojibake,
    "prompt_repeated": _repeated,
    "near_empty": _empty,
    "language": _language,
    "cut": _truncated,
    "ocr noise": _ocr,
    "wrong answer": _wrong,
}


def dirty(rows: Sequence[Row], *, each: int, seed: int) -> tuple[list[Row], list[str]]:
    """Rows with damage of eleven kinds, `each` rows a kind, and for every row its kind or nothing.

    A duplicate is a row more; half of them have one word of their answer changed.
    """
    rng = random.Random(seed)
    found, labels = [dict(row) for row in rows], [""] * len(rows)
    places = rng.sample(range(len(rows)), each * len(KINDS))
    for n, (kind, damage) in enumerate(KINDS.items()):
        for at in places[n * each : (n + 1) * each]:
            changed = damage(rows[at], rows, rng)
            if changed.strip() == rows[at]["output"].strip():
                continue
            found[at]["output"], labels[at] = changed, kind
    clean = [n for n, label in enumerate(labels) if not label]
    originals = list(found)
    for n, at in enumerate(rng.sample(clean, each)):
        twin = dict(originals[at])
        words = twin["output"].split()
        plain = [i for i in range(20, len(words)) if words[i].isalpha()]
        if n % 2 and len(words) > 40 and plain:
            words[plain[0]] = "also"
            twin["output"] = " ".join(words)
        # After its original: the first of the two is the one that stays.
        first = next(n for n, row in enumerate(found) if row is originals[at])
        place = rng.randrange(first + 1, len(found) + 1)
        found.insert(place, twin)
        labels.insert(place, "duplicate")
    return found, labels
