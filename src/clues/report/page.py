"""How pages are made from templates: escaped, complete, and with one look."""

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined


@cache
def environment() -> Environment:
    """Templates that escape every text and refuse an undefined name."""
    return Environment(
        loader=PackageLoader("clues", "report/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
