"""Texts as rules compare them."""

import re
import unicodedata

# Asked for code or a page, an answer may hold tags; asked to translate, another language.
_CODE = re.compile(
    r"\b(?:html|xml|css|svg|markup|javascript|php|jsx|code|script|tags?|web ?page|c[oó]digo)\b|```",
    re.IGNORECASE,
)
_OTHER_TONGUE = re.compile(
    # "is translated as" tells of a translation and asks for none.
    r"\b(?:translat(?!ed\b)\w*|be translated|translated (?:in)?to|traduc\w*|traduir\w*|tradui[st]\w*|übersetz\w*|tradurre|tradu[cz]\w*|перевед\w*)\b|翻译|翻譯|翻訳"
    r"|\b(?:in|into|auf|en|em|to) (?:english|spanish|french|german|italian|portuguese|chinese|japanese"
    r"|russian|arabic|hindi|dutch|español|français|inglés|anglais|deutsch|englisch|portugu[eê]s)\b",
    re.IGNORECASE,
)


def asks_for_code(prompt: str) -> bool:
    """Whether code may be what is wanted."""
    return _CODE.search(prompt) is not None


def asks_for_another_language(prompt: str) -> bool:
    """Whether a translation, or an answer in a language that it names, may be wanted."""
    return _OTHER_TONGUE.search(prompt) is not None


def squeezed(text: str) -> str:
    """Letters and digits alone, in one form, with single spaces: what two texts are compared by."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", plain))
