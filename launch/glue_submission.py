"""Packs the test predictions of fine-tuned models into one zip file for the GLUE leaderboard.

  python launch/glue_submission.py --out=glue.zip runs/cola runs/mrpc runs/mnli ...

Each folder is a work directory whose run found the official test.tsv, or one that holds the files.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bert_jax.common import entry
from bert_jax.common.command_line import OUT
from bert_jax.common.errors import UserError
from bert_jax.tasks.glue import zip_submission


def main(names: Sequence[str]) -> None:
    if not names:
        raise UserError("name the work directories: --out=glue.zip runs/cola runs/mrpc ...")
    given = [Path(name) for name in names]
    unknown = [str(folder) for folder in given if not folder.is_dir()]
    if unknown:
        raise UserError(f"not a folder: {', '.join(unknown)}")
    # Both what training left and what mode=predict did, and the folders themselves.
    nested = [Path("predictions"), Path("predict/predictions")]
    folders = [folder / name for folder in given for name in (Path("."), *nested)]
    out = OUT.value or "glue.zip"
    missing = zip_submission([folder for folder in folders if folder.is_dir()], Path(out))
    print(f"wrote {out}")
    if missing:
        print(f"the leaderboard also wants {', '.join(missing)}")


if __name__ == "__main__":
    entry.run(main, arguments=True)
