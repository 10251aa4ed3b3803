"""The command that converts, and TF1 checkpoints: a genuine one, and every way to damage one."""

import itertools
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from data_packs import pack
from golden_models import GOLDEN, plain, same
from safetensors.numpy import load_file

from bert_jax import convert
from bert_jax.common.errors import UserError
from bert_jax.weights import tf1
from bert_jax.weights.opening import open_model
from bert_jax.weights.store import save_model

TF_NAMES = [  # theirs in transformers, in a release
    (r"encoder\.layer\.(\d+)", r"encoder.layer_\1"),
    (r"_embeddings\.weight$", "_embeddings"),
    (r"LayerNorm\.weight$", "LayerNorm.gamma"),
    (r"LayerNorm\.bias$", "LayerNorm.beta"),
    (r"^cls\.seq_relationship\.weight$", "cls.seq_relationship.output_weights"),
    (r"^(cls\.predictions|cls\.seq_relationship)\.bias$", r"\1.output_bias"),
    (r"\.weight$", ".kernel"),
    (r"\.", "/"),
]


# A writer of checkpoints as TensorFlow's, after its documents.


def slow_crc(data: bytes) -> int:
    """CRC-32C bit by bit, masked as LevelDB does."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17 & 0xFFFFFFFF)) + 0xA282EAD8) & 0xFFFFFFFF


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def entry(array: np.ndarray, shard: int, offset: int, kind: int) -> bytes:
    """A BundleEntryProto; fields of value 0 are left out, as protocol buffers do."""
    dims = b"".join(field(2, field(1, size)) for size in array.shape)
    fields = [(1, kind), (2, dims), (3, shard), (4, offset), (5, array.nbytes)]
    crc = varint(6 << 3 | 5) + slow_crc(array.tobytes()).to_bytes(4, "little")
    return b"".join(field(n, value) for n, value in fields if value or n == 2) + crc


def write_bundle(prefix: Path, arrays, shards: int = 1, per_block: int = 5, kind: int = 0) -> None:
    """Writes the index and the data files; `kind` of the blocks: 0 plain, 1 snappy."""
    data = [b""] * shards
    rows = {b"": field(1, shards) + field(3, field(1, 1))}
    for number, name in enumerate(sorted(arrays, key=str.encode)):
        array, shard = np.asarray(arrays[name], order="C"), number % shards
        dtype = {"float32": 1, "float64": 2, "int64": 9, "float16": 19}[str(array.dtype)]
        rows[name.encode()] = entry(array, shard, len(data[shard]), dtype)
        data[shard] += array.tobytes()
    for shard, content in enumerate(data):
        path = prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}")
        path.write_bytes(content)
    out = b""

    def block(pairs) -> bytes:
        """Appends a block; returns its handle."""
        nonlocal out
        text, last = b"", b""
        for key, value in pairs:
            shared = next(
                (i for i, (a, b) in enumerate(zip(key, last, strict=False)) if a != b),
                min(len(key), len(last)),
            )
            text += varint(shared) + varint(len(key) - shared) + varint(len(value))
            text += key[shared:] + value
            last = key
        text += (0).to_bytes(4, "little") + (1).to_bytes(4, "little")
        handle = varint(len(out)) + varint(len(text))
        out += text + bytes([kind]) + slow_crc(text + bytes([kind])).to_bytes(4, "little")
        return handle

    pairs = list(rows.items())
    chunks = [pairs[start : start + per_block] for start in range(0, len(pairs), per_block)]
    index = [(chunk[-1][0] + b"x", block(chunk)) for chunk in chunks]
    footer = block([]) + block(index)
    out += footer.ljust(40, b"\0") + (0xDB4775248B80FB57).to_bytes(8, "little")
    prefix.with_name(prefix.name + ".index").write_bytes(out)


def everything(name: str) -> bool:
    return True


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    shapes = {
        "a/kernel": (3, 5),
        "a/kernel/adam_m": (3, 5),
        "ab": (7,),
        "scalar": (),
        "none": (0, 4),
    }
    made = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return made | {"half": np.ones(3, np.float16), "twice": rng.normal(size=(2, 2))}


@pytest.mark.parametrize(("shards", "per_block"), [(1, 100), (3, 2), (2, 1)])
def test_bundles_are_read_to_the_bit(arrays, shards, per_block, tmp_path):
    write_bundle(tmp_path / "m.ckpt", arrays, shards, per_block)
    read = tf1.read_bundle(tmp_path / "m.ckpt.index", everything)
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype and read[name].shape == array.shape
        assert np.array_equal(read[name], array)
    assert list(tf1.read_bundle(tmp_path / "m.ckpt.index", lambda name: name == "ab")) == ["ab"]


def test_checksums_are_crc32c():
    assert tf1.crc32c(b"123456789") == 0xE3069283  # the check value of the catalogues
    rng = np.random.default_rng(0)
    for size in [*range(40), 255, 256, 4096, 10_001]:
        data = rng.bytes(size)
        assert tf1._masked(tf1.crc32c(data)) == slow_crc(data)


def test_any_damaged_byte_is_noticed(arrays, tmp_path):
    write_bundle(tmp_path / "m.ckpt", arrays, 2, 4)
    unnoticed = []
    for path in sorted(tmp_path.iterdir()):
        good = path.read_bytes()
        used = len(good) - 48 if path.suffix == ".index" else len(good)
        for place in [*range(0, used, 3), len(good) - 1]:
            bad = bytearray(good)
            bad[place] ^= 0x40
            path.write_bytes(bad)
            try:
                read = tf1.read_bundle(tmp_path / "m.ckpt.index", everything)
            except UserError as error:
                assert re.search("damaged|cut off|missing|not supported", str(error))
            else:
                assert all(np.array_equal(read[name], arrays[name]) for name in arrays)
                unnoticed.append(path.suffix)
        path.write_bytes(good)
        for length in (0, 10, len(good) // 2, len(good) - 1):
            path.write_bytes(good[:length])
            with pytest.raises(UserError):
                tf1.read_bundle(tmp_path / "m.ckpt.index", everything)
        path.write_bytes(good)
    # Only the meta index, 13 bytes that are not read.
    assert set(unnoticed) <= {".index"} and len(unnoticed) <= 5


def test_what_is_not_supported_is_told(arrays, tmp_path):
    index = tmp_path / "m.ckpt.index"
    write_bundle(tmp_path / "m.ckpt", arrays, kind=1)
    with pytest.raises(UserError, match=r"compressed \(snappy\), which is not"):
        tf1.read_bundle(index, everything)
    write_bundle(tmp_path / "m.ckpt", arrays | {"step": np.ones(1, np.int64)})
    with pytest.raises(UserError, match="step is of type 9, not floating-point"):
        tf1.read_bundle(index, everything)
    write_bundle(tmp_path / "m.ckpt", arrays, 2)
    (tmp_path / "m.ckpt.data-00001-of-00002").unlink()
    with pytest.raises(UserError, match=r"data-00001-of-00002 is missing: .*index refers to it"):
        tf1.read_bundle(index, everything)


# Releases.


@pytest.fixture
def release(tmp_path):
    """The golden model of pre-training as Google would have released it, Adam slots included."""
    folder = tmp_path / "uncased_L-2_H-16_A-4"
    folder.mkdir()
    variables = {"global_step": np.array(7, np.int64)}
    for name, value in load_file(GOLDEN / "pretraining" / "model.safetensors").items():
        if name.endswith(("position_ids", "decoder.weight")):
            continue
        for pattern, replacement in TF_NAMES:
            name = re.sub(pattern, replacement, name)
        variables[name] = value.T if name.endswith("kernel") else value
        for slot in ("adam_m", "adam_v"):
            variables[f"{name}/{slot}"] = np.ones_like(variables[name])
    write_bundle(folder / "bert_model.ckpt", variables, shards=2)
    config = json.loads((GOLDEN / "pretraining" / "config.json").read_text())
    known = [
        "attention_probs_dropout_prob", "hidden_dropout_prob", "hidden_size", "initializer_range",
        "intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers",
        "type_vocab_size", "vocab_size",
    ]  # fmt: skip
    config = {name: config[name] for name in known} | {"hidden_act": "gelu"}
    (folder / "bert_config.json").write_text(json.dumps(config))
    shutil.copy(GOLDEN / "pretraining" / "vocab.txt", folder)
    return folder


def test_a_release_is_the_model_that_transformers_has(release):
    theirs, model = open_model(GOLDEN / "pretraining"), open_model(release)
    assert same(model.params, theirs.params)
    assert model.model["activation"] == "gelu" and "norm_epsilon" not in model.model
    assert model.notes[0].startswith("activation: gelu in its exact form (erf)")
    assert model.notes[1:] == theirs.notes  # the rows that are cut; slots are not worth a word


def test_heads_of_fine_tuned_releases(release):
    index = release / "bert_model.ckpt.index"
    kept = tf1.read_bundle(index, lambda name: name.startswith("bert/") and "adam" not in name)
    for prefix, part, classes in (("", "classifier", 3), ("cls/squad/", "span_head", 2)):
        weights = np.arange(classes * 16, dtype=np.float32).reshape(classes, 16)
        bias = np.ones(classes, np.float32)
        head = {f"{prefix}output_weights": weights, f"{prefix}output_bias": bias}
        write_bundle(release / "bert_model.ckpt", kept | head)
        params = open_model(release).params
        assert set(params) == {"encoder", "pooler", part}
        assert np.array_equal(params[part]["dense"]["kernel"], weights.T)
        assert np.array_equal(params[part]["dense"]["bias"], bias)


def test_releases_that_cannot_be_are_refused(release):
    cased = release.rename(release.with_name("cased_L-2_H-16_A-4"))
    with pytest.raises(UserError, match="the folder's name: cased, the tokenizer: uncased"):
        open_model(cased)
    other = cased.rename(cased.with_name("model"))
    assert same(open_model(other).params, open_model(GOLDEN / "pretraining").params)
    shutil.copy(other / "bert_model.ckpt.index", other / "more.ckpt.index")
    with pytest.raises(UserError, match=r"must hold one checkpoint .*bert_model.* more"):
        open_model(other)
    for path in other.glob("*.index"):
        path.unlink()
    with pytest.raises(UserError, match="it has: none"):
        open_model(other)


def test_what_can_be_opened_decides(release):
    """Folders from others often hold the files of several programs."""
    theirs = open_model(GOLDEN / "pretraining")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        if (GOLDEN / "pretraining" / name).exists():
            shutil.copy(GOLDEN / "pretraining" / name, release)
    both = open_model(release)
    assert same(both.params, theirs.params) and both.model == theirs.model
    assert both.notes[-1] == "not used: the TF1 checkpoint in the same folder"
    # Without the checkpoint: bert_config.json alone makes no release.
    moved = {path.name: path.read_bytes() for path in release.glob("bert_model.ckpt*")}
    for name in moved:
        (release / name).unlink()
    assert open_model(release).notes == theirs.notes
    (release / "config.json").unlink()  # as the first library for PyTorch had it
    assert same(open_model(release).params, theirs.params)
    # Weights that cannot be opened beside those that can.
    (release / "model.safetensors").rename(release / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"must hold one checkpoint"):
        open_model(release)
    for name, data in moved.items():
        (release / name).write_bytes(data)
    assert open_model(release).notes[0].startswith("activation: gelu in its exact form")
    shutil.copy(GOLDEN / "pretraining" / "config.json", release)
    assert open_model(release).notes[0].startswith("activation: gelu in its exact form")
    (release / "config.json").write_text("{")
    assert open_model(release).notes[0].startswith("activation: gelu in its exact form")
    (release / "bert_config.json").unlink()
    with pytest.raises(UserError, match=r"config.json:1: not JSON"):
        open_model(release)
    for path in release.glob("bert_model.ckpt*"):
        path.unlink()
    (release / "config.json").write_text((GOLDEN / "pretraining" / "config.json").read_text())
    with pytest.raises(UserError, match=r"no model.safetensors, only pytorch_model.bin"):
        open_model(release)


def test_a_run_stays_one_whatever_is_beside_it(release, tmp_path):
    model = open_model(GOLDEN / "tagging")
    save_model(tmp_path / "run", model)
    for path in [*release.iterdir(), GOLDEN / "pretraining" / "model.safetensors"]:
        shutil.copy(path, tmp_path / "run")
    again = open_model(tmp_path / "run")
    assert list(again.task["labels"]) == ["O", "B-PER", "I-PER"]
    assert same(plain(again.params), plain(model.params))


def test_the_genuine_checkpoint():
    folder = pack("vocab_and_samples") / "tiny_tf1_ckpt"
    index = folder / "bert_model.ckpt.index"
    variables = tf1.read_bundle(index, lambda name: name != "global_step")
    slots = [name for name in variables if name.endswith(("/adam_m", "/adam_v"))]
    assert len(slots) == 2 * (len(variables) - len(slots)) > 0  # every checksum was right
    params = open_model(folder).params
    assert set(params) == {"encoder", "pooler", "mlm_head", "nsp_head"}
    assert len(jax.tree.leaves(params)) == len(variables) - len(slots)
    theirs, layer = "bert/encoder/layer_1/", params["encoder"]["layer_1"]
    query = variables[theirs + "attention/self/query/kernel"]  # [D, N·H]
    assert np.array_equal(layer["attention"]["query"]["kernel"], query.reshape(4, 4, 1))
    assert np.array_equal(
        layer["feed_forward"]["inner"]["kernel"], variables[theirs + "intermediate/dense/kernel"]
    )
    assert np.array_equal(
        params["nsp_head"]["dense"]["kernel"],
        variables["cls/seq_relationship/output_weights"].T,
    )


# The command.


def run(capsys, **values: object) -> str:
    with flagsaver.flagsaver():
        flags.FLAGS(["convert", *(f"--{name}={value}" for name, value in values.items())])
        convert.main()
    return capsys.readouterr().out


def test_there_and_back(release, tmp_path, capsys):
    out = run(capsys, **{"from": "tf1", "src": release, "dst": tmp_path / "run"})
    lines = out.splitlines()
    assert lines[0].split() == ["part", "arrays", "parameters"]
    assert lines[1].split() == ["encoder", "37", "4,720"]
    assert "2 layers, width 16, 4 heads, gelu; 34 tokens (wordpiece)" in out
    assert "cut: the last 3 of 37 embeddings" in out
    assert "activation: gelu in its exact form (erf)" in out
    values = {"from": "tf1", "src": release, "dst": tmp_path / "later"}
    assert "exact form" not in run(capsys, activation="gelu_tanh", **values)
    run(capsys, src=tmp_path / "run", to="hf", dst=tmp_path / "hf")
    out = run(
        capsys,
        **{
            "from": "hf",
            "src": tmp_path / "hf",
            "dst": tmp_path / "end",
            "activation": "gelu_tanh",
        },
    )
    first, last = open_model(GOLDEN / "pretraining"), open_model(tmp_path / "end")
    assert same(plain(last.params), first.params)
    assert last.model["activation"] == "gelu_tanh" and "gelu_tanh" in out
    assert last.tokenizer.tokens == first.tokenizer.tokens


def test_parts_that_are_left_out_are_named(tmp_path, capsys):
    values = {"from": "hf", "to": "hf", "dst": tmp_path / "out"}
    out = run(capsys, src=GOLDEN / "tagging", **values)
    assert "written as BertForTokenClassification\n" in out


def test_tokens_are_added(tmp_path, capsys):
    (tmp_path / "tokens.txt").write_text("jack\nthe\n")
    values = {"from": "hf", "src": GOLDEN / "choice", "dst": tmp_path / "run"}
    out = run(capsys, add_tokens=tmp_path / "tokens.txt", **values)
    assert "new tokens: 1, with fresh embeddings (seed 0)" in out
    assert "tokens that the vocabulary has already: the" in out
    assert open_model(tmp_path / "run").tokenizer.encode("Jack") == [34]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"src": "x"}, "both --src=FOLDER and --dst=FOLDER are needed"),
        ({"src": "x", "dst": "y"}, "nothing to do: give --from=hf"),
        ({"src": "x", "dst": "y", "to": "hf"}, "x is not a model"),
        (
            {"src": "x", "dst": "y", "from": "hf"},
            "x holds no Hugging Face model: .*hf download NAME",
        ),
        ({"src": "x", "dst": "y", "from": "tf1"}, "x must hold one checkpoint"),
        ({"src": "x", "dst": "y", "add_tokens": "z"}, "file of new tokens z does not exist"),
    ],
    ids=itertools.count(),
)
def test_mistakes(values, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        run(capsys, **values)
    assert list(tmp_path.iterdir()) == []
