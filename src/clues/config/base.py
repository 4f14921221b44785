"""What every group of settings is: strict, frozen, and silent about its input."""

from pydantic import BaseModel, ConfigDict

BUILT_IN = "built-in"
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"
LOSS = "loss"  # name of the part of a score that is the row's own loss
ALIGNMENT = "alignment"  # and of the one that says how much its question helps


class Settings(BaseModel):
    """Frozen; an unknown key is an error; input never shows in an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
