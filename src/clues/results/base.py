"""What every group of figures is: frozen, strict, and silent about its input."""

from pydantic import BaseModel, ConfigDict


class Figures(BaseModel):
    """Frozen; another type or an unknown key is an error; input never shows in an error.

    A key that may be absent is None where it is read, and is not written where it was not set.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)
