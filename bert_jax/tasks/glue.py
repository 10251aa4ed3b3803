"""GLUE (Wang et al. 2018) and SNLI: the original files, TFDS's, and the leaderboard's."""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

from bert_jax.common.errors import UserError
from bert_jax.common.files import write_whole
from bert_jax.common.outputs import check_output
from bert_jax.tasks.classification import Classification
from bert_jax.tasks.rows import column, number, read_rows

_TSV = (("train", "train.tsv"), ("dev", "dev.tsv"), ("test", "test.tsv"))
_SENTENCES = (("sentence1",), ("sentence2",))
_PREMISE = (("sentence1", "premise"), ("sentence2", "hypothesis"))
_NLI = ("contradiction", "entailment", "neutral")
_ENTAILMENT = ("entailment", "not_entailment")
_01 = ("0", "1")

# The metrics are those of the leaderboard, the one of the BERT paper's dev results first.
TASKS = (
    Classification(
        name="cola",
        files=_TSV,
        texts=(("sentence",),),
        header=("source", "label", "mark", "sentence"),
        labels=("unacceptable", "acceptable"),
        codes=_01,
        metrics=("mcc", "accuracy"),
        submissions=(("test", "CoLA.tsv"),),
    ),
    Classification(
        name="sst2",
        files=_TSV,
        texts=(("sentence",),),
        labels=("negative", "positive"),
        codes=_01,
        submissions=(("test", "SST-2.tsv"),),
    ),
    Classification(
        name="mrpc",
        files=_TSV,
        texts=(("#1 String", "sentence1"), ("#2 String", "sentence2")),
        label=(("Quality", "label"),),
        labels=("not_equivalent", "equivalent"),
        codes=_01,
        metrics=("f1", "accuracy"),
        submissions=(("test", "MRPC.tsv"),),
    ),
    Classification(
        name="stsb",
        files=_TSV,
        texts=_SENTENCES,
        label=(("score", "label"),),
        kind="numbers",
        metrics=("spearman", "pearson", "squared_error"),
        submissions=(("test", "STS-B.tsv"),),
    ),
    Classification(
        name="qqp",
        files=_TSV,
        texts=(("question1",), ("question2",)),
        label=(("is_duplicate", "label"),),
        labels=("not_duplicate", "duplicate"),
        codes=_01,
        metrics=("f1", "accuracy"),
        submissions=(("test", "QQP.tsv"),),
        lenient=True,
    ),
    Classification(
        name="mnli",
        files=(
            ("train", "train.tsv", "multinli_1.0_train.jsonl"),
            ("dev", "dev_matched.tsv", "multinli_1.0_dev_matched.jsonl", "dev.jsonl"),
            ("dev_mismatched", "dev_mismatched.tsv", "multinli_1.0_dev_mismatched.jsonl"),
            ("test", "test_matched.tsv"),
            ("test_mismatched", "test_mismatched.tsv"),
            ("ax", "diagnostic.tsv", "../diagnostic/diagnostic.tsv"),
        ),
        texts=_PREMISE,
        label=(("gold_label", "label"),),
        labels=_NLI,
        submissions=(
            ("test", "MNLI-m.tsv"),
            ("test_mismatched", "MNLI-mm.tsv"),
            ("ax", "AX.tsv"),
        ),
        ignored=("-",),
    ),
    Classification(
        name="qnli",
        files=_TSV,
        texts=(("question",), ("sentence",)),
        labels=_ENTAILMENT,
        submissions=(("test", "QNLI.tsv"),),
    ),
    Classification(
        name="rte",
        files=_TSV,
        texts=_SENTENCES,
        labels=_ENTAILMENT,
        submissions=(("test", "RTE.tsv"),),
    ),
    Classification(
        name="wnli",
        files=_TSV,
        texts=_SENTENCES,
        labels=("not_entailment", "entailment"),
        codes=_01,
        submissions=(("test", "WNLI.tsv"),),
    ),
    Classification(
        name="snli",
        files=(
            ("train", "snli_1.0_train.jsonl", "train.jsonl"),
            ("dev", "snli_1.0_dev.jsonl", "dev.jsonl"),
            ("test", "snli_1.0_test.jsonl", "test.jsonl"),
        ),
        texts=_PREMISE,
        label=(("gold_label", "label"),),
        labels=_NLI,
        ignored=("-", ""),
    ),
)

# Examples of the test sets, as the leaderboard counts them.
_SIZES = {
    "CoLA.tsv": 1063,
    "SST-2.tsv": 1821,
    "MRPC.tsv": 1725,
    "STS-B.tsv": 1379,
    "QQP.tsv": 390965,
    "MNLI-m.tsv": 9796,
    "MNLI-mm.tsv": 9847,
    "QNLI.tsv": 5463,
    "RTE.tsv": 3000,
    "WNLI.tsv": 146,
    "AX.tsv": 1104,
}


def zip_submission(folders: Sequence[Path], out: Path) -> list[str]:
    """Packs the leaderboard's files in the prediction folders, checked, into the zip file `out`.

    Returns: the files that are missing; the leaderboard takes only a zip file with all.
    Raises: UserError: a file is in two folders, or not what the leaderboard expects; no file; `out`
      holds something else.
    """
    out = check_output(out, _is_ours, option="--out")
    packed = io.BytesIO()
    missing = []
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, size in _SIZES.items():
            paths = [folder / name for folder in folders if (folder / name).is_file()]
            if len(paths) > 1:
                raise UserError(f"{name} is there twice: {paths[0]} and {paths[1]}; leave one out")
            if not paths:
                missing.append(name)
                continue
            _check_submission(paths[0], size)
            # Without the time, so that the same predictions give the same file.
            archive.writestr(zipfile.ZipInfo(name), paths[0].read_bytes(), zipfile.ZIP_DEFLATED)
    if len(missing) == len(_SIZES):
        raise UserError(f"none of {', '.join(_SIZES)} is in {', '.join(map(str, folders))}")
    write_whole(out, packed.getvalue())
    return missing


def _is_ours(path: Path) -> bool:
    """Says whether a file is such a zip file, so that a new one may replace it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist()) <= _SIZES.keys()


def _check_submission(path: Path, size: int) -> None:
    """Raises UserError unless it has `size` rows index, prediction with labels of its task."""
    task = next(task for task in TASKS if path.name in dict(task.submissions).values())
    known = task.codes or task.labels
    count = 0
    for count, row in enumerate(read_rows(path), 1):
        where, fields = row
        if list(fields) != ["index", "prediction"]:
            raise UserError(f"{path}:1: the header must be index, prediction")
        if column(row, "index") != str(count - 1):
            raise UserError(f"{where}: the index must be {count - 1}")
        text = column(row, "prediction")
        if known and text not in known:
            raise UserError(f"{where}: the label {text!r} is unknown; known: {', '.join(known)}")
        if not known:
            number(where, text)
    if count != size:
        raise UserError(f"{path}: {count} predictions; the test set has {size} examples")
