"""What is wrong with figures that were read, in a few words and without their content."""

from pydantic import ValidationError


def first_problem(error: ValidationError) -> str:
    """The first thing that does not fit, and how many more there are."""
    problems = error.errors(include_input=False, include_url=False, include_context=False)
    first = problems[0]
    place = ".".join(_plain(str(part)) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        said = f"unknown key {place}"
    elif first["type"] == "missing":
        said = f"key {place} is missing"
    else:
        said = f"{place}: {first['msg'][0].lower()}{first['msg'][1:]}" if place else first["msg"]
    more = len(problems) - 1
    return f"{said}, and {more} more" if more else said


def _plain(text: str) -> str:
    """A key that a file or a silo made up, so that it cannot spoil a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text[:60])
