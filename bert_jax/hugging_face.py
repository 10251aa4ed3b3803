"""Hugging Face folders of BERT: config.json, model.safetensors and the tokenizer, in and out.

Every array has one row in the table that `_layout` makes; reading and writing both follow it. A
linear layer's weight is [out, in] there and [in, out] here; the queries', keys' and values' outputs
and the attention output's inputs are one axis there and [N, H] here.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import tokenizers
from tokenizers import processors

from bert_jax.config import encoder_config
from bert_jax.data.tokenizer import Tokenizer, load_tokenizer, wordpiece_tokenizer
from bert_jax.errors import UserError
from bert_jax.models.encoder import EncoderConfig
from bert_jax.weights import Pretrained, new_folder, some

# Their classes, and which parts ours must have besides the encoder; the first that fits is written.
_ARCHITECTURES = [
    ("BertForSequenceClassification", ("pooler", "classifier")),
    ("BertForTokenClassification", ("tag_head",)),
    ("BertForMultipleChoice", ("pooler", "choice_head")),
    ("BertForQuestionAnswering", ("span_head",)),
    ("BertForPreTraining", ("pooler", "mlm_head", "nsp_head")),
    ("BertForMaskedLM", ("mlm_head",)),
    ("BertForNextSentencePrediction", ("pooler", "nsp_head")),
    ("BertModel", ("pooler",)),
    ("BertModel", ()),
]
_PARTS = {  # ours, and how the names of theirs begin; several are called "classifier" there
    "pooler": "bert.pooler.",
    "mlm_head": "cls.predictions.",
    "nsp_head": "cls.seq_relationship",
    "classifier": "classifier",
    "tag_head": "classifier",
    "choice_head": "classifier",
    "span_head": "qa_outputs",
}
_CLASSIFIER = {"BertForTokenClassification": "tag_head", "BertForMultipleChoice": "choice_head"}
_ACTIVATIONS = {  # theirs, ours
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}
_SIZES = {  # theirs, ours
    "num_hidden_layers": "layers",
    "hidden_size": "width",
    "num_attention_heads": "heads",
    "intermediate_size": "feed_forward",
    "max_position_embeddings": "max_positions",
    "type_vocab_size": "segment_types",
}
_RATES = {  # theirs, ours
    "hidden_dropout_prob": "hidden_dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "initializer_range": "init_stddev",
    "layer_norm_eps": "norm_epsilon",
}
_DEFAULT_RATES = {"hidden_dropout": 0.1, "attention_dropout": 0.1, "init_stddev": 0.02}
_TIED = {  # copies that some files hold, or hold instead
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}


@dataclasses.dataclass(frozen=True)
class _Array:
    """Their name of an array; the shape of ours; of a kernel, how many axes are its inputs."""

    theirs: str
    shape: tuple[int, ...]
    inputs: int = 0

    @property
    def their_shape(self) -> tuple[int, ...]:
        if self.inputs:
            return math.prod(self.shape[self.inputs :]), math.prod(self.shape[: self.inputs])
        return self.shape if self.theirs.endswith("embeddings.weight") else (math.prod(self.shape),)

    def to_ours(self, value: np.ndarray) -> np.ndarray:
        value = value.T if self.inputs else value
        return np.ascontiguousarray(value.reshape(self.shape), np.float32)

    def to_theirs(self, value: np.ndarray) -> np.ndarray:
        value = value.reshape(self.their_shape[::-1]).T if self.inputs else value
        return np.ascontiguousarray(value.reshape(self.their_shape), np.float32)


def _layout(c: EncoderConfig, parts: Mapping[str, int]) -> dict[str, _Array]:
    """Our name of every array of the encoder and of `parts` -> theirs.

    parts: names of ours, with the number of classes where there are any.
    """
    table: dict[str, _Array] = {}
    width, split, inner = (c.width,), (c.heads, c.head_width), (c.feed_forward,)

    def dense(ours: str, theirs: str, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
        table[f"{ours}/kernel"] = _Array(f"{theirs}.weight", inputs + outputs, len(inputs))
        table[f"{ours}/bias"] = _Array(f"{theirs}.bias", outputs)

    def norm(ours: str, theirs: str) -> None:
        table[f"{ours}/scale"] = _Array(f"{theirs}.weight", width)
        table[f"{ours}/bias"] = _Array(f"{theirs}.bias", width)

    rows = {"token": c.vocab_size, "position": c.max_positions, "segment": c.segment_types}
    names = {"token": "word", "position": "position", "segment": "token_type"}
    for name, size in rows.items():
        theirs = f"bert.embeddings.{names[name]}_embeddings.weight"
        table[f"encoder/embeddings/{name}"] = _Array(theirs, (size, c.width))
    norm("encoder/embeddings/norm", "bert.embeddings.LayerNorm")
    for layer in range(c.layers):
        ours, theirs = f"encoder/layer_{layer}", f"bert.encoder.layer.{layer}"
        for name in ("query", "key", "value"):
            dense(f"{ours}/attention/{name}", f"{theirs}.attention.self.{name}", width, split)
        dense(f"{ours}/attention/output", f"{theirs}.attention.output.dense", split, width)
        norm(f"{ours}/attention_norm", f"{theirs}.attention.output.LayerNorm")
        dense(f"{ours}/feed_forward/inner", f"{theirs}.intermediate.dense", width, inner)
        dense(f"{ours}/feed_forward/outer", f"{theirs}.output.dense", inner, width)
        norm(f"{ours}/feed_forward_norm", f"{theirs}.output.LayerNorm")
    for part, classes in parts.items():
        if part == "pooler":
            dense("pooler/dense", "bert.pooler.dense", width, width)
        elif part == "mlm_head":
            dense("mlm_head/dense", "cls.predictions.transform.dense", width, width)
            norm("mlm_head/norm", "cls.predictions.transform.LayerNorm")
            table["mlm_head/bias"] = _Array("cls.predictions.bias", (c.vocab_size,))
        else:
            dense(f"{part}/dense", _PARTS[part], width, (classes,))
    return table


def read(folder: str | Path) -> Pretrained:
    """The model in a folder as `save_pretrained` writes it, old ones included.

    Raises:
      UserError: files are missing or cannot be read safely, the model is not a BERT encoder, or
        something does not fit; names and shapes are listed.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'} cannot be read: {error}") from error
    _check_kind(config, folder)
    theirs = dict(_arrays(folder, config))
    settings = folder / "tokenizer_config.json"
    says = {}
    if settings.exists():
        given = json.loads(settings.read_text(encoding="utf-8")).get("do_lower_case")
        says = {} if given is None else {f"{settings.name} (do_lower_case)": bool(given)}
    tokenizer = load_tokenizer(folder)
    check_case(tokenizer, folder, says)
    return assemble(config, theirs, tokenizer, folder)


def assemble(
    config: Mapping[str, Any],
    theirs: Mapping[str, np.ndarray],
    tokenizer: Tokenizer,
    where: Path,
    notes: Sequence[str] = (),
) -> Pretrained:
    """The model of a BERT config and of arrays under the names of transformers.

    Rows of the embeddings past the end of the vocabulary, which some models have so that their
    number is a round one, are cut.

    Raises: UserError listing the names and shapes that do not fit.
    """
    theirs = {
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
            "LayerNorm.beta", "LayerNorm.bias"
        ): value
        for name, value in theirs.items()
    }  # the first releases kept TensorFlow's names
    if not any(name.startswith("bert.") for name in theirs):  # of a bare BertModel
        theirs = {f"bert.{name}": value for name, value in theirs.items()}
    theirs.pop("bert.embeddings.position_ids", None)  # 0, 1, 2, ...
    for copy, original in _TIED.items():
        value = theirs.pop(copy, None)
        if value is not None and not np.array_equal(value, theirs.setdefault(original, value)):
            raise UserError(
                f"{where}: {copy} differs from {original}; an output layer of its own, not tied "
                "to the embeddings, is not supported"
            )
    architecture = (config.get("architectures") or [""])[0]
    model, c = _model(config, where)
    parts = {}
    for part, prefix in _PARTS.items():
        own = prefix != "classifier" or part == _CLASSIFIER.get(architecture, "classifier")
        if own and any(name.startswith(prefix) for name in theirs):
            weight = theirs.get(f"{prefix}.weight")
            parts[part] = 0 if weight is None else len(weight)
    table = _layout(c, parts)
    wrong = []
    for array in table.values():
        found = theirs.get(array.theirs)
        shape = "absent" if found is None else tuple(found.shape)
        if shape != array.their_shape:
            wrong.append(f"{array.theirs}: {shape}, expected {array.their_shape}")
    if wrong:
        raise UserError(f"{where}: {len(wrong)} arrays do not fit: {some(wrong)}")
    rows = config["vocab_size"]
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"{where}: {tokenizer.vocab_size} tokens in the vocabulary, but {rows} embeddings"
        )
    params: dict[str, Any] = {}
    for name, array in table.items():
        value = array.to_ours(theirs[array.theirs])
        if name in ("encoder/embeddings/token", "mlm_head/bias"):
            value = value[: tokenizer.vocab_size]
        *parents, leaf = name.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    notes = list(notes)
    if rows > tokenizer.vocab_size:
        cut = rows - tokenizer.vocab_size
        notes.append(f"cut: the last {cut} of {rows} embeddings, which no token has")
    unused = sorted(theirs.keys() - {array.theirs for array in table.values()})
    if unused:
        notes.append(f"not used: {', '.join(unused)}")
    return Pretrained(model, params, tokenizer, None, tuple(notes))


def write(folder: str | Path, pretrained: Pretrained) -> None:
    """Writes a model for `transformers`, as the class that its parts make; whole or not at all.

    Raises: UserError: the folder is not empty, or `transformers` has no class for such a model.
    """
    params, tokenizer = pretrained.params, pretrained.tokenizer
    architecture, parts = architecture_of(params)
    c = encoder_config(pretrained.model, tokenizer.vocab_size, "float32")
    if c.heads * c.head_width != c.width:
        raise UserError(
            f"heads x head_width = {c.heads * c.head_width} is not width = {c.width}, as it must "
            "be in the BERT of transformers"
        )
    config = {
        "architectures": [architecture],
        "model_type": "bert",
        "vocab_size": c.vocab_size,
        **{theirs: getattr(c, ours) for theirs, ours in (_SIZES | _RATES).items()},
        "hidden_act": "gelu_new" if c.activation == "gelu_tanh" else c.activation,
        "position_embedding_type": "absolute",
        "pad_token_id": tokenizer.pad_id,
        "torch_dtype": "float32",
    }
    classes = {
        part: params[part]["dense"]["bias"].shape[0] if part not in ("pooler", "mlm_head") else 0
        for part in parts
    }
    arrays = {}
    for name, array in _layout(c, classes).items():
        value: Any = params
        for key in name.split("/"):
            value = value[key]
        theirs = array.theirs.removeprefix("bert.") if architecture == "BertModel" else array.theirs
        arrays[theirs] = array.to_theirs(np.asarray(value))
    with new_folder(folder) as made:
        (made / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        safetensors.numpy.save_file(arrays, made / "model.safetensors", {"format": "pt"})
        _write_tokenizer(made, tokenizer, c.max_positions)


def architecture_of(params: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The class of transformers that a tree is written as, and the parts that go into it.

    Raises: UserError: there is none.
    """
    strange = params.keys() - _PARTS.keys() - {"encoder"}
    if strange:
        raise UserError(f"transformers has no BERT with {', '.join(sorted(strange))}")
    return next(row for row in _ARCHITECTURES if set(row[1]) <= params.keys())


def check_case(tokenizer: Tokenizer, where: Path, says: Mapping[str, bool]) -> None:
    """Checks that everything agrees on lower-casing: the files in `says`, tokenizer, vocabulary.

    Raises: UserError naming what says which.
    """

    def lowers(backend: tokenizers.Tokenizer) -> bool:
        return backend.normalizer is not None and "a" in backend.normalizer.normalize_str("A")

    says = {**says, "the tokenizer": lowers(tokenizer.backend)}
    own = tokenizer.backend.get_vocab(with_added_tokens=False)
    if tokenizer.kind == "wordpiece" and any(re.fullmatch("(##)?[a-z]+", token) for token in own):
        says["the vocabulary"] = lowers(wordpiece_tokenizer(list(own)).backend)
    if len(set(says.values())) > 1:
        text = ", ".join(f"{name}: {'un' if low else ''}cased" for name, low in says.items())
        raise UserError(f"{where}: cased or not? {text}; correct the one that is wrong")


def _check_kind(config: Mapping[str, Any], folder: Path) -> None:
    """Raises UserError unless it is the config of a BERT encoder."""
    known = [name for name, _ in _ARCHITECTURES]
    wrong = []
    if config.get("model_type", "bert") != "bert":
        wrong.append(f"model_type={config['model_type']} (only bert)")
    wrong += [
        f"architecture {name} (known: {', '.join(dict.fromkeys(known))})"
        for name in config.get("architectures") or []
        if name not in known
    ]
    if config.get("position_embedding_type", "absolute") != "absolute":
        wrong.append(f"position_embedding_type={config['position_embedding_type']}")
    wrong += [name for name in ("is_decoder", "add_cross_attention") if config.get(name)]
    wrong += [name for name in ("pruned_heads", "quantization_config") if config.get(name)]
    if wrong:
        raise UserError(f"{folder / 'config.json'}: not supported: {'; '.join(wrong)}")


def _model(config: Mapping[str, Any], where: Path) -> tuple[dict[str, Any], EncoderConfig]:
    """The `model` section that a BERT config means, and the encoder with all its rows."""
    missing = [name for name in (*_SIZES, "vocab_size", "hidden_act") if name not in config]
    if missing:
        raise UserError(f"{where}: the config lacks {', '.join(missing)}")
    if config["hidden_act"] not in _ACTIVATIONS:
        raise UserError(
            f"{where}: hidden_act={config['hidden_act']} is not supported; "
            f"known: {', '.join(_ACTIVATIONS)}"
        )
    model = {
        **{ours: config[theirs] for theirs, ours in _SIZES.items()},
        "head_width": 0,
        "activation": _ACTIVATIONS[config["hidden_act"]],
        **_DEFAULT_RATES,
        **{ours: config[theirs] for theirs, ours in _RATES.items() if theirs in config},
        "scan_layers": False,
        "remat": False,
    }
    return model, encoder_config(model, config["vocab_size"], "float32")


def _arrays(folder: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of model.safetensors, or of the shards that model.safetensors.index.json names."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists():
        files = ["model.safetensors"]
    elif index.exists():
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        others = [
            p.name for s in ("*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack") for p in folder.glob(s)
        ]
        if not others:
            raise UserError(f"{folder} has no model.safetensors")
        name = (config.get("architectures") or ["BertForPreTraining"])[0]
        raise UserError(
            f"{folder} has no model.safetensors, only {some(others)}; .bin and .pt files are "
            "pickles, and opening one runs whatever code is in it. If you trust it, make a "
            'model.safetensors where transformers and torch are: python -c "from transformers '
            f"import {name} as M; M.from_pretrained('{folder}').save_pretrained('NEW_FOLDER')\""
        )
    for file in files:
        try:
            with safetensors.safe_open(folder / file, framework="numpy") as opened:
                for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                    yield name, opened.get_tensor(name)
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{folder / file} cannot be read: {error}") from error


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, longest: int) -> None:
    """tokenizer.json (and vocab.txt), with the [CLS] and [SEP] that transformers expects it to add.

    The class is the plain one that takes tokenizer.json as it is: BertTokenizer makes its own of
    the vocabulary alone, and so loses added tokens and how Hangul is kept whole.
    """
    tokenizer.save(folder)
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    _, _, cls, sep, _ = tokenizer.special_tokens
    backend.post_processor = processors.BertProcessing(
        (sep, tokenizer.sep_id), (cls, tokenizer.cls_id)
    )
    (folder / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")
    roles = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **dict(zip(roles, tokenizer.special_tokens, strict=True)),
        "model_max_length": longest,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    }
    text = json.dumps(settings, ensure_ascii=False, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
