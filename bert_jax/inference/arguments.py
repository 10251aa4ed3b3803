"""Checks of what is given to the methods of a loaded model, as files are checked when read.

Each check returns what it was given in one form, or raises a UserError that says which text it is:
`texts[2]` is the third.
"""

import math
import numbers
from collections.abc import Mapping, Sequence, Set
from typing import Any

from bert_jax.common.errors import UserError


def as_list(values: Any, what: str = "texts", of: str = "texts (or of pairs)") -> list[Any]:
    """Checks that `values` has an order, and is not one string or a mapping.

    what: its name in the method. of: what it holds.
    """
    if isinstance(values, str):  # whose letters would be taken for texts
        raise UserError(f"a list of {of} is expected, not one string")
    try:
        if isinstance(values, bytes | Mapping | Set):
            raise TypeError
        return list(values)
    except TypeError:
        raise UserError(f"{what}: a list of {of} is expected, not {_kind(values)}") from None


def a_text(value: Any, what: str) -> str:
    """Checks that a value is a text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise UserError(f"{what} must be a text, not {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{what} holds half a surrogate pair at character {error.start}; repair it"
        ) from None
    return str(value)


def text_or_pair(value: Any, what: str) -> tuple[str, ...]:
    """Checks that a value is a text, or a pair of texts."""
    if isinstance(value, str):
        return (a_text(value, what),)
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise UserError(f"{what} must be a text or a pair of texts, not {_kind(value)}")
    if len(value) not in (1, 2):
        raise UserError(
            f"{what}: a text or a pair of texts is expected, not {value!r:.80}, which is none"
        )
    return tuple(a_text(text, f"{what}[{place}]") for place, text in enumerate(value))


def texts_or_pairs(values: Any) -> list[tuple[str, ...]]:
    """Checks that a value is a list of texts or pairs of texts."""
    return [text_or_pair(v, f"texts[{place}]") for place, v in enumerate(as_list(values))]


def list_of_texts(values: Any, what: str, of: str) -> list[str]:
    """Checks that a value is a list of texts; what, of: as in `as_list`."""
    found = as_list(values, what, of)
    return [a_text(value, f"{what}[{place}]") for place, value in enumerate(found)]


def whole(value: Any, name: str) -> int:
    """Checks that a value is a whole number."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise UserError(f"{name}={value!r:.80} must be a whole number")
    return int(value)


def at_least(value: Any, name: str, least: int = 1) -> int:
    """Checks that a value is a whole number that is not below `least`."""
    if whole(value, name) < least:
        raise UserError(f"{name}={value} must be at least {least}")
    return int(value)


def a_number(value: Any, name: str) -> float:
    """Checks that a value is a number (which may be infinite)."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or math.isnan(value):
        raise UserError(f"{name}={value!r:.80} must be a number")
    return float(value)


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__} ({value!r:.80})"
