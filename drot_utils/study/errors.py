"""What goes wrong, said so that a reader can act: what was expected, what was found, where, what to do."""

import copyreg
import errno
import re
from typing import Any


class DrotError(Exception):
    """Base of every error this package raises on purpose.

    Parameters
    ----------
    found : str
        And what was expected instead.
    where : str, optional
        File, line, row or key.
    todo : str, optional
        What the reader can do about it.
    """

    def __init__(self, found: str, *, where: str = "", todo: str = "") -> None:
        super().__init__(found, where, todo)
        self.found, self.where, self.todo = found, where, todo

    def __reduce__(self) -> tuple[Any, ...]:
        # What a worker process sends back: made without `__init__`, which takes not all by place.
        return copyreg.__newobj__, (type(self), *self.args), vars(self)

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        todo = f"\n  what to do: {self.todo}" if self.todo else ""
        return f"{where}{self.found}{todo}"


class ParamsError(DrotError):
    """A parameter file or an override that does not fit the schema."""


class DataError(DrotError):
    """A corpus, table or form that does not have the promised columns or values."""


class MissingInputError(DrotError):
    """A notebook was run before the one that makes its input."""


class ModelError(DrotError):
    """Weights that are missing, not the pinned ones, or in a refused format."""


class EndpointError(DrotError):
    """A server could not be asked, does not answer as it should, or may not be asked for a response that is missing."""


class BudgetError(EndpointError):
    """`requests.budget_usd` is spent, or less than what is forecast, or what it would cost is not known."""


class StorageError(DrotError):
    """The disk refused a write; what was written before is kept."""


def wrap_damage(error: Exception, place: object) -> ModelError:
    """Return an error, to be raised ``from error``, that says of the weights in `place` that they cannot be read."""
    todo = "remove this folder (or what was downloaded), then run again what makes it"
    return ModelError(f"weights are damaged ({error})", where=str(place), todo=todo)


def wrap_os_error(error: Exception, path: object) -> StorageError:
    """Return an error, to be raised ``from error``, that says what a failed write to `path` means for the study."""
    said = re.search(r"os error (\d+)", str(error))  # so safetensors keeps the number
    number = int(said[1]) if said else getattr(error, "errno", None)
    todo = "check that the folder exists and may be written (DROT_OUTPUT names another place for all that a run writes)"
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        todo = "free some space"
    said = getattr(error, "strerror", None) or error
    found = f"could not be written ({said}); the half-written file was removed and nothing else was touched"
    todo = f"{todo}, then run the same command again: it continues where it stopped"
    return StorageError(found, where=str(path), todo=todo)
