"""What a field of a config may be: its kind, its range or choices, and when it has an effect."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

_LARGEST = 2**31 - 1  # steps and sizes are int32 on the devices
_FINITE = 3.4e38  # in float32
# Of a config: "" where a field has an effect, else why not, to be read after "has no effect".
Acts = Callable[[Any], str]


@dataclasses.dataclass(frozen=True)
class Field:
    """What a field may be.

    kind: number, text, path, patterns (paths or glob patterns separated by commas) or switch.
    least, above, most, below: the ends of the range of a number; None: it has no such end.
    choices: the texts that it may be; empty: any.
    acts: each says why the field has no effect, or "".
    cadence: it is a number of steps, of which one that the run never reaches is pointless.
    argument: others follow from it, so it is given after the colon of --config, in this form.
    """

    kind: str
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    acts: tuple[Acts, ...] = ()
    cadence: bool = False
    argument: str = ""

    def wrong(self, name: str, value: Any) -> str:
        """What is wrong with a value, as a sentence that names the field; "" if nothing is."""
        if self.kind == "number":
            return self._wrong_number(name, value)
        if self.choices and value not in self.choices:
            return f"{name} is {value!r}; known: {', '.join(filter(None, self.choices))}"
        if self.kind == "path" and value and not value.startswith("tfds:"):
            return _wrong_path(name, value)
        if self.kind == "patterns" and value:
            parts = [part.strip() for part in value.split(",")]
            if not all(parts) or len(set(parts)) < len(parts):
                return f"{name}={value}: a pattern between the commas is empty, or comes twice"
        return ""

    def _wrong_number(self, name: str, value: float) -> str:
        shown = f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        finite = " and finite" if self.most == _FINITE else ""
        top = finite or (
            f" and at most {self.most:.0f}" if self.most not in (None, _LARGEST) else ""
        )
        if self.above is not None and not value > self.above:  # nor is nan
            return f"{shown} must be above {self.above:g}{top}"
        if self.least is not None and not value >= self.least:
            return f"{shown} must be at least {self.least:g}{top}"
        if self.below is not None and not value < self.below:
            return f"{shown} must be below {self.below:g}"
        if self.most is not None and not value <= self.most:
            return f"{shown} must be {'finite' if finite else f'at most {self.most:.0f}'}"
        return ""


def _wrong_path(name: str, value: str) -> str:
    """Why the system cannot look for a path at all; that it does not exist is for others to say."""
    try:
        os.stat(value)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # too long, a circle of links, a NUL
        return f"{name}={value[:80]} cannot be a path: {getattr(error, 'strerror', error)}"
    return ""


def whole(least: int, most: int = _LARGEST, cadence: bool = False, acts: Any = ()) -> Field:
    """A whole number."""
    return Field("number", least=least, most=most, acts=_several(acts), cadence=cadence)


def number(
    least: float | None = None,
    above: float | None = None,
    most: float | None = _FINITE,
    below: float | None = None,
    acts: Any = (),
) -> Field:
    """A real number; without `most` and `below` a finite one."""
    most = None if below is not None else most
    return Field("number", least, above, most, below, acts=_several(acts))


def one_of(*choices: str, acts: Any = (), argument: str = "") -> Field:
    """One of some texts."""
    return Field("text", choices=choices, acts=_several(acts), argument=argument)


def text(acts: Any = ()) -> Field:
    """Any text."""
    return Field("text", acts=_several(acts))


def path(acts: Any = ()) -> Field:
    """A file or folder, or tfds:NAME; empty: none."""
    return Field("path", acts=_several(acts))


def switch(acts: Any = ()) -> Field:
    """True or false."""
    return Field("switch", acts=_several(acts))


def _several(acts: Any) -> tuple[Acts, ...]:
    return (acts,) if callable(acts) else tuple(acts)
