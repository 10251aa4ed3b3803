"""What the fields of a config may be: kind, range or choices, and when each has an effect.

The rows of the fields stand in the `settings` of the room that reads them and not in `configs/`,
because a run must be able to check a config without importing the file that made it.
"""

import dataclasses
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from bert_jax.common.errors import UserError
from bert_jax.common.files import from_home

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


def flat(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the fields of a config with their values, by dotted name."""
    for name, value in config.items():
        if hasattr(value, "items"):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


@dataclasses.dataclass(frozen=True)
class Settings:
    """What one kind of config may hold.

    rows: a field for each dotted name of the config.
    together: raises UserError for values that do not go with one another.
    """

    rows: Mapping[str, Field]
    together: Callable[[Any], None] = lambda config: None

    def describes(self, config: Any) -> bool:
        """Says whether a config (None: there is none) has all fields and sections of this kind."""
        return config is not None and all(name.split(".")[0] in config for name in self.rows)

    def check(self, config: Any, chosen: Collection[str] = ()) -> None:
        """Checks every field, alone and with the others, before anything is written.

        chosen: names of fields that the user set to another value than the config file has.
        Raises: UserError, naming a field that cannot be, or a chosen one that has no effect.
        """
        self.check_values(config)
        self.together(config)
        self.check_effects([config], chosen)

    def check_values(self, config: Any) -> None:
        """Raises UserError, naming the field: a value that it cannot have."""
        for name, value in flat(config):
            if name in self.rows and (wrong := self.rows[name].wrong(name, value)):
                raise UserError(wrong)

    def check_effects(self, configs: Sequence[Any], chosen: Collection[str]) -> None:
        """Checks that what the user chose changes something.

        configs: it is enough that a field has an effect in one of them.
        chosen: names of fields that the user set to another value than the config file has.
        Raises: UserError, naming the field and why it has no effect.
        """
        for name in chosen:
            field = self.rows.get(name)
            if field is None:
                continue
            if field.argument:
                raise UserError(f"{name} is given after the colon: --config={field.argument}")
            reasons = [_why_not(field, config) for config in configs]
            if all(reasons):
                raise UserError(f"{name} has no effect {reasons[0]}; leave it out")

    def expand_paths(self, config: Any) -> None:
        """Replaces `~` at the beginning of every path in a config by the home folder."""
        for name, value in flat(config):
            if value and name in self.rows and self.rows[name].kind == "path":
                *sections, last = name.split(".")
                section = config
                for part in sections:
                    section = section[part]
                section[last] = from_home(value)

    def never_reached(self, config: Any, steps: int, chosen: Collection[str]) -> list[str]:
        """Makes a line for each chosen number of steps that a run of so many never reaches."""
        lines = [
            f"note: {name}={config[name]} is over the {steps:,} steps of this run: only its end "
            "counts"
            for name in chosen
            if name in self.rows and self.rows[name].cadence and config[name] > steps
        ]
        if "warmup_steps" in chosen and config.warmup_steps >= steps > 1:
            lines.append(
                f"note: warmup_steps={config.warmup_steps:g} of {steps:,} steps: the learning rate "
                "never comes to its peak"
            )
        return lines


def _why_not(field: Field, config: Any) -> str:
    return next(filter(None, (why(config) for why in field.acts)), "")
