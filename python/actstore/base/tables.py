"""Rows for data frame libraries: polars, pandas and pyarrow, imported only when asked for."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from ..errors import InvalidInputError


class Table(ABC):
    """Something with columns of equal length."""

    __slots__ = ()

    @abstractmethod
    def to_columns(self) -> Mapping[str, Any]:
        """The columns by name: 1-D arrays or lists of equal length."""

    def to_polars(self) -> Any:
        """A ``polars.DataFrame`` of `to_columns`; InvalidInputError without polars."""
        return _library("polars", "to_polars").DataFrame(dict(self.to_columns()))

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` of `to_columns`; InvalidInputError without pandas."""
        return _library("pandas", "to_pandas").DataFrame(dict(self.to_columns()))

    def to_arrow(self) -> Any:
        """A ``pyarrow.Table`` of `to_columns`; InvalidInputError without pyarrow."""
        return _library("pyarrow", "to_arrow").table(dict(self.to_columns()))


def _library(name: str, method: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InvalidInputError(f"{method} needs {name}", hint=f"pip install {name}") from error
