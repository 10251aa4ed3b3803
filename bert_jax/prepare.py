"""Raw text to a corpus: vocabulary, tokenised documents, held-out split.

  python -m bert_jax.prepare --config=configs/prepare.py:source=text \
      --config.input='a/**/*.txt,b/*.md' --out=CORPUS

A killed run goes on where it stopped when started again. See configs/prepare.py for the settings
and bert_jax/data/corpus.py for what is written.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from bert_jax import errors
from bert_jax.command_line import CONFIG
from bert_jax.data.build import prepare
from bert_jax.errors import UserError

_OUT = flags.DEFINE_string("out", None, "Folder of the corpus to make.")


def main(argv: Sequence[str]) -> None:
    """The command."""
    del argv
    if CONFIG.value is None or not _OUT.value:
        raise UserError("give --config=configs/prepare.py and --out=FOLDER")
    try:
        prepare(CONFIG.value, Path(_OUT.value))
    except OSError as error:  # disk full, no permission
        where = f"{error.filename}: " if error.filename else ""
        raise UserError(f"{where}{error.strerror or error}") from error
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    errors.run(main)
