"""Raw text to a corpus: vocabulary, tokenised documents, held-out split.

  python -m bert_jax.prepare --config=configs/prepare.py:source=text \
      --config.input='a/**/*.txt,b/*.md' --out=CORPUS

A killed run goes on where it stopped when started again. See configs/prepare.py for the settings
and bert_jax/data/corpus.py for what is written. --runner makes the same corpus on many machines.
"""

from pathlib import Path

from absl import flags

from bert_jax.common import entry
from bert_jax.common.command_line import CONFIG, OUT, changed, read_config
from bert_jax.common.errors import UserError
from bert_jax.common.outputs import check_folder
from bert_jax.preparing.beam import Beam
from bert_jax.preparing.build import prepare
from bert_jax.preparing.settings import PREPARE

_RUNNER = flags.DEFINE_string(
    "runner",
    None,
    "Apache Beam runner that makes the corpus (DirectRunner, DataflowRunner, FlinkRunner, "
    "SparkRunner, ...) in place of processes of this machine. The input and --out must be on a "
    "file system that all workers mount at the same path (NFS, or a mounted bucket), and the "
    "workers need this package (a container image, or Beam's --setup_file).",
)
_BEAM_OPTIONS = flags.DEFINE_string(
    "beam_options", "", "Options of the Beam pipeline, e.g. '--project=P --region=R'."
)


def main() -> None:
    config = read_config(CONFIG, PREPARE)
    if config is None or not OUT.value:
        raise UserError("give --config=configs/prepare.py and --out=FOLDER")
    if _BEAM_OPTIONS.value and not _RUNNER.value:
        raise UserError("--beam_options needs --runner")
    PREPARE.check(config, changed())
    if _RUNNER.value and "workers" in changed():
        raise UserError("workers has no effect with --runner: its own options say how many")
    beam = Beam(_RUNNER.value, _BEAM_OPTIONS.value) if _RUNNER.value else None
    try:
        prepare(config, check_folder(Path(OUT.value), "--out"), beam=beam)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt("stopped; the same command goes on from here") from interrupt


if __name__ == "__main__":
    entry.run(main)
