"""What somebody else has written neither steers a terminal nor floods it, and nothing of it is lost."""

import json

import pytest
from rich.table import Table
from rich.text import Text

from clues.cli.terminal import Shown

STEERS = ("\x1b]0;title\x07", "\x1b[2J", "\x9b31m", "\u202eabc", "\u2028", "\r", "\x00", "\u200b")


def printed(capsys, *objects, **how) -> str:
    Shown().print(*objects, **how)
    return capsys.readouterr().out


@pytest.mark.parametrize("text", STEERS, ids=ascii)
def test_no_character_steers_the_terminal_whatever_carries_it(capsys, text):
    grid = Table(title=Text(text))
    grid.add_column(text)
    grid.add_row(text)
    for shown in (f"a{text}b", Text(f"a{text}b", style="red"), grid):
        out = printed(capsys, shown, highlight=False)
        assert all(c.isprintable() or c == "\n" for c in out), ascii(out)
    assert "\\u" in printed(capsys, "\x1b[2J")


@pytest.mark.parametrize("text", STEERS, ids=ascii)
def test_json_stays_json_of_the_same_value(capsys, text):
    value = {"name": text + "\U000e0001", "more": ["cl\u00ednica"]}
    Shown().print_json(json.dumps(value))
    out = capsys.readouterr().out
    assert json.loads(out) == value
    assert all(c.isprintable() or c == "\n" for c in out), ascii(out)


def test_text_of_every_script_is_shown_as_it_is(capsys):
    for text in (
        "cl\u00ednica",
        "na\u00efve\u00a0?",
        "\u533b\u9662\u3000\u4e00",
        "[red]x[/red]",
        "\U0001f600",
    ):
        assert printed(capsys, text, highlight=False) == f"{text}\n"
    Shown().print_json(json.dumps({"name": "cl\u00ednica"}))
    assert "cl\u00ednica" in capsys.readouterr().out
