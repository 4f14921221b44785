"""The program that renders chat templates: a process of its own, with bounds on time and memory.

A chat template is a program that comes with a model. jinja's sandbox keeps it from the machine; it
does not keep `'a' * 10**9` or a loop of loops from taking all of it. So it runs where the system
ends it. One line of JSON in, one line out; the first line in is the template.

Started by file, with nothing of clues imported, so that it starts in a tenth of a second; its
arguments are the seconds of processor time that one line may take, and the date that templates are
told.
"""

import json
import resource
import signal
import sys
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY, MAX_CHARS = 2**29, 2**24


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what an assistant says; here it renders what is inside."""

    tags = {"generation"}  # noqa: RUF012 - as jinja declares it

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        environment.extend(marks=("", ""))

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A block of its own, as with transformers: what is set inside is not seen outside.
        return nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller: Any) -> str:
        before, after = self.environment.marks  # pyright: ignore[reportAttributeAccessIssue]
        return before + caller() + after


class _Dict:
    """`dict(...)` without the attributes of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    """`namespace(...)` that holds no name with an underscore in front: they lead out of jinja."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # pyright: ignore[reportSelfClsParameterName]
        self, *values = args
        content = dict(*values, **kwargs)
        for name in content:
            _refuse_inner(name)
        jinja2.utils.Namespace.__init__(self, content)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_inner(name)
        super().__setitem__(name, value)


def _refuse_inner(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError("a namespace holds no name that begins with _")


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


class _Now:
    """`strftime_now(...)` on one day, so that no text depends on the day it is made on."""

    def __init__(self, day: str) -> None:
        self._at = datetime.fromisoformat(day)

    def __call__(self, pattern: str) -> str:
        return self._at.strftime(pattern)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own writes HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def environment(day: str = "2025-01-01") -> ImmutableSandboxedEnvironment:
    """What chat templates of transformers may use, and no more; a test compares the two.

    Args:
        day: that `strftime_now` knows, as year-month-day.
    """
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = _tojson
    made.globals |= {"raise_exception": _raise, "strftime_now": _Now(day)}
    made.globals |= {"dict": _Dict(), "namespace": _Namespace}
    return made


def _reply(content: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


def _own_words(parsed: nodes.Template) -> set[str]:
    """What a template says when it refuses, where that is written out and no row's text."""
    said: list[nodes.Expr] = []
    for call in parsed.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name == "raise_exception":
            said += call.args
    return {word.value for word in said if isinstance(word, nodes.Const)}


def _failed(error: Exception, words: set[str]) -> dict[str, Any]:
    """The kind of error, and its words only where they are the template's own."""
    said = str(error)
    own = isinstance(error, jinja2.TemplateSyntaxError) or said in words
    return {"error": type(error).__name__, "said": said if own else ""}


def _limited() -> None:
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started us
    # Its default action ends the process, whatever it is doing, in C as in Python.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)


def _marks(line: str) -> tuple[str, str]:
    """Two characters that no text has, and this line least of all; empty where it has them."""
    free = [n for n in range(0xFDD0, 0xFDF0) if f"\\u{n:04x}" not in line]
    return (chr(free[0]), chr(free[1])) if len(free) > 1 else ("", "")


def _rendered(made: jinja2.Template, values: dict[str, Any], line: str) -> dict[str, Any]:
    """The text, and from where to where it was said to be the assistant's."""
    environment: Any = made.environment
    environment.marks = marks = _marks(line)
    text = made.render(values)
    if len(text) > MAX_CHARS:
        return {"error": "too much text"}
    if not marks[0] or marks[0] not in text:
        return {"text": text, "spans": []}
    spans, pieces, at = [], [], 0
    for part in text.split(marks[0]):
        inside, _, outside = part.rpartition(marks[1])
        if marks[1] in part:
            spans.append([at, at + len(inside)])
        pieces += [inside, outside]
        at += len(inside) + len(outside)
    environment.marks = ("", "")
    plain = made.render(values)
    # A template that goes on to change what it marked has marked nothing that can be found.
    return {"text": plain, "spans": spans if "".join(pieces) == plain else []}


def main() -> None:
    """Compile one template, then render it for every line until there are no more."""
    cpu_s, day = float(sys.argv[1]), sys.argv[2]
    _limited()
    words: set[str] = set()
    made: jinja2.Template | None = None
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        values = json.loads(line)
        try:
            if made is None:
                words = _own_words(environment(day).parse(values["template"]))
                made = environment(day).from_string(values["template"])
                reply: dict[str, Any] = {"text": ""}
            else:
                reply = _rendered(made, values, line)
        except (jinja2.TemplateError, ValueError, TypeError, LookupError, AttributeError) as error:
            reply = _failed(error, words)
        except (ArithmeticError, MemoryError, RecursionError) as error:
            reply = _failed(error, words)
        _reply(reply)
        signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    main()
