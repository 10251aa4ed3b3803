"""Runs a command of this package, or lists them: `bert-jax COMMAND`, `python -m bert_jax COMMAND`.

`bert-jax pretrain ...` is `python -m bert_jax.main ...`; the other commands have the names of their
modules. JAX is imported by the command, not here.
"""

import ast
import runpy
import sys
from pathlib import Path

import bert_jax
from bert_jax.common import entry, errors

COMMANDS = {  # name: module
    "prepare": "prepare",
    "pretrain": "main",
    "finetune": "finetune",
    "features": "features",
    "convert": "convert",
    "score": "score",
    "plan": "plan",
    "reproduce": "reproduce",
}
_HELP = ("--help", "-h", "-help")


def run() -> None:
    """Runs the command that the first word names, as `python -m` runs its module."""
    words = sys.argv[1:]
    module = {**COMMANDS, "main": "main"}.get(words[0]) if words else None
    if module:
        sys.argv[1:] = words[1:]
        runpy.run_module(f"bert_jax.{module}", run_name="__main__", alter_sys=True)
    else:
        sys.argv[1:] = []  # ours are no flags
        entry.run(lambda: _answer(words))


def _answer(words: list[str]) -> None:
    """Lists the commands, or says the version or what is wrong."""
    if words[:1] == ["--version"]:
        print(f"bert_jax {bert_jax.__version__}")
    elif words and words[0] not in _HELP:
        hint = errors.did_you_mean(words[0], COMMANDS) or f"; there are {', '.join(COMMANDS)}"
        raise errors.UserError(f"there is no command {words[0]!r}{hint}")
    else:
        print("bert-jax COMMAND, or python -m bert_jax COMMAND:\n")
        for name, module in COMMANDS.items():
            text = (Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8")
            about = (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
            print(f"  {name:10} {about}")
        print("\nEach tells more with --help. python -m bert_jax.main is pretrain; the others are")
        print("modules of their own names: python -m bert_jax.finetune.")


if __name__ == "__main__":
    run()
