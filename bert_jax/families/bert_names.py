"""BERT in the formats of others: transformers' names, which those of the TF1 releases follow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bert_jax.common.errors import UserError
from bert_jax.families import encoder
from bert_jax.families.names import Array, Names
from bert_jax.models.encoder import EncoderBackbone

_CLASSES = (
    ("BertForSequenceClassification", ("pooler", "classifier")),
    ("BertForTokenClassification", ("tag_head",)),
    ("BertForMultipleChoice", ("pooler", "choice_head")),
    ("BertForQuestionAnswering", ("span_head",)),
    ("BertForPreTraining", ("pooler", "mlm_head", "nsp_head")),
    ("BertForMaskedLM", ("mlm_head",)),
    ("BertForNextSentencePrediction", ("pooler", "nsp_head")),
    ("BertModel", ("pooler",)),
    ("BertModel", ()),
)
_PARTS = {  # ours, and how the names of theirs begin; several are called "classifier" there
    "pooler": "bert.pooler.",
    "mlm_head": "cls.predictions.",
    "nsp_head": "cls.seq_relationship",
    "classifier": "classifier",
    "tag_head": "classifier",
    "choice_head": "classifier",
    "span_head": "qa_outputs",
}
_CLASSIFIERS = {"BertForTokenClassification": "tag_head", "BertForMultipleChoice": "choice_head"}
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


def _arrays(c: EncoderBackbone, parts: Mapping[str, int]) -> dict[str, Array]:
    """Our name of every array of the encoder and of `parts` -> theirs.

    parts: names of ours, with the number of classes where there are any.
    """
    table: dict[str, Array] = {}
    width, split, inner = (c.width,), (c.heads, c.head_width), (c.feed_forward,)

    def dense(ours: str, theirs: str, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
        table[f"{ours}/kernel"] = Array(f"{theirs}.weight", inputs + outputs, len(inputs))
        table[f"{ours}/bias"] = Array(f"{theirs}.bias", outputs)

    def norm(ours: str, theirs: str) -> None:
        table[f"{ours}/scale"] = Array(f"{theirs}.weight", width)
        table[f"{ours}/bias"] = Array(f"{theirs}.bias", width)

    rows = {"token": c.vocab_size, "position": c.max_positions, "segment": c.segment_types}
    names = {"token": "word", "position": "position", "segment": "token_type"}
    for name, size in rows.items():
        theirs = f"bert.embeddings.{names[name]}_embeddings.weight"
        table[f"encoder/embeddings/{name}"] = Array(theirs, (size, c.width))
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
            table["mlm_head/bias"] = Array("cls.predictions.bias", (c.vocab_size,))
        else:
            dense(f"{part}/dense", _PARTS[part], width, (classes,))
    return table


def _model(config: Mapping[str, Any], where: Path) -> tuple[dict[str, Any], EncoderBackbone]:
    """The `model` section that a BERT config means, and the encoder with all its rows.

    Raises: UserError, naming `where`: a size is missing, or something is not supported.
    """
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
        "causal": False,
        "scan_layers": False,
        "remat": False,
        "kernels": False,
    }
    return model, encoder.backbone(model, config["vocab_size"], "float32")


NAMES = Names(
    model_type="bert",
    prefix="bert.",
    classes=_CLASSES,
    parts=_PARTS,
    classifiers=_CLASSIFIERS,
    tied=_TIED,
    sizes=_SIZES,
    rates=_RATES,
    arrays=_arrays,
    model=_model,
)
