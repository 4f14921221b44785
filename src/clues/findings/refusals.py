"""Answers that refuse: an assistant that says what it is, or that it cannot help."""

import re
from collections.abc import Iterator

from clues.data.samples import Sample
from clues.findings.base import Finding, in_answer, question

_MODEL = (
    r"(?:(?:large |text-based |conversational )?(?:AI )?language model|(?:AI|A\.I\.|artificial intelligence)"
    r"(?: (?:chat ?bot|model|assistant|system|program))?|LLM|chat ?bot|virtual assistant|digital assistant)"
)
_HELP = (
    r"(?:help|assist|provide|answer|fulfil|comply|give|offer|discuss|create|generate|complete"
    r"|respond|do that|continue|engage|support|share|write|tell|access|browse|accommodate|process)"
)
_DOES_NOT = (
    r"(?:can(?:not|'t| not)|could(?:n't| not)|am (?:unable|not able)|'m (?:unable|not able)|won't"
    r"|will not|must (?:politely )?decline|have to decline|do(?:n't| not) (?:feel comfortable|think I can))"
)
# What an assistant says of itself: wherever it stands.
_ITSELF = (
    rf"\b(?:as|being|since I(?:'m| am)|because I(?:'m| am)|I(?:'m| am)) (?:just |only |merely |simply )?an? {_MODEL}",
    r"\bmy (?:training data|knowledge cut-?off|programming does(?:n't| not))",
    r"\bI (?:was|am|'m) (?:trained|developed|created|designed|built) by (?:OpenAI|Anthropic|Google|Meta)",
    r"(?:como|soy|al ser) (?:solo |sólo )?(?:una? )?(?:modelo (?:de lenguaje|lingüístico)|IA\b|inteligencia artificial|asistente (?:virtual|de IA))",
    r"(?:en tant qu(?:e |'))(?:une? )?(?:modèle (?:de langage|linguistique)|IA\b|intelligence artificielle|assistant (?:virtuel|IA))",
    r"\bals (?:ein |eine |ich )?(?:KI\b|künstliche Intelligenz|(?:KI-)?Sprachmodell|KI-(?:Modell|Assistent))",
    r"(?:come|in quanto|essendo) (?:un[a']? ?)?(?:modello (?:di linguaggio|linguistico)|IA\b|intelligenza artificiale|assistente (?:virtuale|IA))",
    r"como (?:uma? )?(?:modelo de linguagem|IA\b|inteligência artificial)",
    r"作为(?:一个|一名|一款)?(?:人工智能|AI|(?:大型)?语言模型|智能助手)",
    r"(?:AI|人工知能|言語モデル)(?:アシスタント|言語モデル)?(?:として|ですので|なので)",
    r"(?:как|я) (?:языковая модель|ИИ\b|искусственный интеллект)",
)
# That it cannot help: only where the answer begins, for people write so in the middle of a text.
_CANNOT = (
    rf"I(?:'m| am) (?:very |so |really )?(?:sorry|afraid)\b[^.!?]{{0,80}}?\b(?:{_DOES_NOT}|unable|not able)",
    rf"(?:sorry|apologies|unfortunately|regrettably)\b[^.!?]{{0,60}}?\bI(?: |'){{0,1}}{_DOES_NOT}",
    rf"I(?: |(?='))(?:{_DOES_NOT})\b[^.!?]{{0,40}}?\b{_HELP}",
    r"I (?:apologi[sz]e)\b[^.!?]{0,80}?\b(?:can(?:not|'t)|unable|not able)",
    r"I (?:do not|don't) (?:currently )?have (?:the ability|access to|personal (?:opinions|experiences|beliefs)|real-time|enough (?:information|context)|sufficient information)",
    r"it (?:is|would be|wouldn't be|would not be|is not|isn't) (?:in)?appropriate for me to",
    r"(?:this|that|your) (?:request|question|prompt) (?:goes against|violates|is against)",
    r"lo siento,? (?:pero )?(?:no (?:puedo|me es posible|tengo)|soy incapaz)",
    r"(?:je suis |)(?:désolée?|navrée?),? (?:mais )?je ne (?:peux|puis|suis)",
    r"(?:es )?tut mir leid,? (?:aber )?(?:ich (?:kann|darf|bin)|dabei)",
    r"mi dispiace,? (?:ma )?non (?:posso|sono)",
    r"(?:desculpe|sinto muito|lamento),? (?:mas )?(?:eu )?não (?:posso|consigo)",
    r"(?:很抱歉|抱歉|对不起|對不起)[,\uff0c]?\s*(?:但)?我(?:无法|不能|無法|没有办法)",
    r"申し訳(?:ありません|ございません)が",
    r"(?:извините|простите|к сожалению),? (?:но )?я не могу",
)
_SAID_OF_ITSELF = re.compile("|".join(_ITSELF), re.IGNORECASE)
_SAID_FIRST = re.compile("|".join(_CANNOT), re.IGNORECASE)
_ABOUT_ASSISTANTS = re.compile(
    r"\b(?:AI|language models?|chat ?bots?|GPT\w*|assistants?|refus\w+|declin\w+|apolog\w+)\b",
    re.IGNORECASE,
)
# Where an answer still begins, after a greeting or a repeated question.
FIRST = 160


def refusals(sample: Sample) -> Iterator[Finding]:
    """At most one finding: where the answer refuses."""
    # Quotes differ by where a text was written; one character each, so places stay.
    answer = sample.response.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").replace("`", "'")
    found = _SAID_FIRST.search(answer, 0, len(answer))
    if found and found.start() > FIRST:
        found = None
    found = _SAID_OF_ITSELF.search(answer) or found
    if found is None:
        return
    # A question about assistants may be answered with an assistant's words.
    sure = _ABOUT_ASSISTANTS.search(question(sample)) is None
    yield in_answer(sample, "refusal", found.span(), sure=sure)
