"""Text that somebody else has chosen, made safe to print and to store: cut, and visible."""

MAX_TEXT = 300  # of one name or value that a silo sends; the longest weight's name is about 100
UNPRINTABLE = "\N{REPLACEMENT CHARACTER}"
MORE = "\N{HORIZONTAL ELLIPSIS}"


def is_printable(text: str, limit: int = MAX_TEXT) -> bool:
    """Whether text is short, and without control, direction-changing or invisible characters."""
    return len(text) <= limit and text.isprintable()


def printable(text: str, limit: int) -> str:
    """One line of text, as it is where it can be printed, and cut.

    Args:
        text: any.
        limit: the most characters that come back.
    """
    # Cut first: all that follows then takes no longer for a text of a gigabyte.
    short = " ".join(text[: 4 * limit].split())
    seen = "".join(c if c.isprintable() else UNPRINTABLE for c in short)
    whole = len(seen) <= limit and len(text) <= 4 * limit
    return seen if whole else seen[: limit - 1] + MORE


def lines(text: str, limit: int) -> str:
    """Text of several lines, as it is where it can be printed; of a longer one, beginning and end."""
    if len(text) > limit:
        text = f"{text[: limit // 2]}\n{MORE}\n{text[-limit // 2 :]}"
    return "".join(c if c.isprintable() or c == "\n" else UNPRINTABLE for c in text)


def quoted(text: object, limit: int = 40) -> str:
    """Text in quotes for an error: cut, and everything but plain ASCII is escaped."""
    return ascii(text[:limit]) if isinstance(text, str) else f"a {type(text).__name__}"


def rows_in_words(n: int) -> str:
    """A number of rows: "1 row", "2,000 rows"."""
    return f"{n:,} row{'' if n == 1 else 's'}"


def rows_are(n: int) -> str:
    """A number of rows with its verb: "1 row is", "2,000 rows are"."""
    return f"{rows_in_words(n)} {'is' if n == 1 else 'are'}"
