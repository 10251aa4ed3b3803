"""prepare: text as people have it, whatever file it is in, and what is wrong with one."""

import bz2
import csv
import gzip
import io
import json
import lzma

import pytest
import zstandard
from random_text import digests, random_text, sentences, text_config

from bert_jax.common.errors import UserError
from bert_jax.data import records
from bert_jax.preparing import units
from bert_jax.preparing.build import prepare
from bert_jax.preparing.text import Reader, document_start

TEXTS = [text.strip() for text in random_text(60).split("\n\n") if text.strip()]


def zstd(data: bytes) -> bytes:
    """Two frames, as concatenated files have them."""
    compress = zstandard.ZstdCompressor().compress
    return compress(data[:5000]) + compress(data[5000:])


COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstd,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def as_jsonl(texts):
    return "".join(json.dumps({"id": i, "body": text}) + "\n" for i, text in enumerate(texts))


def as_tsv(texts):
    return "id\tbody\n" + "".join(f"{i}\t{' '.join(t.split())}\n" for i, t in enumerate(texts))


def as_csv(texts):
    file = io.StringIO()
    csv.writer(file).writerows([("id", "body"), *enumerate(texts)])
    return file.getvalue()


def as_wiki_json(texts):
    escaped = [text.replace("cat", "&lt;cat&gt;") for text in texts]
    rows = [{"id": str(i), "title": "T", "text": text} for i, text in enumerate(escaped)]
    rows[3]["text"] = "T\n\n" + rows[3]["text"]  # as some versions write it
    return "".join(json.dumps(row) + "\n" for row in rows)


def as_parquet(texts):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = io.BytesIO()
    table = pyarrow.table({"id": list(range(len(texts))), "body": texts})
    parquet.write_table(table, file, row_group_size=20)
    return file.getvalue()


def as_text(texts):
    return "\n\n".join(texts)


KINDS = {
    "text": as_text, "jsonl": as_jsonl, "tsv": as_tsv, "csv": as_csv, "parquet": as_parquet,
    "wikijson": as_wiki_json,
}  # fmt: skip


def read(path, source, on_error="stop", begin=0, end=None):
    reader = Reader(on_error, "body")
    documents = [" ".join(" ".join(d).split()) for d in reader.documents(source, path, begin, end)]
    return documents, reader.notes


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("source", KINDS)
def test_the_same_text_in_every_kind_of_file(tmp_path, source, ending):
    data = KINDS[source](TEXTS)
    data = COMPRESS[ending](data if isinstance(data, bytes) else data.encode())
    found, notes = read(write(tmp_path / f"a{ending}", data), source)
    expected = [" ".join(text.split()) for text in TEXTS]
    if source == "wikijson":
        expected = [text.replace("cat", "<cat>") for text in expected]
    assert found == expected
    assert not notes


@pytest.mark.parametrize("source", ["text", "jsonl", "tsv", "parquet", "wikijson"])
def test_parts_of_a_file_make_up_the_whole(tmp_path, source, monkeypatch):
    monkeypatch.setattr(units, "SMALLEST_UNIT", 2_000)
    path = write(tmp_path / "a", KINDS[source](TEXTS))
    plan = units.plan_units([(source, str(path))], "body")
    assert len(plan) > 2
    pieces = [piece for unit in plan for piece in unit]
    parts = [read(path, source, begin=p.begin, end=p.end)[0] for p in pieces]
    assert [document for part in parts for document in part] == read(path, source)[0]
    assert sum(piece.size for piece in pieces) == pytest.approx(path.stat().st_size, abs=10)


@pytest.mark.parametrize("source, ending", [("jsonl", ".gz"), ("csv", ""), ("text", ".zst")])
def test_what_cannot_be_cut_is_one_piece(tmp_path, source, ending, monkeypatch):
    monkeypatch.setattr(units, "SMALLEST_UNIT", 500)
    path = write(tmp_path / "a", COMPRESS[ending](KINDS[source](TEXTS).encode()))
    (unit,) = units.plan_units([(source, str(path))], "body")
    assert [(p.begin, p.end) for p in unit] == [(0, path.stat().st_size)]
    assert document_start(source, path, 100) == path.stat().st_size


@pytest.fixture
def in_process(monkeypatch):
    """Units are made in this process, one after the other."""

    def run(tasks, workers, on_progress):
        for function, *arguments in tasks:
            function(*arguments)
        return 0

    monkeypatch.setattr(units, "run_pool", run)


def config(path, source="jsonl", **changes):
    return text_config(path, source=source, text_feature="body", **changes)


def test_a_corpus_of_each_kind_is_the_same(tmp_path, in_process):
    want = {}
    for source in ("jsonl", "csv", "parquet"):
        data = KINDS[source](TEXTS)
        path = write(tmp_path / source, data)
        corpus = prepare(config(path, source), tmp_path / f"of-{source}", quiet=True)
        found = {name: sentences(corpus, name) for name in corpus.splits}
        assert found == (want := want or found)
        assert corpus.info["sources"][0]["source"] == source


def test_bytes_do_not_depend_on_the_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "SMALLEST_UNIT", 10_000)
    for i in range(2):
        write(tmp_path / f"{i}.jsonl.gz", gzip.compress(as_jsonl(TEXTS[i * 30 :][:30]).encode()))
    write(tmp_path / "more.jsonl", as_jsonl(TEXTS))
    for workers in (1, 2):
        prepare(
            config(tmp_path / "*.jsonl*", workers=workers), tmp_path / f"out{workers}", quiet=True
        )
    assert digests(tmp_path / "out1") == digests(tmp_path / "out2")


def test_a_pair_is_a_document_of_two_sentences(tmp_path, in_process):
    lines = "".join(f"How are you {i}? Tell me.\tI am fine. And you {i}?\n" for i in range(40))
    path = write(tmp_path / "a.tsv", lines)
    corpus = prepare(config(path, "pairs"), tmp_path / "out", quiet=True)
    documents = sentences(corpus, "train") + sentences(corpus, "held_out")
    assert len(documents) == 40 and {len(document) for document in documents} == {2}
    assert ["how are you 7? tell me.", "i am fine. and you 7?"] in documents


def test_a_field_within_a_field(tmp_path):
    path = write(tmp_path / "a", '{"d": {"t": "in"}}\n{"d.t": "flat"}\n')
    reader = Reader("stop", "d.t")
    assert list(reader.documents("jsonl", path)) == [["in"], ["flat"]]


BAD = [  # source, data, what is said of it, notes where it is left out
    ("jsonl", as_jsonl(["a b"]) + '\n{"id": 1}\n', r":3: no field 'body', but id"),
    ("jsonl", as_jsonl(["a b"]) + '{"body": 3}\n', r":2: the field 'body' is not a text, but 3"),
    ("jsonl", '{"body": null}\n', r":1: the field 'body' is not a text, but null"),
    ("jsonl", '{"body": "a"}\n{"body": "b"\n', r":2: not JSON \("),
    ("jsonl", '{"body": "\\ud83d"}\n', r":1: the field 'body' holds half a surrogate pair"),
    ("jsonl", '{"body": "a"}\n["b"]\n', r":2: not a JSON object"),
    ("jsonl", b'{"body": "a"}\n{"body": "\xff"}\n', r":2: invalid UTF-8 at byte 11 of the line"),
    ("jsonl", "[" * 100_000 + "\n", r":1: JSON that is nested too deep|:1: not JSON"),
    ("jsonl", '{"n": ' + "9" * 10_000 + "}\n", r":1: not JSON \(Exceeds"),
    ("tsv", "id\tbody\n1\tx\n2\n", r":3: 1 fields, where the first line names 2 columns"),
    ("csv", 'id,body\n1,"a\nb"\n2,"x"y\n', r":4: not CSV: "),
    ("csv", "id,body\n1,x\n2,y,z\n", r":3: 3 fields, where the first line names 2 columns"),
    ("csv", b"id,body\n1,x\n2,\xff\n", r":3: invalid UTF-8 at byte 3 of the line"),
    ("pairs", "a\tb\nc\n", r":2: not a pair: two texts with a tab between them"),
    ("pairs", "a\tb\tc\n", r":1: not a pair"),
    ("pairs", "a\t \n", r":1: not a pair"),
    ("wikijson", '{"title": "x"}\n', r":1: no field 'text', but title"),
]


@pytest.mark.parametrize("source, data, message", BAD)
def test_a_bad_record_is_told_with_its_line_or_left_out_and_counted(
    tmp_path, source, data, message
):
    path = write(tmp_path / "a", data)
    with pytest.raises(UserError, match=message + ".*") as error:
        read(path, source)
    assert str(error.value).startswith(str(path)) and "--config.on_error=skip" in str(error.value)
    assert "\n" not in str(error.value)
    _, notes = read(path, source, on_error="skip")
    assert notes["bad_records"] == 1


def test_the_line_of_a_bad_record_in_the_middle_of_a_file(tmp_path):
    path = write(tmp_path / "a", as_jsonl(TEXTS) + "oops\n" + as_jsonl(TEXTS))
    middle = document_start("jsonl", path, len(as_jsonl(TEXTS)) - 20)
    with pytest.raises(UserError, match=f"a:{len(TEXTS) + 1}: not JSON"):
        read(path, "jsonl", begin=middle, end=path.stat().st_size)
    found, notes = read(path, "jsonl", "skip", begin=middle, end=path.stat().st_size)
    assert len(found) == len(TEXTS) and notes == {"bad_records": 1}


def test_a_row_without_a_text_in_parquet(tmp_path):
    path = write(tmp_path / "a", as_parquet([*TEXTS[:30], None, *TEXTS[30:]]))
    with pytest.raises(UserError, match=r"a, row 31: 'body' is null; .*on_error=skip"):
        read(path, "parquet")
    assert len(read(path, "parquet", "skip")[0]) == len(TEXTS)


def test_a_line_without_an_end_is_a_bad_record(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "RECORD_BYTES", 1000)
    path = write(tmp_path / "a", '{"body": "' + "x" * 5000 + '"}\n{"body": "y"}\n')
    with pytest.raises(UserError, match=r"a:1: a line of more than"):
        read(path, "jsonl")
    assert read(path, "jsonl", "skip") == (["y"], {"bad_records": 1})


GZIPPED = gzip.compress(as_jsonl(TEXTS).encode(), mtime=0)  # the same whenever it is made


@pytest.mark.parametrize(
    "source, data, message",
    [
        ("text", as_jsonl(TEXTS), r"is JSON lines, not source=text: .*source=jsonl.*\(id, body\)"),
        ("book", b"\xef\xbb\xbf" + as_jsonl(TEXTS).encode(), "is JSON lines, not source=book"),
        ("text", '{"text": "' + "x" * 100_000 + '"}\n', "is JSON lines, not source=text"),
        ("text", GZIPPED, "is JSON lines, not source=text"),
        ("pairs", as_jsonl(TEXTS), "is JSON lines, not source=pairs"),
        ("jsonl", json.dumps([{"body": "a"}]), r"is a JSON list, .*jq -c '\.\[\]'"),
        ("text", b"PAR1\x15\x04", "is a parquet file, not source=text: say so: source=parquet"),
        ("text", b"%PDF-1.7\n", "is a PDF file, not source=text: extract its text"),
        ("book", b"PK\x03\x04\x14", "is a zip file"),
        ("text", "<mediawiki xmlns=", "is a dump of a wiki, .*WikiExtractor first"),
        ("text", '<doc id="1" url="u" title="t">\nA\n</doc>\n', "source=wikiextractor"),
        ("text", "a b c".encode("utf-16"), "is UTF-16 text, .*convert it to UTF-8"),
        ("book", "<!DOCTYPE html>\n<p>", "is an HTML page, not source=book"),
        ("text", '{\n  "data": [\n', "is JSON over several lines, .*jq -c"),
        ("jsonl", '{\n  "body": "a"\n}\n', "is JSON over several lines, .*jq -c"),
        ("text", b"x" * 257 + b"ustar" + b"x" * 300, "is a tar archive"),
        ("parquet", as_jsonl(TEXTS), "is not a parquet file"),
        ("parquet", b"PAR1 and no more", "is not a parquet file, or damaged"),
        ("jsonl", GZIPPED[:-9], "its gzip data is damaged or cut"),
        ("text", zstd(as_text(TEXTS).encode())[:-9], "its zstd data is damaged or cut off"),
        ("text", b"\x28\xb5\x2f\xfdnonsense", "its zstd data is damaged or cut off"),
        ("text", lzma.compress(as_text(TEXTS).encode())[:-90], "its xz data is damaged or cut off"),
        ("text", bz2.compress(as_text(TEXTS).encode())[:-90], "its bzip2 data is damaged or cut"),
        ("csv", "id,text\n1,a\n", r"has no column 'body', but id, text: .*text_feature"),
        ("tsv", "body\tbody\nx\ty\n", "has several columns 'body'"),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_or_damaged(tmp_path, in_process, source, data, message):
    if source == "parquet":
        pytest.importorskip("pyarrow")
    path = write(tmp_path / "a.txt", data)
    with pytest.raises(UserError, match=message) as error:
        prepare(config(path, source), tmp_path / "out", quiet=True)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a.csv", "b.tsv.gz", "c.jsonl"])
def test_a_table_by_its_name_is_no_running_text(tmp_path, in_process, name):
    write(tmp_path / name, as_text(TEXTS))
    with pytest.raises(UserError, match=rf"{name} would be read as running text, .*say source="):
        prepare(config(tmp_path / name, "text"), tmp_path / "out", quiet=True)


@pytest.mark.parametrize("text", ['{curly} braces are text."\nSo it is.\n', "[1] A footnote.\n"])
def test_text_that_only_begins_like_json_is_text(tmp_path, text):
    assert read(write(tmp_path / "a", text), "text")[0]
    from bert_jax.data.opened import looks_like

    assert looks_like(tmp_path / "a") == ("", "")


def test_a_column_of_numbers_in_parquet(tmp_path):
    path = write(tmp_path / "a", as_parquet(TEXTS))
    with pytest.raises(UserError, match="column 'id' holds int64, not text"):
        list(Reader("stop", "id").documents("parquet", path))


def test_files_that_are_held_out_whole(tmp_path, in_process):
    path, held = write(tmp_path / "a", as_jsonl(TEXTS)), write(tmp_path / "b", as_text(TEXTS[:9]))
    changes = {"held_out_input": f"text:{held}"}
    corpus = prepare(config(path, **changes), tmp_path / "out", quiet=True)
    assert len(sentences(corpus, "train")) == len(TEXTS)
    assert sentences(corpus, "held_out") == sentences(corpus, "train")[:9]
    assert [source.get("split") for source in corpus.info["sources"]] == [None, "held_out"]
    with pytest.raises(UserError, match="is in the input and in held_out_input"):
        prepare(config(path, held_out_input=str(path)), tmp_path / "other", quiet=True)
    write(held, "\n")
    with pytest.raises(UserError, match="held_out_input holds no text"):
        prepare(config(path, **changes), tmp_path / "other", quiet=True)
