"""The run-time check of shapes and dtypes while testing; mypy checks everything else.

Only hints made with jaxtyping are enforced, so that a fake may stand for a class of ours.
"""

from collections.abc import Callable
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check a function of ours for which jaxtyping's import hook hands over a stand-in."""
    hints = function.__annotations__
    function.__annotations__ = {name: hint for name, hint in hints.items() if _has_array(hint)}
    return beartype(function)


def _has_array(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(map(_has_array, get_args(hint)))
