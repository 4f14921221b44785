"""Remains of a web page: tags and entities, and the text of its frame."""

import re
from collections.abc import Iterator

from clues.data.samples import Sample
from clues.findings.base import Finding, in_answer, question
from clues.findings.words import asks_for_code

_NAMES = (
    "a|abbr|article|aside|b|blockquote|body|br|button|caption|center|code|div|em|figure|font|footer"
    "|form|h[1-6]|head|header|hr|html|i|iframe|img|input|label|li|link|main|meta|nav|ol|option|p|pre"
    "|script|section|small|span|strong|style|sub|sup|svg|table|tbody|td|th|thead|title|tr|u|ul|video"
)
_TAG = re.compile(
    rf"<(?:/(?:{_NAMES})\s*|(?:{_NAMES})(?:\s+[\w:-]+\s*=\s*[^<>]{{0,400}}|\s*/?)|!DOCTYPE[^<>]*)>|<!--",
    re.IGNORECASE,
)
_ENTITY = re.compile(
    r"&(?:nbsp|amp|lt|gt|quot|apos|ndash|mdash|[lr][sd]quo|hellip|copy|reg|bull|middot|#\d{2,6}|#x[0-9a-f]{2,6});",
    re.IGNORECASE,
)
_FRAME = re.compile(
    r"\b(?:all rights reserved|skip to (?:main )?content|click here(?: to| for)|read more\b|share (?:this|on) (?:page|article|facebook|twitter)"
    r"|subscribe to (?:our|the) newsletter|sign up for (?:our|the) newsletter|(?:accept|use of|uses) (?:all )?cookies|cookie (?:policy|settings)"
    r"|privacy policy|terms (?:of (?:use|service)|and conditions)|javascript (?:is|must be|to be) (?:disabled|enabled|required)"
    r"|log ?in to (?:continue|view)|page not found|back to top|follow us on|leave a (?:comment|reply)|posted by \w+ on|last updated:?"
    r"|todos los derechos reservados|política de (?:privacidad|cookies)|haga clic aquí|tous droits réservés|politique de confidentialité"
    r"|cliquez ici|alle rechte vorbehalten|datenschutzerklärung|hier klicken)",
    re.IGNORECASE,
)
# A tag that ends something or has an attribute is one, even alone.
_PLAIN = re.compile(r"</|<\w+\s+[\w:-]+\s*=")
SURE_FROM = 2  # marks


def markup(sample: Sample) -> Iterator[Finding]:
    """At most one finding of each kind."""
    answer = sample.response
    if not asks_for_code(question(sample)) and "```" not in answer:
        marks = [*_TAG.finditer(answer), *_ENTITY.finditer(answer)]
        marks.sort(key=lambda match: match.start())
        if marks:
            span = marks[0].start(), marks[-1].end()
            yield in_answer(
                sample,
                "html",
                span,
                sure=len(marks) >= SURE_FROM or _PLAIN.match(marks[0].group()) is not None,
            )
    frames = list(_FRAME.finditer(answer))
    if frames:
        different = {match.group().casefold() for match in frames}
        span = frames[0].start(), frames[-1].end()
        asked = _FRAME.search(question(sample)) is not None
        yield in_answer(sample, "boilerplate", span, sure=len(different) >= SURE_FROM and not asked)
