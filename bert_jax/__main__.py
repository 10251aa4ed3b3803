"""Lists the commands of this package: `python -m bert_jax`."""

import ast
from pathlib import Path

from bert_jax.common import entry, errors

COMMANDS = ("prepare", "main", "finetune", "features", "convert", "score", "plan", "reproduce")


def main(words: list[str]) -> None:
    if words:
        raise errors.UserError(
            f"unexpected argument {words[0]!r}; commands are run as python -m bert_jax.NAME, with "
            f"a name of {', '.join(COMMANDS)}"
        )
    for name in COMMANDS:
        text = (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
        about = (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
        print(f"python -m bert_jax.{name:10} {about}")
    print("Each tells more with --help.")


if __name__ == "__main__":
    entry.run(main, arguments=True)
