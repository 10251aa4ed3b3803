"""Arguments of config files (`--config=configs/pretrain.py:size=base,seq=128`), typed and checked."""

import types
from typing import Any

from bert_jax.errors import UserError

_BOOLS = {"true": True, "false": False, "1": True, "0": False}


def parse_arg(arg: str | None, **defaults: Any) -> types.SimpleNamespace:
    """Parses the part of `--config=FILE:ARG` after the colon.

    Args:
      arg: comma-separated `name=value`; a bare `name` sets a boolean to true.
      **defaults: every argument the config knows. A value is converted to its default's type.

    Returns: the arguments as attributes.
    Raises:
      UserError: an unknown name, or a value that is not of the default's type.
    """
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        name, given, text = item.partition("=")
        if name not in defaults:
            raise UserError(
                f"config argument {name!r} is unknown; known: {', '.join(defaults) or 'none'}"
            )
        kind = type(defaults[name])
        try:
            if kind is bool:
                values[name] = _BOOLS[text.lower()] if given else True
            else:
                if not given:
                    raise ValueError
                values[name] = kind(text)
        except (KeyError, ValueError):
            raise UserError(
                f"config argument {item!r}: {name} takes a value of type {kind.__name__}"
            ) from None
    return types.SimpleNamespace(**values)
