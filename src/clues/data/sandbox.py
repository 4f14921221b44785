"""The program that renders chat templates: a process of its own, with bounds on time and memory.

A chat template is a program that comes with a model. jinja's sandbox keeps it from the machine; it
does not keep `'a' * 10**9` or a loop of loops from taking all of it. So it runs where the system
ends it. One line of JSON in, one line out; the first line in is the template.

Started by file, with nothing of clues imported, so that it starts in a tenth of a second; its one
argument is the seconds of processor time that one line may take.
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

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A block of its own, as with transformers: what is set inside is not seen outside.
        return nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller: Any) -> str:
        return caller()


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


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


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


def environment() -> ImmutableSandboxedEnvironment:
    """What chat templates of transformers may use, and no more; a test compares the two."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = _tojson
    made.globals |= {"raise_exception": _raise, "strftime_now": _now}
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


def main() -> None:
    """Compile one template, then render it for every line until there are no more."""
    cpu_s = float(sys.argv[1])
    _limited()
    words: set[str] = set()
    made: jinja2.Template | None = None
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        values = json.loads(line)
        try:
            if made is None:
                words = _own_words(environment().parse(values["template"]))
                made = environment().from_string(values["template"])
                reply: dict[str, Any] = {"text": ""}
            else:
                text = made.render(values)
                reply = {"text": text} if len(text) <= MAX_CHARS else {"error": "too much text"}
        except (jinja2.TemplateError, ValueError, TypeError, LookupError, AttributeError) as error:
            reply = _failed(error, words)
        except (ArithmeticError, MemoryError, RecursionError) as error:
            reply = _failed(error, words)
        _reply(reply)
        signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    main()
