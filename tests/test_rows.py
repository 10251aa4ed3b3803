"""Tables: GLUE's quirks, quoting, nesting, TFDS, and what is wrong with a file told with its line.

The TFDS set of `nested` is made in a process of its own, as its builder would stay registered.
"""

import bz2
import gzip
import io
import lzma
import subprocess
import sys

import pytest
import zstandard

from bert_jax.common.errors import UserError
from bert_jax.tasks.base import Source
from bert_jax.tasks.rows import column, flat, read_rows, read_tfds


def rows(path, data, **options):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return [fields for _, fields in read_rows(path, **options)]


# Formats.


def test_tsv_has_no_quoting(tmp_path):
    text = 'a\tb\n"x\ty"\n""\t"he said ""no""\nz\'\t\\t\n'
    assert rows(tmp_path / "a.tsv", text) == [
        {"a": '"x', "b": 'y"'},
        {"a": '""', "b": '"he said ""no""'},
        {"a": "z'", "b": "\\t"},
    ]


def test_line_ends_may_be_mixed_and_a_byte_order_mark_is_no_text(tmp_path):
    data = b"\xef\xbb\xbfa\tb\r\n1\t2\n3\t4\r\n\r\n\n5\t"
    expected = [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}, {"a": "5", "b": ""}]
    assert rows(tmp_path / "a.txt", data) == expected
    assert rows(tmp_path / "a.csv", data.replace(b"\t", b",")) == expected


@pytest.mark.parametrize("character", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_only_line_feeds_end_a_row(tmp_path, character):
    # NSMC and QQP hold such characters, at which str.splitlines would split.
    text = f"x{character}y"
    assert rows(tmp_path / "a.tsv", f"a\tb\n{text}\tz\n") == [{"a": text, "b": "z"}]
    assert rows(tmp_path / "a.csv", f"a,b\n{text},z\n") == [{"a": text, "b": "z"}]


def test_blank_rows_of_a_single_column_are_rows(tmp_path):
    assert rows(tmp_path / "a.tsv", "a\nx\n\ny\n") == [{"a": "x"}, {"a": ""}, {"a": "y"}]


def test_names_of_columns_without_a_header(tmp_path):
    assert rows(tmp_path / "a.tsv", "1\t2\n", columns=("x", "y")) == [{"x": "1", "y": "2"}]


def test_csv_is_quoted_and_counts_lines(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('a,b\n"x, ""y""\nz",1\n\n2,3\n')
    assert list(read_rows(path)) == [
        (f"{path}:2", {"a": 'x, "y"\nz', "b": "1"}),
        (f"{path}:5", {"a": "2", "b": "3"}),
    ]


def test_a_long_field_of_csv(tmp_path):
    text = "x" * 300_000  # more than the csv module takes by itself
    assert rows(tmp_path / "a.csv", f"a,b\n{text},1\n")[0]["a"] == text


def test_json_lines_and_lists_are_flattened(tmp_path):
    first = '{"a": "x", "n": {"b": 4.5, "c": [1, "y"], "d": []}, "e": null, "f": true}'
    inner = {"n.b": "4.5", "n.c.0": "1", "n.c.1": "y", "n.d": ""}
    flattened = {"a": "x", **inner, "e": "", "f": "true"}
    assert rows(tmp_path / "a.jsonl", f'{first}\r\n\n{{"a": "\\u2028"}}') == [
        flattened,
        {"a": "\u2028"},
    ]
    path = tmp_path / "a.json"
    path.write_text(f'[\n  {first},\n  {{\n    "a": "z"\n  }}, {{"a": ""}}\n]\n')
    assert list(read_rows(path)) == [
        (f"{path}:2", flattened),
        (f"{path}:3", {"a": "z"}),
        (f"{path}:5", {"a": ""}),
    ]


def test_flat_of_a_scalar_keeps_text_as_it_is():
    assert flat({"a": "1.0", "b": 1.0, "c": 2}) == {"a": "1.0", "b": "1.0", "c": "2"}


TABLE = {"a": ["x", "나"], "n": [1.5, None]}
TABLES = {
    ".tsv": "a\tn\nx\t1.5\n나\t\n",
    ".csv": "a,n\nx,1.5\n나,\n",
    ".jsonl": '{"a": "x", "n": 1.5}\n{"a": "나", "n": null}\n',
    ".json": '[{"a": "x", "n": 1.5}, {"a": "나", "n": null}]',
}
COMPRESS = {
    "": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress,
    ".bz2": bz2.compress, ".xz": lzma.compress,
}  # fmt: skip


def parquet(table):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(pyarrow.table(table), file)
    return file.getvalue()


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("suffix", [*TABLES, ".parquet"])
def test_every_kind_of_table_compressed_or_not(tmp_path, suffix, ending):
    data = parquet(TABLE) if suffix == ".parquet" else TABLES[suffix].encode()
    found = rows(tmp_path / f"a{suffix}{ending}", COMPRESS[ending](data))
    assert found == [{"a": "x", "n": "1.5"}, {"a": "나", "n": ""}]


def test_json_lines_that_are_called_json(tmp_path):
    assert rows(tmp_path / "a.json", TABLES[".jsonl"]) == rows(
        tmp_path / "b.jsonl", TABLES[".jsonl"]
    )


def test_nested_columns_of_parquet_get_dotted_names(tmp_path):
    data = parquet({"a": [{"b": "x", "c": [1, 2]}]})
    assert rows(tmp_path / "a.parquet", data) == [{"a.b": "x", "a.c.0": "1", "a.c.1": "2"}]


def test_a_compressed_file_of_a_folder_is_found(tmp_path):
    (tmp_path / "train.tsv.zst").touch()
    source = Source(str(tmp_path))
    assert source.find("train", ["train.csv", "train.tsv"]) == tmp_path / "train.tsv.zst"
    (tmp_path / "train.tsv").touch()
    assert source.find("train", ["train.csv", "train.tsv"]) == tmp_path / "train.tsv"


# Mistakes.


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.tsv", "", "a.tsv holds no rows"),
        ("a.tsv", "a\tb\n", "a.tsv holds no rows"),
        ("a.csv", "", "a.csv holds no rows"),
        ("a.jsonl", "\n\n", "a.jsonl holds no rows"),
        ("a.json", "[]", "a.json holds no rows"),
        ("a.tsv", "a\tb\n1\t2\n3\n", r"a.tsv:3: 1 fields, where there are 2 columns: a, b"),
        ("a.tsv", "a\tb\n1\t2\t3\n", r"a.tsv:2: 3 fields"),
        ("a.csv", 'a,b\n"1\n2",3\n4,5,6\n', r"a.csv:4: 3 fields"),
        ("a.csv", 'a,b\n"1,2\n', r"a.csv:2: not CSV"),
        ("a.tsv", "a\ta\n1\t2\n", r"a.tsv:1: two columns of the same name"),
        ("a.tsv", b"a\tb\n1\t\xb0\xa1\n", r"a.tsv:2: not UTF-8"),
        ("a.tsv", "a\tb\n1\t2\n".encode("utf-16"), r"a.tsv:1: not UTF-8"),
        ("a.json", b'[{"a":\n "\xff"}]', r"a.json:2: not UTF-8"),
        ("a.tsv", "a\tb\r1\t2\r", "lines end in a carriage return alone"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', r"a.jsonl:2: not JSON"),
        ("a.jsonl", "a\tb\n1\t2\n", r"a.jsonl:1: not JSON"),
        ("a.jsonl", "[1]\n", r"a.jsonl:1: a row must be an object"),
        ("a.json", '[{"a": 1},\n {"a": }]', r"a.json:2: not JSON"),
        ("a.json", '[{"a": 1},\n', r"a.json:2: not JSON"),
        ("a.parquet", b"PAR1", "a.parquet is not a parquet file, or damaged"),
        ("a.tsv.gz", gzip.compress(b"a\tb\n1\n", mtime=0), r"a.tsv.gz:2: 1 fields"),
        (
            "a.tsv.gz",
            gzip.compress(b"a\tb\n1\t2\n" * 99, mtime=0)[:-9],
            "gzip data is damaged or cut off",
        ),
        ("a.json", '{"a": 1}\n{"a": \n', r"a.json:2: not JSON"),
        ("a.json", '{"data": []}', "not a JSON list of rows: is it the file of another task"),
        ("a.conll", "EU B-ORG\n", "its format must be told by its name; known: .tsv"),
    ],
)
def test_mistakes(tmp_path, name, data, message):
    with pytest.raises(UserError, match=message):
        rows(tmp_path / name, data)


def test_broken_rows_are_left_out_where_that_is_asked_for(tmp_path, capsys):
    # As in QQP's train.tsv, where line ends within questions break rows.
    data = "id\ta\tb\n0\tx\ty\n1\tx\nz\t0\n2\tx\ty\n"
    kept = rows(tmp_path / "a.tsv", data, skip_broken=True)
    assert [row["id"] for row in kept] == ["0", "2"]
    assert "2 broken rows left out, the first at" in (error := capsys.readouterr().err)
    assert "a.tsv:3: 2 fields" in error


def test_a_missing_column_names_the_columns():
    assert column(("a.tsv:2", {"a": "1", "b": "2"}), "x", "b", "a") == "2"
    message = r"a.tsv:2: there is no column 'x' or 'y'; the columns are: a, b"
    with pytest.raises(UserError, match=message):
        column(("a.tsv:2", {"a": "1", "b": "2"}), "x", "y")


# TFDS.

NESTED = """
import pathlib, sys
import numpy as np
import tensorflow_datasets as tfds
folder = pathlib.Path(sys.argv[1])
class Nested(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = folder
    def _info(self):
        f = tfds.features
        answers = f.Sequence({"text": f.Text(), "start": np.int32})
        names = f.ClassLabel(names=["no", "yes"])
        return tfds.core.DatasetInfo(builder=self, features=f.FeaturesDict({
            "sentence": f.Text(), "label": names, "idx": np.int32, "answers": answers,
            "tags": f.Sequence(names), "score": np.float32}))
    def _split_generators(self, dl_manager):
        shifts = {"train": 0, "validation": 1, "test": None}
        return {name: self._generate_examples(shift) for name, shift in shifts.items()}
    def _generate_examples(self, shift):
        for i in range(4):
            answers = [{"text": "a", "start": 1}, {"text": "나", "start": 2}][:i]
            label = -1 if shift is None else (i + shift) % 2
            yield i, {"sentence": f"문장 {i}", "label": label, "idx": i, "answers": answers,
                      "tags": ["yes", "no"][:i], "score": i / 2}
Nested(data_dir=str(folder), file_format="array_record").download_and_prepare()
"""


@pytest.fixture(scope="module")
def nested(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    done = subprocess.run(
        [sys.executable, "-c", NESTED, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return str(next((folder / "nested").glob("*/")))


def test_tfds_rows_are_plain_values_with_label_names(nested):
    found = sorted(read_tfds(nested, "train"), key=lambda row: row[1]["idx"])
    assert found[2][1] == {
        "sentence": "문장 2",
        "label": "no",
        "idx": 2,
        "answers": {"text": ["a", "나"], "start": [1, 2]},
        "tags": ["yes", "no"],
        "score": 1.0,
    }
    assert found[1][1]["label"] == "yes"
    assert found[0][1]["answers"] == {"text": [], "start": []}
    assert {where for where, _ in found} == {f"{nested}/train:{i}" for i in range(4)}
    assert "tensorflow" not in sys.modules


def test_tfds_hidden_labels_are_empty_and_missing_splits_none(nested):
    assert [row["label"] for _, row in read_tfds(nested, "test")] == [""] * 4
    assert read_tfds(nested, "dev_mismatched") is None


def test_dev_is_what_tfds_calls_validation(nested):
    rows = list(read_tfds(nested, "dev"))
    assert {where for where, _ in rows} == {f"{nested}/validation:{i}" for i in range(4)}


def test_a_file_that_is_given_goes_before_tfds(tmp_path):
    source = Source("tfds:glue/mrpc", {"dev": "dev.tsv", "train": ""})
    assert [source.tfds(split) for split in ("train", "dev")] == ["glue/mrpc", ""]


def test_half_a_surrogate_pair_is_told(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "\\ud83d\\ude00"}\n{"text": "\\ud83d"}\n')
    rows = read_rows(path)
    assert next(rows)[1] == {"text": "😀"}
    with pytest.raises(UserError, match=r"t\.jsonl:2: .* holds half a surrogate pair"):
        next(rows)


def test_unknown_tfds_name_and_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # as where it is not installed
    with pytest.raises(UserError, match=r"^no_such_data_set/1 is not a folder; as the name of .* "
                       "only with TensorFlow: pip install"):  # fmt: skip
        read_tfds("no_such_data_set/1", "train")
    with pytest.raises(UserError, match="is not a TFDS data set"):
        read_tfds(str(tmp_path), "train")
