"""What is read is a file, UTF-8, JSON that all parsers read alike, and what its schema says."""

import json
import os
import socket

import pytest

from bert_jax.common import errors, schemas
from bert_jax.common.errors import UserError
from bert_jax.common.files import (
    check,
    library_errors,
    open_regular,
    read_checked,
    read_json,
    read_json_lines,
    read_text,
)
from bert_jax.data.tokenizer_file import is_bounded, read_backend

MODEL = {
    "layers": 1, "width": 8, "heads": 2, "max_positions": 16, "head_width": 0, "feed_forward": 0,
    "segment_types": 2, "activation": "gelu", "hidden_dropout": 0.1, "attention_dropout": 0.1,
    "init_stddev": 0.02, "norm_epsilon": 1e-12,
}  # fmt: skip


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff{}", ":1: not UTF-8"),
        (b'{\n"a": "\xed\xa0\x80"}', ":2: not UTF-8"),
        (b"", ":1: not JSON: Expecting value"),
        (b'{\n"a": }', ":2: not JSON: Expecting value"),
        (b"[1]", " is not a JSON object"),
        (b'{"a": ' + b"9" * 5000 + b"}", ": not JSON: a number of thousands of digits"),
        (b'{"a": NaN}', ": not JSON: NaN is no number of JSON"),
        (b'{"a": [-Infinity]}', ": not JSON: -Infinity is no number of JSON"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', ": not JSON: the key 'c' comes twice in an object"),
        (rb'{"a": "\ud800"}', ": a holds half a surrogate pair; repair it"),
        (rb'["x", {"a": [1, "\udfff"]}]', ": [1].a[1] holds half a surrogate pair; repair it"),
        (rb'{"\udc00": 1}', r": the key '\udc00' holds half a surrogate pair; repair it"),
        (b'{"a":' * 150 + b"1" + b"}" * 150, ": it is nested more than 100 levels deep"),
        (b'{"a": ' + b"[" * 100_000, ": it is nested more than 100 levels deep"),
    ],
)
def test_what_is_no_json_that_all_read_alike(tmp_path, content, reason):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_json(path)
    assert str(error.value).startswith(f"{path}{reason}")
    assert "\n" not in str(error.value)


def test_what_is_json(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + rb'{"a": "\ud83d\ude00", "b": [[[1e3]]]}')
    assert read_json(path) == {"a": "😀", "b": [[[1000.0]]]}
    path.write_text('{"a": ' + "[" * 90 + "]" * 90 + ', "b": [' + "[], " * 200 + "[]]}")
    assert len(read_json(path)["b"]) == 201


@pytest.mark.parametrize("kind", ["folder", "pipe", "nothing", "device", "socket"])
def test_what_is_no_file_is_told_and_never_waited_for(tmp_path, kind):
    path = tmp_path / "a.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    for read in (open_regular, read_text, read_json, read_backend):
        with pytest.raises(UserError, match=r"a\.json (cannot be read: |is a )"):
            read(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"layers": "x"}, "layers: a whole number is expected, a text is there"),
        ({"layers": -1}, "layers: a whole number >= 1 is expected"),
        ({"layers": True}, "layers: a whole number is expected, true or false is there"),
        ({"layers": 1.0}, "layers: a whole number is expected, a number is there"),
        ({"layers": 10**30}, "layers: "),
        ({"layers": None}, "layers: a whole number is expected, null is there"),
        ({"width": ...}, "the field 'width' is missing"),
        ({"activation": ["gelu"]}, "activation: a text is expected, a list is there"),
        ({"hidden_dropout": 1}, "hidden_dropout: a number < 1.0 is expected"),
        ({"norm_epsilon": float("nan")}, "norm_epsilon: a number > 0.0 is expected"),
        ({"init_stddev": 10**400}, "init_stddev: "),
        ({"causal": 1}, "causal: true or false is expected, a whole number is there"),
    ],
)
def test_a_field_that_is_not_as_its_schema_says_is_named(change, reason):
    value = {name: part for name, part in {**MODEL, **change}.items() if part is not ...}
    with pytest.raises(UserError) as error:
        check(value, schemas.ModelSection, "RUN/config.json: model")
    assert str(error.value).startswith(f"RUN/config.json: model: {reason}")
    assert check({**MODEL, "unknown": 1}, schemas.ModelSection, "x").layers == 1


def test_logs_of_old_runs_may_hold_what_json_has_not(tmp_path):
    path = tmp_path / "metrics.jsonl"
    line = {"step": 1, "split": "train", "loss": float("inf"), "time": {"seconds": 1.0}}
    path.write_text(json.dumps(line) + "\n" + '{"step": 2, "sp')
    assert read_json_lines(path, schemas.MetricsLine) == [line]
    path.write_text(json.dumps(line) + "\n" + json.dumps({**line, "step": "2"}) + "\n\n")
    with pytest.raises(UserError, match=r"jsonl:2: a broken line \(step: a whole .*; remove it"):
        read_json_lines(path, schemas.MetricsLine)
    assert read_json_lines(tmp_path / "none.jsonl") == []


def test_results_of_another_metric(tmp_path):
    path = tmp_path / "results.json"
    value = {"task": "x", "metric": "f1", "scores": {"dev": {"f1": 0.5}}, "baselines": {}}
    path.write_text(json.dumps(value))
    assert read_checked(path, schemas.Results) == value
    path.write_text(json.dumps({**value, "metric": "f2"}))
    with pytest.raises(UserError, match=r"results\.json: metric: 'f2' is not among the scores of"):
        read_checked(path, schemas.Results)


@pytest.mark.parametrize("error", [ValueError("a\nb"), RuntimeError(), MemoryError("x")])
def test_errors_of_libraries_name_the_file(error):
    message = r"^f\.bin cannot be read: (a b|RuntimeError|x)$"
    with pytest.raises(UserError, match=message), library_errors("f.bin"):
        raise error
    with pytest.raises(KeyboardInterrupt), library_errors("f.bin"):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "pattern",
    [
        r"[\p{Mn}&&[^\u3099\u309a]]+", r" {2,}", r"\s+", "", r"<(?=pad>)|<(?=cls>)", r"\n|\r|\t",
        r"'s|'t| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", r"(?:ab)+", r"[)(*+]+",
        r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    ],
)  # fmt: skip
def test_expressions_of_published_tokenizers_are_taken(pattern):
    assert is_bounded(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$", "(a|aa)*$", "(a*)*b", r"(.*)\1", r"\s*\s*\s*x", "((a+)b?)*", "(?:x+x+)+y",
        "(a?){1,100}", r"(\w+\s?)*$", "a" * 200_000,
    ],
)  # fmt: skip
def test_expressions_without_bound_are_refused(pattern):
    assert not is_bounded(pattern)


def test_an_error_that_quotes_a_damaged_file_is_one_line():
    message, code = errors.outcome(UserError("f:1: " + "x\n\0" * 5000 + " remove it"))
    assert message.startswith(r"error: f:1: x\n\x00x") and message.endswith(" remove it")
    assert code == 2 and len(message) < 1600
