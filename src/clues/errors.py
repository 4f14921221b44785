"""Errors that users meet. Each says what was found, where, and what to do; none shows a row."""


class CluesError(Exception):
    """Base of every error that a user can cause and mend."""

    exit_code = 1


class UsageError(CluesError):
    """A verb was called with something it cannot use."""

    exit_code = 2


class ExtraError(UsageError):
    """A library that only an extra installs is missing, or of a version that does not fit."""


class ConfigError(CluesError):
    """A configuration file or value cannot be used."""

    exit_code = 2


class DataError(CluesError):
    """A data file, a row or a model folder cannot be used."""

    exit_code = 3


class BadRowsError(DataError):
    """Rows of a file cannot be used.

    Attributes:
        source: the file or folder, as it was named.
        rows: of every bad row where it lies and why it is bad, never its text.
    """

    def __init__(self, text: str, source: str = "", rows: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(text)
        self.source, self.rows = source, rows


class TurnsError(DataError):
    """A row's turns come in an order, or with a role, that the chat template does not take."""


class RecipeMismatchError(CluesError):
    """Two things that must come from one recipe come from two."""

    exit_code = 4


class DegenerateSelectionError(DataError):
    """A selection keeps no row, or every row."""


class QuorumError(DataError):
    """Too few silos are left to go on."""


class ApprovalError(CluesError):
    """A person has to approve before a silo goes on."""

    exit_code = 7


class LedgerError(CluesError):
    """The record of what left a silo is broken or contradicts itself."""

    exit_code = 5


class NumericsError(CluesError):
    """A number is NaN or infinite where a finite one is needed."""

    exit_code = 6


class KeyFileError(ConfigError):
    """A key or a certificate is missing or cannot be used."""


class NetworkError(CluesError):
    """A machine cannot be reached, refuses us, or a program of the network ended."""

    exit_code = 8


class ClusterError(CluesError):
    """A silo's Ray cluster does not answer, or its workers cannot do the work."""

    exit_code = 8
