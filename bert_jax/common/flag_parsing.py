"""From the words of a command line to flags and a config: help, and what is wrong, in one line."""

import ast
import difflib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from bert_jax.common import shipped
from bert_jax.common.errors import UserError, did_you_mean, silence_closed
from bert_jax.common.fields import flat
from bert_jax.common.files import from_home

_HELP = {"--help", "--helpshort", "--helpfull", "--helpxml", "--h", "--?", "-h", "-?"}
_KINDS = {"an integer": "a whole number", "a boolean value": "true or false"}


def parse_flags(argv: Sequence[str], arguments: bool, about: str) -> list[str]:
    """Parses the flags of an entry; `--help` prints `about` and what there is to set, and exits.

    argv: the words, of which the first is the program. arguments: there may be some beside flags.
    Returns: the words that are no flags.
    Raises: UserError: a wrong name, type or value.
    """
    words = [re.sub(r"^-(?=[A-Za-z]\w)", "--", word) for word in argv]
    # ml_collections needs the file before the settings, and reads sys.argv for them.
    if all(re.match("--.*=", word) for word in words[1:]):
        words[1:] = sorted(words[1:], key=lambda word: not _is_config(word))
    words = [_config_word(word) if word.startswith("--config=") else word for word in words]
    if _HELP.intersection(words):
        _print_help(words, about)
    _check_words(words)
    sys.argv[1:] = words[1:]
    try:
        rest = flags.FLAGS(words)
    except UserError:
        raise
    # ml_collections reports a wrong override as a plain Python error of several kinds.
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(_explained(error, words)) from error
    except (SyntaxError, ImportError, NameError) as error:  # in the file of --config
        raise UserError(f"the file of --config cannot be run: {error!r}") from error
    _check_own(words)
    if len(rest) > 1 and not arguments:
        raise UserError(_unexpected(rest[1], words))
    return rest


class _PathParser(flags.ArgumentParser):
    def parse(self, argument: str) -> str:
        return from_home(argument)


def path_flag(name: str, what: str, default: str | None = None, required: bool = False) -> Any:
    """Defines a flag that names a file or folder."""
    return flags.DEFINE(
        _PathParser(), name, default, what, serializer=flags.ArgumentSerializer(), required=required
    )


def _is_config(word: str) -> bool:
    return word.startswith("--config=")


def _config_word(word: str) -> str:
    """Returns `--config=FILE[:ARG]` with the file as it can be found from this folder.

    `configs/NAME.py` is the shipped file where this folder has none of that name.
    Raises: UserError: there is no such file.
    """
    name, colon, arg = from_home(word.removeprefix("--config=")).partition(":")
    ours = shipped.configs() / Path(name).name
    if Path(name).parent == Path("configs") and ours.is_file() and not os.path.exists(name):
        name = str(ours)
    if not name.endswith(".py") or not os.path.isfile(name):
        known = [f"configs/{path.name}" for path in sorted(shipped.configs().glob("*.py"))]
        short = {path.removeprefix("configs/").removesuffix(".py"): path for path in known}
        close = difflib.get_close_matches(Path(name).stem, short, 1)
        guess = f'. Did you mean "{short[close[0]]}"?' if close else ""
        what = "is no config file, which is Python" if os.path.exists(name) else "does not exist"
        raise UserError(f"--config={name} {what}{guess or '. There are ' + ', '.join(known)}")
    return f"--config={name}{colon}{arg}"


def _check_own(words: Sequence[str]) -> None:
    """Checks that the flags are the entry's: those of others are defined with them.

    Raises: UserError: one is not.
    """
    mine = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])}
    for word in words[1:]:
        name = word.partition("=")[0].removeprefix("--")
        name = name if name in flags.FLAGS else name.removeprefix("no")
        if not word.startswith("--") or name not in flags.FLAGS or "." in name:
            continue
        module = flags.FLAGS.find_module_defining_flag(name) or ""
        if name not in mine and module.startswith("bert_jax"):
            raise UserError(_unknown_flag(name, words))


def _check_words(words: Sequence[str]) -> None:
    if any(re.match(r"--(no)?config\.", word) for word in words) and not any(
        word == "--config" or _is_config(word) for word in words
    ):
        raise UserError("--config=FILE is needed, before any --config.NAME=value")
    given: dict[str, str] = {}
    for word in words[1:]:
        if re.search("[\ud800-\udfff]", word):
            raise UserError(f"{word!a} is not UTF-8, as the files that keep it are; rename it")
        if re.match(r"--[\w.]+=(gs|s3|hdfs)://", word):
            raise UserError(f"{word}: mount the bucket, and give its folder (launch/README.md)")
        name, equals, value = word.partition("=")
        if name.startswith("--") and equals:
            if given.setdefault(name, value) != value:
                print(f"note: {name} is given twice; the last one counts: {value}", file=sys.stderr)
            given[name] = value


def _settings(words: Sequence[str]) -> dict[str, Any]:
    """The fields that the config has, by dotted name; none if it cannot be read."""
    file = next((word.removeprefix("--config=") for word in words if _is_config(word)), "")
    if not file or "config" not in flags.FLAGS:
        return {}
    return dict(flat(flags.FLAGS["config"].parser.parse(file)))


def _explained(error: Exception, words: Sequence[str]) -> str:
    """One line on an error of absl or ml_collections."""
    cause: BaseException = error
    while cause.args and isinstance(cause.args[0], BaseException):
        cause = cause.args[0]  # ml_collections wraps the one that speaks
    message = " ".join(str(cause.args[0] if cause.args else cause).split())
    if isinstance(error, flags.UnrecognizedFlagError):
        return _unknown_flag(error.flagname, words)
    if isinstance(error, flags.IllegalFlagValueError):
        name, _, value = message.removeprefix("flag --").partition(": ")[0].partition("=")
        help_ = (
            getattr(flags.FLAGS[name].parser, "syntactic_help", "") if name in flags.FLAGS else ""
        )
        if help_ in ("an integer", "a number", "a boolean value"):
            return f"--{name}={value} must be {_KINDS.get(help_, help_)}"
    if isinstance(cause, (KeyError, AttributeError)):
        known = _settings(words)
        sections = {name.rpartition(".")[0] for name in known}
        for word in words:
            name = re.sub(r"^--(no)?config\.", "", word.partition("=")[0])
            if name != word.partition("=")[0] and name not in known and name not in sections:
                hint = did_you_mean(name, known) or ". The file of --config lists them"
                return f"there is no setting {name!r} in the config{hint}"
    return f"{message} (--help lists the flags)"


def _unknown_flag(name: str, words: Sequence[str]) -> str:
    known = _settings(words)
    if name in known or any(other.endswith(f".{name}") for other in known):
        guess = did_you_mean(name, [name] if name in known else known, "--config.")
    else:
        mine = [flag.name for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])]
        guess = did_you_mean(name, mine, "--") or did_you_mean(name, known, "--config.")
    return f"there is no flag --{name}{guess or ' (--help lists the flags)'}"


def _unexpected(word: str, words: Sequence[str]) -> str:
    before = words[words.index(word) - 1]
    if before.startswith("--") and "=" not in before:
        return f"unexpected argument {word!r}; did you mean {before}={word}?"
    if before.endswith("=") or word.startswith("="):
        return f"unexpected argument {word!r}; there are no spaces around = in --name=value"
    return f"unexpected argument {word!r}; flags are written --name=value"


def _print_help(words: Sequence[str], about: str) -> None:
    """Prints what the entry is, its flags and, with --config=FILE, its settings; and exits."""
    lines = [about.strip(), "", "Flags:"]
    for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
        default = "" if flag.default in (None, "", False) else f" Default: {flag.default_as_str}."
        lines.append(f"  --{flag.name}: {flag.help}{default}")
    if "config" in flags.FLAGS:
        file = next((word.removeprefix("--config=") for word in words if _is_config(word)), "")
        if file:
            text = Path(file.partition(":")[0]).read_text(encoding="utf-8")
            lines += ["", f"{file}:", "", ast.get_docstring(ast.parse(text)) or "", "", "Settings:"]
            lines += [f"  --config.{name}={value}" for name, value in _settings(words).items()]
        else:
            lines.append("--config=FILE --help lists the settings of that file.")
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:
        silence_closed()
    sys.exit(0)
