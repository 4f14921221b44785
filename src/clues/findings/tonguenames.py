"""Languages that a question names, in English: what its answer may be written in."""

import re

# What a question in English calls the languages that are told apart, as far as it is the same with
# its usual slips.
NAMES = {
    "en": "english",
    "es": "spanish",
    "fr": "french",
    "de": "german(?!y)",
    "it": "italian",
    "pt": "portug(?!al)",
    "nl": "dutch",
    "sv": "swedish",
    "da": "danish",
    "no": "norwegian",
    "fi": "finnish",
    "pl": "polish",
    "cs": "czech(?!ia)",
    "sk": "slovak(?!ia)",
    "ro": "romanian",
    "hu": "hungarian",
    "tr": "turkish",
    "ru": "russian",
    "uk": "ukrainian",
    "bg": "bulgarian",
    "el": "greek",
    "ar": "arabic",
    "fa": "persian|farsi",
    "he": "hebrew",
    "hi": "hindi",
    "bn": "bengali|bangla",
    "ta": "tamil",
    "ur": "urdu",
    "zh": "chinese|mandarin",
    "ja": "japanese",
    "ko": "korean",
    "vi": "vietnamese",
    "th": "thai(?!land)",
    "id": "indonesian|bahasa",
    "ca": "catalan",
    "hr": "croatian",
    "lt": "lithuanian",
    "et": "estonian",
}
# Their texts are taken for one of those above where only those are told apart; by whether they are
# written in Latin letters.
OTHERS = {
    True: "afrikaans|albanian|azerbaijani|basque|bosnian|cebuano|esperanto|filipino|galician|hausa"
    "|icelandic|igbo|irish|javanese|latin|latvian|luxembourgish|malay\\b|maltese|quechua|slovenian"
    "|somali|swahili|tagalog|uzbek|welsh|xhosa|yoruba|zulu",
    False: "amharic|armenian|belarusian|burmese|georgian|gujarati|kannada|kazakh|khmer|kurdish|lao\\b"
    "|macedonian|malayalam|marathi|mongolian|nepali|oriya|pashto|punjabi|panjabi|serbian|sinhal"
    "|telugu|tibetan",
}
NOT_LATIN = frozenset(
    ["ru", "uk", "bg", "el", "ar", "fa", "he", "hi", "bn", "ta", "ur", "zh", "ja", "ko", "th"]
)


def _called(stem: str) -> re.Pattern[str]:
    """A language that is named as one: "into German", "German sentence", and not "German ships"."""
    what = (
        r"(?:language|sentence|text|translat|version|word|phrase|paragraph|review|question|answer)"
    )
    return re.compile(
        rf"\b(?:in|into|to|from|or|between) (?:the )?['\"(]?(?:{stem})|\b(?:{stem})\w*['\")]? {what}",
        re.IGNORECASE,
    )


# "into the Zhuang language": of one that nobody here knows.
_SAID = re.compile(r"\b(?:in|into|to) (?:the )?([A-Z]\w+) [Ll]anguage\b")
_KNOWN = re.compile("|".join([*NAMES.values(), *OTHERS.values()]), re.IGNORECASE)
_NAMED = {name: _called(stem) for name, stem in NAMES.items()}
_UNTOLD = {latin: _called(stems) for latin, stems in OTHERS.items()}


def named_in(text: str) -> set[str]:
    """Two letters of every language that a text names as one to read or write in."""
    return {name for name, pattern in _NAMED.items() if pattern.search(text)}


def names_one_untold(text: str, language: str) -> bool:
    """Whether a text names a language whose texts may be taken for one in `language`."""
    return _UNTOLD[language not in NOT_LATIN].search(text) is not None


def names_one_unknown(text: str) -> bool:
    """Whether a text names a language of which nothing is known here."""
    return any(not _KNOWN.match(name) for name in _SAID.findall(text))


def names_any(text: str) -> bool:
    """Whether a text names a language at all."""
    return bool(named_in(text)) or any(p.search(text) for p in _UNTOLD.values())
