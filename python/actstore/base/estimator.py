"""The base class of estimators. It follows the conventions of scikit-learn without importing it."""

import inspect
from typing import Any, Self

from ..errors import InvalidInputError


class Estimator:
    """Parameters by name, so that ``sklearn.base.clone``, pipelines and grid searches work.

    A subclass assigns each argument of its constructor, unchanged, to an attribute of the same name. The
    names of fitted attributes end in an underscore.
    """

    @classmethod
    def _parameters(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments by name."""
        return {name: getattr(self, name) for name in self._parameters()}

    def set_params(self, **params: Any) -> Self:
        """Change arguments of the constructor; InvalidInputError for a name that it does not have."""
        known = self._parameters()
        for name, value in params.items():
            if name not in known:
                raise InvalidInputError(
                    f"{type(self).__name__} has no parameter {name!r}, it has: {', '.join(known)}"
                )
            setattr(self, name, value)
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return any(name.endswith("_") and not name.startswith("_") for name in vars(self))

    def check_fitted(self) -> None:
        """Raise InvalidInputError before `fit` was called."""
        if not self.__sklearn_is_fitted__():
            raise InvalidInputError(f"this {type(self).__name__} is not fitted", hint="call fit first")

    def __repr__(self) -> str:
        signature = inspect.signature(type(self).__init__).parameters
        changed = [
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if value != signature[name].default
        ]
        return f"{type(self).__name__}({', '.join(changed)})"
