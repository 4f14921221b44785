"""A console for text that somebody else may have written: names in files, runs, rows, errors."""

import json
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment

from clues.reading import visible

# Spaces of other scripts, and what joins letters or parts of a picture: seen, or part of what is.
SEEN = "\n\t\u00a0\u3000\u200c\u200d"


class Shown(Console):
    """Prints text as it is: brackets mean nothing, and no character steers the terminal."""

    def __init__(self, *, stderr: bool = False) -> None:
        """Write to stdout or stderr."""
        super().__init__(stderr=stderr, markup=False)

    def render(self, *args: Any, **how: Any) -> Iterable[Segment]:
        """As rich does it; what it writes itself to steer the terminal is marked as such."""
        for segment in super().render(*args, **how):
            text = segment.text if segment.control else visible(segment.text, keep=SEEN)
            yield segment._replace(text=text)

    def print_json(self, text: str) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Print JSON, in ASCII where it holds a character that nobody sees."""
        plain = json.dumps(json.loads(text), ensure_ascii=False)
        super().print_json(text, ensure_ascii=not plain.isprintable())
