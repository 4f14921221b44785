"""What every group of settings is: strict, frozen, and silent about its input."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

BUILT_IN = "built-in"
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"
LOSS = "loss"  # name of the part of a score that is the row's own loss
ALIGNMENT = "alignment"  # and of the one that says how much its question helps
REJECT = "reject"  # and of the one that says how far it is from rows as they must not be


def check_name(name: str, what: str = "") -> str:
    """Return a name that can be a folder, a file and a key, as it is; `what` it names, for errors.

    Raises:
        ValueError: it cannot be one; says what may stand in a name and suggests one that can be.
    """
    if re.fullmatch(NAME, name):
        return name
    close = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-_.")[:63]
    raise ValueError(
        f"{name[:80]!r} cannot be {f'the name of {what}' if what else 'a name'}: letters, digits, '-', '_' and '.', beginning with a "
        "letter or digit, at most 63 in all"
        + (f". Call it {close!r}, for instance" if close else "")
    )


Name = Annotated[str, AfterValidator(check_name)]
# Far above what anybody means and far below what overflows, never ends or fills a memory.
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Steps = Annotated[int, Field(ge=1, le=1_000_000)]
Rounds = Annotated[int, Field(ge=1, le=10_000)]
Seconds = Annotated[float, Field(gt=0.0, le=31_536_000.0)]  # a year
Factor = Annotated[float, Field(ge=1e-9, le=1e6)]
FactorOrZero = Annotated[float, Field(ge=0.0, le=1e6)]
Share = Annotated[float, Field(ge=1e-4, le=0.9999)]


class Settings(BaseModel):
    """Frozen; an unknown key is an error; input never shows in an error."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
        str_max_length=4096,  # of a path on Linux; nothing that is longer is a setting
    )
