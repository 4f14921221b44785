"""A file of rows as settings name it: where it lies, and which of its columns hold what."""

from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from clues.config.base import Settings
from clues.config.columns import Columns


class RowsFile(Settings):
    """A file of rows.

    Attributes:
        path: the file; a relative path starts at the configuration's folder.
        schema_name: which columns hold prompt and response, where several schemas fit: alpaca,
            sharegpt, messages, prompt_completion, preference, multiple_choice.
        columns: the file's own names by what they hold, such as `{prompt: question, context:
            passage}`; null for a column that is not to be read. Others count under their names.
    """

    # Settings travel and are stored under the name in Python; people write `schema`.
    model_config = ConfigDict(populate_by_name=True)

    path: Path
    # Unset, they are not written: recipes that never heard of them keep their hash.
    schema_name: str | None = Field(
        default=None, alias="schema", exclude_if=lambda value: value is None
    )
    columns: Columns | None = Field(default=None, exclude_if=lambda value: value is None)

    @property
    def how(self) -> dict[str, Any]:
        """How the file is read beside where it lies, as plain JSON; empty where nothing is said."""
        return self.model_dump(mode="json", include={"schema_name", "columns"})
