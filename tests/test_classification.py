"""Texts and pairs with labels or numbers: official files, bad input, features, scores and files."""

import dataclasses
import json
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from data_packs import pack
from flax import linen as nn

from bert_jax import tasks
from bert_jax.data.buckets import collate
from bert_jax.data.tokenizer import wordpiece_tokenizer
from bert_jax.errors import UserError
from bert_jax.models.body import Body
from bert_jax.models.encoder import EncoderConfig
from bert_jax.tasks import classification, glue, korean
from bert_jax.tasks.base import Source, encode_pairs, hold_out
from bert_jax.tasks.classification import Classification, TextExample

ROWS = {task.name: task for task in (*glue.TASKS, *korean.TASKS)}
WORDS = [*"abcdefg", "좋", "##은", "영화"]
TOKENIZER = wordpiece_tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"[]", *WORDS])


def write(path: Path, *lines: str) -> Source:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return Source(files={path.stem: str(path)})


def custom(path: Path, *lines: str, split: str = "train", **settings):
    """The task and the examples of a file."""
    write(path, *lines)
    task = Classification.custom(**settings)
    return task, task.read(Source(files={split: str(path)}), split)


# Official files.

SIZES = {  # as the publishers count them
    ("cola", "CoLA"): (8551, 1043, 1063),
    ("mrpc", "MRPC"): (3668, 408, 1725),
    ("rte", "RTE"): (2490, 277, 3000),
    ("stsb", "STS-B"): (5749, 1500, 1379),
    ("wnli", "WNLI"): (635, 71, 146),
    ("qnli", "QNLI"): (None, 5463, 5463),
    ("sst2", "SST-2"): (67349, 872, 1821),
}


@pytest.mark.parametrize(("name", "folder"), SIZES)
def test_official_glue_files_are_read_whole(name, folder):
    source = Source(str(pack("tasks") / "glue_data" / folder))
    task = ROWS[name]
    splits = {split: task.read(source, split) for split in task.splits}
    assert tuple(e and len(e) for e in splits.values()) == SIZES[name, folder]
    test = splits["test"]
    assert [e.id for e in test] == [str(i) for i in range(len(test))]
    assert {e.label for e in test} == {None}
    for examples in filter(None, splits.values()):
        assert all(text.strip() for e in examples for text in e.texts)
    assert task.fit(splits["dev"]) == task  # every label is known
    if task.labels:
        assert {e.label for e in splits["dev"]} == set(task.labels)


def test_other_official_files():
    data = pack("tasks")
    diagnostic = ROWS["mnli"].read(Source(str(data / "glue_data" / "diagnostic")), "ax")
    assert len(diagnostic) == 1104 and diagnostic[0].texts[0] == "The cat sat on the mat."
    found = {
        ("mnli", "nli/mnli/dev.jsonl"): 9815,
        ("snli", "nli/snli/dev.jsonl"): 9842,
        ("nsmc", "nsmc/ratings_train.first5000.txt"): 5000,
        ("klue_nli", "klue/klue-nli-v1.1_dev.json"): 3000,
        ("klue_sts", "klue/klue-sts-v1.1_dev.json"): 519,
        ("kornli", "kornlu/KorNLI/xnli.dev.ko.tsv"): 2490,
        ("korsts", "kornlu/KorSTS/sts-dev.tsv"): 1500,
    }
    for (name, path), count in found.items():
        examples = ROWS[name].read(Source(files={"dev": str(data / path)}), "dev")
        assert len(examples) == count, name
        assert ROWS[name].fit(examples) == ROWS[name]


def test_first_examples_of_official_files():
    folder = pack("tasks") / "glue_data"
    mrpc = ROWS["mrpc"].read(Source(str(folder / "MRPC")), "dev")[0]
    assert mrpc.label == "equivalent"
    assert mrpc.texts[1].startswith('" The foodservice pie business')  # the quote is text
    cola = ROWS["cola"].read(Source(str(folder / "CoLA")), "train")[0]
    assert cola.texts == (
        "Our friends won't buy this analysis, let alone the next one we propose.",
    )
    assert cola.where.endswith("train.tsv:1")  # no header
    stsb = ROWS["stsb"].read(Source(str(folder / "STS-B")), "train")[1]
    assert stsb.label == (3.8,)


def test_klue_sts_f1_is_that_of_the_binary_labels():
    path = pack("tasks") / "klue" / "klue-sts-v1.1_dev.json"
    examples = ROWS["klue_sts"].read(Source(files={"dev": str(path)}), "dev")
    binary = [bool(row["labels"]["binary-label"]) for row in json.loads(path.read_text("utf-8"))]
    predictions = [(3.5,) if i % 3 else (1.0,) for i in range(len(binary))]
    called = [p == (3.5,) for p in predictions]
    both = sum(b and c for b, c in zip(binary, called, strict=True))
    expected = 2 * both / (sum(binary) + sum(called))
    assert ROWS["klue_sts"].score(examples, predictions)["f1"] == pytest.approx(expected)


def test_glue_and_snli_leave_out_what_they_are_meant_to(tmp_path, capsys):
    source = write(
        tmp_path / "dev.jsonl",
        '{"sentence1": "a", "sentence2": "b", "gold_label": "-"}',
        '{"sentence1": "a", "sentence2": "b", "gold_label": "neutral"}',
    )
    for name in ("mnli", "snli"):
        assert [e.label for e in ROWS[name].read(source, "dev")] == ["neutral"]
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    lines = [header, "1\t2\t3\ta\tb\t1", "2\t2\t3\ta", "b\t0", "3\t4\t5\t\tb\t0"]
    examples = ROWS["qqp"].read(write(tmp_path / "dev.tsv", *lines), "dev")
    assert [(e.id, e.label) for e in examples] == [("1", "duplicate"), ("3", "not_duplicate")]
    assert "2 broken rows left out" in capsys.readouterr().err


def test_kornli_trains_on_both_files_or_on_the_one_that_is_named(tmp_path):
    header, task = "sentence1\tsentence2\tgold_label", ROWS["kornli"]
    write(tmp_path / "multinli.train.ko.tsv", header, "a\tb\tneutral")
    with pytest.raises(UserError, match=r"lacks snli_1.0_train.ko.tsv.*--config.train"):
        task.read(Source(str(tmp_path)), "train")
    write(tmp_path / "snli_1.0_train.ko.tsv", header, "c\td\tentailment")
    examples = task.read(Source(str(tmp_path)), "train")
    assert [e.texts for e in examples] == [("a", "b"), ("c", "d")]
    one = Source(files={"train": str(tmp_path / "snli_1.0_train.ko.tsv")})
    assert len(task.read(one, "train")) == 1


def test_tfds_columns_names_and_order(monkeypatch, tmp_path):
    asked = []

    def read_tfds(name, split):
        asked.append((name, split))
        labels = {"validation": ["equivalent", "not_equivalent"], "test": ["", ""]}
        split = "validation" if split == "dev" else split
        if split not in labels:
            return None
        texts = {"sentence1": "a", "sentence2": "b"}
        return (
            (f"{name}/{split}:{i}", {**texts, "label": label, "idx": 1 - i})
            for i, label in enumerate(labels[split])
        )

    monkeypatch.setattr(classification, "read_tfds", read_tfds)
    source, task = Source("tfds:glue/mrpc"), ROWS["mrpc"]
    dev = task.read(source, "dev")
    assert [(e.id, e.label) for e in dev] == [("1", "equivalent"), ("0", "not_equivalent")]
    assert dev[0].where == "glue/mrpc/validation:0"
    assert task.read(source, "train") is None
    test = task.read(source, "test")
    assert [e.label for e in test] == [None, None]
    (path,) = task.write(tmp_path, "test", test, ["equivalent", "not_equivalent"])
    assert path.read_text() == "index\tprediction\n0\t0\n1\t1\n"  # sorted: TFDS shuffles
    assert asked == [("glue/mrpc", split) for split in ("dev", "train", "test")]


# A table of one's own.


def test_custom_kinds(tmp_path):
    task, examples = custom(tmp_path / "a.csv", 'text,label\n"a, b",x\nc,y\nd,x')
    assert [(e.texts, e.label) for e in examples][:2] == [(("a, b",), "x"), (("c",), "y")]
    assert task.fit(examples).labels == ("x", "y") and task.metric == "accuracy"

    lines = ["q\tr\tl", "a\tb\tx| y", "c\td\t"]
    task, examples = custom(
        tmp_path / "a.tsv", *lines, text="q", pair="r", label="l", kind="multi", separator="|"
    )
    assert [(e.texts, e.label) for e in examples] == [(("a", "b"), ("x", "y")), (("c", "d"), ())]
    assert task.fit(examples).labels == ("x", "y")

    lines = ['{"text": "a", "m": {"u": 1, "v": 2.5}}', '{"text": "b", "m": {"u": 0, "v": -1}}']
    task, examples = custom(tmp_path / "a.jsonl", *lines, label="m.u, m.v", kind="numbers")
    assert task.kind == "numbers" and task.fit(examples) == task and task.outputs == 2
    assert [e.label for e in examples] == [(1.0, 2.5), (0.0, -1.0)]

    lines = ['{"text": "a", "label": ["x", "z"]}', '{"text": "b", "label": []}']
    task, examples = custom(tmp_path / "b.jsonl", *lines, kind="multi")
    assert [e.label for e in examples] == [("x", "z"), ()]


def test_custom_folder_takes_any_format(tmp_path):
    write(tmp_path / "train.jsonl", '{"text": "a", "label": "x"}')
    write(tmp_path / "test.csv", "text", "b")
    task = Classification.custom()
    assert task.splits == ("train", "dev", "test")
    assert task.read(Source(str(tmp_path)), "train")[0].label == "x"
    assert task.read(Source(str(tmp_path)), "dev") is None
    assert task.read(Source(str(tmp_path)), "test")[0].label is None


def test_ids_that_are_not_unique_become_places(tmp_path):
    _, examples = custom(tmp_path / "a.tsv", "id\ttext\tlabel", "7\ta\tx", "7\tb\ty")
    assert [e.id for e in examples] == ["0", "1"]


def test_same_first_texts_stay_on_one_side():
    examples = [TextExample(str(i), (f"p{i // 3}", f"h{i}"), "x", "f:1") for i in range(300)]
    train, dev = hold_out(examples, 0.2)
    assert not {e.texts[0] for e in train} & {e.texts[0] for e in dev}
    with pytest.raises(UserError, match=r"^f: dev_share=0.2 leaves no examples on one side"):
        hold_out(examples[:3], 0.2)


@pytest.mark.parametrize("task", ROWS.values(), ids=ROWS)
def test_rows_survive_json(task):
    assert tasks.from_dict(json.loads(json.dumps(tasks.to_dict(task)))) == task
    assert task.metric in task.metrics and set(dict(task.submissions)) <= set(task.splits)
    assert len(task.codes) in (0, len(task.labels))


# Mistakes.


@pytest.mark.parametrize(
    ("lines", "settings", "message"),
    [
        (["txt\tlabel", "a\tx"], {}, r":2: there is no column 'text'; the columns are: txt, label"),
        (["text\tl", "a\tx"], {}, r":2: there is no column 'label'; the columns are: text, l"),
        (["text\tlabel", "a\tx"], {"pair": "b"}, r":2: there is no column 'b'"),
        (["text\tlabel", "a\tx", " \ty"], {}, r":3: the text in column 'text' is empty"),
        (["text\tlabel", "a\tx", "b\t"], {}, r":3: there is no label in column 'label'"),
        (
            ["text\tu\tv", "a\t1\tx"],
            {"label": "u,v", "kind": "numbers"},
            r":2: the label 'x' is not a number",
        ),
        (["text\tlabel", "a\tnan"], {"kind": "numbers"}, r":2: the label 'nan' is not a number"),
        (["text\tlabel", "a\t"], {"kind": "numbers"}, r":2: there is no label"),
    ],
)
def test_mistakes_in_a_file(tmp_path, lines, settings, message):
    with pytest.raises(UserError, match=message):
        custom(tmp_path / "a.tsv", *lines, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "many"}, "custom.kind='many' is unknown; known: single, multi, numbers"),
        ({"label": "a,b", "kind": "single"}, "several columns are for custom.kind=numbers"),
        ({"text": ""}, "must not be empty"),
        ({"label": "a,", "kind": "numbers"}, "must not be empty"),
        ({"kind": "multi", "separator": ""}, "must not be empty"),
    ],
)
def test_mistakes_in_settings(settings, message):
    with pytest.raises(UserError, match=message):
        Classification.custom(**settings)


def test_one_class_only_and_unknown_labels(tmp_path):
    header = "text\tlabel"
    task, examples = custom(tmp_path / "a.tsv", header, "a\tx", "b\tx")
    with pytest.raises(UserError, match=r"a.tsv: there is nothing to learn.* label 'x'"):
        task.fit(examples)
    numbers, examples = custom(tmp_path / "a.tsv", header, "a\t1", "b\t1.0", kind="numbers")
    with pytest.raises(UserError, match="nothing to learn"):
        numbers.fit(examples)
    task, examples = custom(tmp_path / "a.tsv", header, "a\tx", "b\ty")
    fitted = task.fit(examples)
    source = write(tmp_path / "dev.tsv", header, "a\tx", "b\tz")
    with pytest.raises(UserError, match=r"dev.tsv:3: the label 'z' is unknown; known: x, y"):
        fitted.read(source, "dev")
    with pytest.raises(UserError, match=r"dev.tsv:3: the label 'z' is unknown"):
        fitted.score(task.read(source, "dev"), ["x", "y"])  # read before the labels were known
    with pytest.raises(UserError, match=r"dev.tsv:3: the label 'z' is unknown"):
        fitted.featurise(task.read(source, "dev"), TOKENIZER, 9, train=False)
    unlabelled = [TextExample("0", ("a",), None, "f.tsv:2")]
    for use in (fitted.fit, lambda e: fitted.featurise(e, TOKENIZER, 9, train=True)):
        with pytest.raises(UserError, match=r"f.tsv:2: there is no label"):
            use(unlabelled)


def test_labels_that_files_could_not_hold(tmp_path):
    task, examples = custom(
        tmp_path / "a.jsonl", '{"text": "a", "label": "x\\ty"}', '{"text": "b", "label": "z"}'
    )
    with pytest.raises(UserError, match="holds a tab or a line end"):
        task.fit(examples)
    with pytest.raises(UserError, match=r"a.jsonl:1: a label holds ','; set another"):
        custom(tmp_path / "a.jsonl", '{"text": "a", "label": ["x,y", "z"]}', kind="multi")


@pytest.mark.parametrize("name", ROWS)
def test_the_wrong_file_for_the_task(tmp_path, name):
    squad = write(tmp_path / "dev.json", '{"version": "1.1", "data": []}')
    with pytest.raises(UserError, match=r"dev.json is not a JSON list of rows: is it the file"):
        ROWS[name].read(squad, "dev")
    table = write(tmp_path / "dev.tsv", "x\ty\tz", "1\t2\t3")
    with pytest.raises(UserError, match=r"dev.tsv:\d: (there is no column|3 fields)"):
        ROWS[name].read(table, "dev")


def test_a_split_of_another_task_has_unknown_labels(tmp_path):
    source = write(tmp_path / "dev.tsv", "sentence\tlabel", "a\t1", "b\t7")
    with pytest.raises(UserError, match=r"dev.tsv:3: the label '7' is unknown; known: 0, 1"):
        ROWS["sst2"].read(source, "dev")


# Features.


def _cut(first, second, room):
    """Truncation as the released code writes it: one token at a time."""
    while len(first) + len(second) > room:
        (first if len(first) > len(second) else second).pop()
    return first, second


def test_pairs_are_cut_like_the_released_code():
    rng = np.random.default_rng(0)
    cls, sep = TOKENIZER.cls_id, TOKENIZER.sep_id
    for _ in range(300):
        texts = [" ".join(rng.choice(WORDS[:6], rng.integers(0, 12))) for _ in range(2)]
        length = int(rng.integers(4, 20))
        first, second = _cut(*TOKENIZER.encode_batch(texts), length - 3)
        whole = TOKENIZER.encode_batch(texts)
        (pair,) = encode_pairs([texts], TOKENIZER, length)
        assert pair.arrays["tokens"].tolist() == [cls, *first, sep, *second, sep]
        assert pair.arrays["segments"].tolist() == [0] * (len(first) + 2) + [1] * (len(second) + 1)
        assert pair.cut == ([first, second] != whole)
        (alone,) = encode_pairs([texts[:1]], TOKENIZER, length)
        assert alone.arrays["tokens"].tolist() == [cls, *whole[0][: length - 2], sep]
        assert not alone.arrays["segments"].any()
        assert alone.cut == (len(whole[0]) > length - 2)


def test_special_tokens_in_a_text_are_text():
    (feature,) = encode_pairs([("[SEP] a [MASK]", "[CLS]")], TOKENIZER, 40)
    tokens = feature.arrays["tokens"].tolist()
    assert tokens.count(TOKENIZER.sep_id) == 2 and tokens.count(TOKENIZER.cls_id) == 1
    assert TOKENIZER.mask_id not in tokens


def test_texts_of_all_chunks_keep_their_order():
    pairs = [(WORDS[i % 7], WORDS[i % 5]) for i in range(10_003)]
    encoded = encode_pairs(pairs, TOKENIZER, 8)
    for place in (0, 9_999, 10_000, 10_002):
        (alone,) = encode_pairs([pairs[place]], TOKENIZER, 8)
        assert encoded[place].example == place
        assert encoded[place].arrays["tokens"].tolist() == alone.arrays["tokens"].tolist()


@pytest.mark.parametrize(("texts", "length"), [(("a",), 2), (("a", "b"), 3)])
def test_a_length_without_room_for_text(texts, length):
    with pytest.raises(UserError, match=f"max_length={length} leaves no room"):
        encode_pairs([texts], TOKENIZER, length)


# The model and what it says.


def _logits(*rows):
    return [{"logits": np.array(row, np.float32)} for row in rows]


@pytest.mark.parametrize("kind", ["single", "multi", "numbers"])
def test_through_the_model_and_back(tmp_path, kind):
    labels = {"single": ["x", "y"], "multi": ["x,y", "y"], "numbers": ["1.5", "-2"]}[kind]
    lines = ["text\tpair\tlabel", f"a b\tc\t{labels[0]}", f"d\te\t{labels[1]}"]
    task, examples = custom(tmp_path / "a.tsv", *lines, pair="pair", kind=kind)
    task = task.fit(examples)
    features = task.featurise(examples, TOKENIZER, 16, train=True)
    assert [f.example for f in features] == [0, 1]
    batch = collate([f.arrays for f in features], 2, TOKENIZER.pad_id, 16)
    encoder = EncoderConfig(TOKENIZER.vocab_size, layers=1, width=8, heads=2, feed_forward=8)
    objective = task.objective(Body(encoder))
    params = nn.unbox(jax.jit(objective.init)(jax.random.key(0), batch))
    mean = jax.jit(lambda *args: objective.loss(*args, False)[0])(params, batch, None)
    assert np.isfinite(float(mean.value()))
    logits = np.asarray(jax.jit(objective.predict)(params, batch)["logits"])
    assert logits.shape == (2, task.outputs)
    predictions = task.decode(examples, features, [{"logits": row} for row in logits])
    scores = task.score(examples, predictions)
    assert task.metric in scores and all(np.isfinite(list(scores.values())))
    assert "label" not in task.featurise(examples, TOKENIZER, 16, train=False)[0].arrays


def test_decoding_and_probabilities():
    single = Classification("t", (), (("text",),), labels=("x", "y", "z"))
    outputs = _logits([0, 2, 1], [1000, 0, -1000])
    assert single.decode([], [], outputs) == ["y", "x"]
    expected = np.exp([0, 2, 1]) / np.exp([0, 2, 1]).sum()
    np.testing.assert_allclose(single.probabilities(outputs)[0], expected, rtol=1e-6)
    np.testing.assert_array_equal(single.probabilities(outputs)[1], [1, 0, 0])
    multi = Classification("t", (), (("text",),), labels=("x", "y"), kind="multi")
    outputs = _logits([0.1, -0.1], [-3, -4], [np.log(3), 1000])
    assert multi.decode([], [], outputs) == [("x",), (), ("x", "y")]
    np.testing.assert_allclose(multi.probabilities(outputs)[2], [0.75, 1], rtol=1e-6)
    assert ROWS["stsb"].decode([], [], _logits([2.5])) == [(2.5,)]
    assert single.probabilities([]).shape == (0, 3)


def test_official_metrics_of_each_row():
    deciding = {name: task.metric for name, task in ROWS.items()}
    special = {
        "cola": "mcc", "mrpc": "f1", "qqp": "f1", "stsb": "spearman", "klue_sts": "pearson",
        "korsts": "spearman",
    }  # fmt: skip
    assert deciding == {name: special.get(name, "accuracy") for name in ROWS}
    task = ROWS["mrpc"]
    gold = ["equivalent", "equivalent", "not_equivalent", "not_equivalent"]
    examples = [TextExample(str(i), ("a", "b"), label, "f:1") for i, label in enumerate(gold)]
    scores = task.score(examples, ["equivalent"] * 4)
    assert scores == {"f1": pytest.approx(2 / 3), "accuracy": 0.5}  # f1 of the paraphrases
    numbers = [TextExample(str(i), ("a", "b"), (float(i),), "f:1") for i in range(4)]
    scores = ROWS["stsb"].score(numbers, [(i**3 + 1.0,) for i in range(4)])
    assert scores["spearman"] == pytest.approx(1) and scores["pearson"] < 0.95


def test_baselines():
    examples = [TextExample(str(i), ("a",), label, "f:1") for i, label in enumerate("xyyz")]
    task = Classification("t", (), (("text",),), labels=("x", "y", "z"))
    assert task.baseline(examples, examples[:2]) == ["y", "y"]
    numbers = [TextExample(str(i), ("a",), (i / 2,), "f:1") for i in range(4)]
    baseline = ROWS["stsb"].baseline(numbers, numbers)
    assert baseline == [(0.75,)] * 4
    assert ROWS["stsb"].score(numbers, baseline)["spearman"] == 0


def test_scores_of_a_task_whose_labels_are_not_known_yet(tmp_path):
    task, examples = custom(tmp_path / "a.tsv", "text\tlabel", "a\tx", "b\ty", split="dev")
    assert task.score(examples, ["x", "z"])["macro_f1"] == pytest.approx(1 / 3)


def test_labels_of_splits_that_are_predicted_are_not_read(tmp_path):
    source = write(tmp_path / "test.tsv", "sentence1\tsentence2\tscore", "a\tb\t-1")
    assert ROWS["stsb"].read(source, "test")[0].label is None
    assert ROWS["korsts"].read(source, "test")[0].label is None


# Prediction files.


def test_leaderboard_files(tmp_path):
    def file(name, split, predictions):
        examples = [TextExample(str(i), ("a", "b"), None, "f") for i in range(len(predictions))]
        (path,) = ROWS[name].write(tmp_path, split, examples, predictions)
        return path.name, path.read_text()

    assert file("cola", "test", ["acceptable"]) == ("CoLA.tsv", "index\tprediction\n0\t1\n")
    assert file("rte", "test", ["entailment", "not_entailment"]) == (
        "RTE.tsv", "index\tprediction\n0\tentailment\n1\tnot_entailment\n")  # fmt: skip
    assert file("stsb", "test", [(2.34567,)]) == ("STS-B.tsv", "index\tprediction\n0\t2.346\n")
    for split, name in [("test", "MNLI-m"), ("test_mismatched", "MNLI-mm"), ("ax", "AX")]:
        expected = f"{name}.tsv", "index\tprediction\n0\tneutral\n"
        assert file("mnli", split, ["neutral"]) == expected
    assert file("sst2", "dev", ["negative"]) == (
        "dev_predictions.tsv", "index\tprediction\n0\tnegative\n")  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "predictions"),
    [
        ("single", ["y", "x", "x"]),
        ("multi", [("x", "y"), (), ("y",)]),
        ("numbers", [(1.5, -0.25), (1 / 3, 1e-8), (0.0, 7.0)]),
    ],
)
def test_prediction_files_are_read_back(tmp_path, kind, predictions):
    task = Classification(
        "t", (), (("text",),), label=(("u",), ("v",)), kind=kind, labels=("x", "y")
    )
    examples = [TextExample(name, ("a",), None, "f") for name in ("q7", "3", "q1")]
    (path,) = task.write(tmp_path, "dev", examples, predictions)
    assert list(tmp_path.iterdir()) == [path]
    back = task.read_predictions(path, examples[::-1])  # in the order of the examples
    if kind == "numbers":
        np.testing.assert_allclose(back[::-1], predictions, rtol=1e-8)
    else:
        assert back[::-1] == predictions


def test_leaderboard_files_are_read_back(tmp_path):
    examples = [TextExample(str(i), ("a", "b"), None, "f") for i in range(2)]
    predictions = ["equivalent", "not_equivalent"]
    (path,) = ROWS["mrpc"].write(tmp_path, "test", examples, predictions)
    assert ROWS["mrpc"].read_predictions(path, examples) == predictions


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["0\t1"], r"1 predictions for 2 examples; it lacks index 1"),
        (["0\t1", "1\t0", "2\t0"], r"3 predictions for 2 examples"),
        (["0\t1", "0\t0"], r"p.tsv:3: a second prediction for index 0"),
        (["0\t1", "1\tx"], r"p.tsv:3: the label 'x' is unknown; known: 0, 1"),
        ([], r"p.tsv holds no rows"),
    ],
)
def test_mistakes_in_predictions(tmp_path, lines, message):
    examples = [TextExample(str(i), ("a", "b"), None, "f") for i in range(2)]
    write(tmp_path / "p.tsv", "index\tprediction", *lines)
    with pytest.raises(UserError, match=message):
        ROWS["mrpc"].read_predictions(tmp_path / "p.tsv", examples)
    write(tmp_path / "n.tsv", "index\tprediction", "0\t1,2", "1\t3")
    with pytest.raises(UserError, match=r"n.tsv:2: 2 numbers instead of 1"):
        ROWS["stsb"].read_predictions(tmp_path / "n.tsv", examples)


# The leaderboard's zip file.

TEST_SIZES = {
    "CoLA": 1063, "SST-2": 1821, "MRPC": 1725, "STS-B": 1379, "QQP": 390965, "MNLI-m": 9796,
    "MNLI-mm": 9847, "QNLI": 5463, "RTE": 3000, "WNLI": 146, "AX": 1104,
}  # fmt: skip
LABELS = {"STS-B": "2.500", "MNLI-m": "neutral", "MNLI-mm": "neutral", "AX": "neutral",
          "QNLI": "entailment", "RTE": "entailment"}  # fmt: skip


def _submission(folder: Path, name: str, size: int, text: str = "") -> None:
    folder.mkdir(exist_ok=True)
    rows = [f"{i}\t{text or LABELS.get(name, '1')}" for i in range(size)]
    write(folder / f"{name}.tsv", "index\tprediction", *rows)


def test_zip_submission(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    small = [name for name in TEST_SIZES if name != "QQP"]
    for i, name in enumerate(small):
        _submission(folders[i % 2], name, TEST_SIZES[name])
    assert glue.zip_submission(folders, tmp_path / "out.zip") == ["QQP.tsv"]
    first = (tmp_path / "out.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert sorted(archive.namelist()) == sorted(f"{name}.tsv" for name in small)
        assert archive.read("RTE.tsv") == (folders[small.index("RTE") % 2] / "RTE.tsv").read_bytes()
    glue.zip_submission(folders, tmp_path / "out.zip")
    assert (tmp_path / "out.zip").read_bytes() == first
    sizes = {name.removesuffix(".tsv"): size for name, size in glue._SIZES.items()}
    assert sizes == TEST_SIZES


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("WNLI", [f"{i}\t1" for i in range(145)], r"145 predictions; the test set has 146"),
        ("WNLI", [f"{i + 1}\t1" for i in range(146)], r"WNLI.tsv:2: the index must be 0"),
        ("WNLI", ["0\tentailment"], r"WNLI.tsv:2: the label 'entailment' is unknown; known: 0, 1"),
        ("RTE", ["0\t1"], r"RTE.tsv:2: the label '1' is unknown; known: entailment"),
        ("STS-B", ["0\thigh"], r"STS-B.tsv:2: the label 'high' is not a number"),
    ],
)
def test_zip_submission_refuses(tmp_path, name, lines, message):
    write(tmp_path / f"{name}.tsv", "index\tprediction", *lines)
    with pytest.raises(UserError, match=message):
        glue.zip_submission([tmp_path], tmp_path / "out.zip")
    write(tmp_path / f"{name}.tsv", "id\tprediction", "0\t1")
    with pytest.raises(UserError, match="the header must be index, prediction"):
        glue.zip_submission([tmp_path], tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()


def test_zip_submission_of_nothing_and_of_two(tmp_path):
    with pytest.raises(UserError, match=r"none of CoLA.tsv, .* is in"):
        glue.zip_submission([tmp_path], tmp_path / "out.zip")
    for folder in ("a", "b"):
        _submission(tmp_path / folder, "WNLI", 146)
    with pytest.raises(UserError, match=r"WNLI.tsv is there twice"):
        glue.zip_submission([tmp_path / "a", tmp_path / "b"], tmp_path / "out.zip")


# Pictures.


@pytest.mark.filterwarnings("error")
def test_plots(tmp_path):
    task = Classification("t", (), (("text",),), labels=("x", "y", "긍정"))
    examples = [TextExample(str(i), ("a",), label, "f:1") for i, label in enumerate("xyyx")]
    path = task.plot(tmp_path / "confusion.png", examples, list("xyxx"))
    assert path.read_bytes().startswith(b"\x89PNG")
    numbers = [TextExample(str(i), ("a", "b"), (float(i),), "f:1") for i in range(4)]
    path = ROWS["stsb"].plot(tmp_path / "numbers.png", numbers, [(1.0,)] * 4)
    assert path.read_bytes().startswith(b"\x89PNG")
    hidden = [TextExample("0", ("a",), None, "f:1")]
    assert task.plot(tmp_path / "no.png", hidden, ["x"]) is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["confusion.png", "numbers.png"]


def test_a_task_without_columns_reads_nothing(tmp_path):
    write(tmp_path / "dev.tsv", "text\tlabel", "a\tx")
    task = dataclasses.replace(Classification.custom(), texts=())
    with pytest.raises(UserError, match="names no columns of text"):
        task.read(Source(str(tmp_path)), "dev")
