"""Hugging Face folders of BERT: config.json, model.safetensors and the tokenizer, in and out."""

import dataclasses
import json
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import tokenizers
from flax.traverse_util import unflatten_dict
from tokenizers import processors

from bert_jax.common import schemas
from bert_jax.common.errors import UserError
from bert_jax.common.files import (
    library_errors,
    open_regular,
    read_checked,
    write_json,
    write_whole,
)
from bert_jax.data.tokenizer import Tokenizer, load_tokenizer, wordpiece_tokenizer
from bert_jax.families import FAMILIES, get_family
from bert_jax.families.base import Family
from bert_jax.families.names import Array, Names
from bert_jax.weights.hugging_face_task import in_own_unit, read_task, task_config
from bert_jax.weights.store import HUB, Pretrained, check_params, new_folder, some


def read(folder: str | Path) -> Pretrained:
    """The model in a folder as `save_pretrained` writes it, old ones included.

    Raises:
      UserError: files are missing or cannot be read safely, the model is not a BERT encoder, or
        something does not fit; names and shapes are listed.
    """
    folder = Path(folder)
    # The first library for PyTorch had bert_config.json, as the TF1 releases have.
    files = [folder / name for name in ("config.json", "bert_config.json")]
    file = next((file for file in files if file.exists()), None)
    if file is None:
        raise UserError(f"{folder} holds no Hugging Face model: it has no config.json ({HUB})")
    config = read_checked(file, schemas.BertConfig)
    _check_kind(config, folder)
    theirs = dict(_arrays(folder, config))
    if (folder / "added_tokens.json").exists() and not (folder / "tokenizer.json").exists():
        raise UserError(
            f"{folder} has added_tokens.json but no tokenizer.json, which is needed to match them; "
            "save the tokenizer again with a newer transformers"
        )
    path = folder / "tokenizer_config.json"
    settings = read_checked(path, schemas.TokenizerConfig) if path.exists() else {}
    if not (folder / "tokenizer.json").exists():
        _check_tokenizer({**config, **settings}, folder)
    tokenizer = load_tokenizer(folder)
    given = settings.get("do_lower_case")
    says = {} if given is None else {f"{path.name} (do_lower_case)": bool(given)}
    check_case(tokenizer, folder, says)
    model = assemble(config, theirs, tokenizer, folder)
    longest = settings.get("model_max_length")  # of some, 10^30: no limit
    if model.task is None or not isinstance(longest, int):
        return model
    if not 4 <= longest < model.model["max_positions"]:
        return model
    return dataclasses.replace(model, tuning={"max_length": longest})


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
    family = _family(config)
    names = family.known_elsewhere()
    theirs = _as_with_heads(theirs, names, where)
    _check_numbers(names, config, where)
    model, backbone = names.model(config, where)
    parts = _parts_in(theirs, config, names)
    table = names.arrays(backbone, parts)
    _check_shapes(theirs, table, where)
    rows = config["vocab_size"]
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"{where}: {tokenizer.vocab_size} tokens in the vocabulary, but {rows} embeddings"
        )
    arrays = {name: array.to_ours(theirs[array.theirs]) for name, array in table.items()}
    for name in {"encoder/embeddings/token", "mlm_head/bias"} & arrays.keys():
        arrays[name] = arrays[name][: tokenizer.vocab_size]
    notes = list(notes)
    if rows > tokenizer.vocab_size:
        cut = rows - tokenizer.vocab_size
        notes.append(f"cut: the last {cut} of {rows} embeddings, which no token has")
    unused = sorted(theirs.keys() - {array.theirs for array in table.values()})
    if unused:
        notes.append(f"not used: {', '.join(unused)}")
    task, told = read_task(config, parts, where)
    params = unflatten_dict(arrays, sep="/")
    made = Pretrained(model, params, tokenizer, task, (*notes, *told), family=family.name)
    check_params(made, where)
    return made


def _as_with_heads(
    theirs: Mapping[str, np.ndarray], names: Names, where: Path
) -> dict[str, np.ndarray]:
    """Gives arrays the names that they have in a model with heads today, each array once.

    Raises: UserError: a copy of an array differs from it.
    """
    renamed: dict[str, Any] = {}
    for name, value in theirs.items():  # the first releases kept TensorFlow's names
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
        renamed[name.replace("LayerNorm.beta", "LayerNorm.bias")] = value
    if not any(name.startswith(names.prefix) for name in renamed):  # of a bare model
        renamed = {f"{names.prefix}{name}": value for name, value in renamed.items()}
    renamed.pop(f"{names.prefix}embeddings.position_ids", None)  # 0, 1, 2, ...
    for copy, original in names.tied.items():
        value = renamed.pop(copy, None)
        if value is not None and not np.array_equal(value, renamed.setdefault(original, value)):
            raise UserError(
                f"{where}: {copy} differs from {original}; an output layer of its own, not tied "
                "to the embeddings, is not supported"
            )
    return renamed


def _parts_in(
    theirs: Mapping[str, np.ndarray], config: Mapping[str, Any], names: Names
) -> dict[str, int]:
    """Finds our parts that the arrays make, with the number of classes where there are any."""
    architecture = (config.get("architectures") or [""])[0]
    parts = {}
    for part, prefix in names.parts.items():
        own = prefix != "classifier" or part == names.classifiers.get(architecture, "classifier")
        if own and any(name.startswith(prefix) for name in theirs):
            weight = theirs.get(f"{prefix}.weight")
            parts[part] = 0 if weight is None else len(weight)
    return parts


def _check_shapes(
    theirs: Mapping[str, np.ndarray], table: Mapping[str, Array], where: Path
) -> None:
    """Raises UserError, listing them: arrays that are absent, or have another shape."""
    wrong = []
    for array in table.values():
        found = theirs.get(array.theirs)
        shape = "absent" if found is None else tuple(found.shape)
        if shape != array.their_shape:
            wrong.append(f"{array.theirs}: {shape}, expected {array.their_shape}")
    if wrong:
        raise UserError(f"{where}: {len(wrong)} arrays do not fit: {some(wrong)}")


def disassemble(
    pretrained: Pretrained, parts: Mapping[str, int], whose: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `assemble` takes: the config of the encoder, and arrays under transformers' names.

    Args: parts: those to write, with the numbers of their classes. whose: code, for errors.
    Raises: UserError: the BERT of that code cannot be so.
    """
    features = pretrained.tuning.get("features")
    if pretrained.task is not None and features not in (None, "", "last"):
        raise UserError(f"{whose} has no BERT whose head reads features={features}")
    family = get_family(pretrained.family)
    names = family.known_elsewhere()
    c: Any = family.backbone(pretrained.model, pretrained.tokenizer.vocab_size, "float32")
    if c.causal:
        raise UserError(f"a left-to-right model is not a BERT of {whose}, which looks both ways")
    if c.heads * c.head_width != c.width:
        raise UserError(
            f"heads x head_width = {c.heads * c.head_width} is not width = {c.width}, as it must "
            f"be in the BERT of {whose}"
        )
    config = {
        "vocab_size": c.vocab_size,
        **{theirs: getattr(c, ours) for theirs, ours in {**names.sizes, **names.rates}.items()},
        "hidden_act": "gelu_new" if c.activation == "gelu_tanh" else c.activation,
    }
    arrays = {}
    for name, array in names.arrays(c, parts).items():
        value: Any = pretrained.params
        for key in name.split("/"):
            value = value[key]
        arrays[array.theirs] = array.to_theirs(np.asarray(value))
    return config, arrays


def write(folder: str | Path, pretrained: Pretrained) -> list[str]:
    """Writes a model for `transformers`, as the class that its parts make; whole or not at all.

    Returns: which class that is, and the parts that it does not have; a line.
    Raises: UserError: the folder is not empty, or `transformers` has no class for such a model.
    """
    pretrained = in_own_unit(pretrained)
    params, tokenizer = pretrained.params, pretrained.tokenizer
    names = get_family(pretrained.family).known_elsewhere()
    architecture, parts = architecture_of(names, params)
    classes = {part: len(params[part]["dense"]["bias"]) for part in parts}
    config, arrays = disassemble(pretrained, classes, "transformers")
    if architecture == names.classes[-1][0]:
        arrays = {name.removeprefix(names.prefix): array for name, array in arrays.items()}
    config = {
        "architectures": [architecture],
        "model_type": names.model_type,
        **config,
        "pad_token_id": tokenizer.pad_id,
        **task_config(pretrained.task, classes),
    }
    with new_folder(folder) as made:
        write_json(made / "config.json", config)
        safetensors.numpy.save_file(arrays, made / "model.safetensors", {"format": "pt"})
        one_segment = config["type_vocab_size"] == 1
        longest = config["max_position_embeddings"]
        if pretrained.task is not None:
            longest = pretrained.max_length
        _write_tokenizer(made, tokenizer, longest, one_segment)
    left = sorted(params.keys() - {"encoder", *parts})
    return [f"written as {architecture}" + (f", without {', '.join(left)}" if left else "")]


def architecture_of(names: Names, params: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The class of transformers that a tree is written as, and the parts that go into it.

    Raises: UserError: there is none.
    """
    strange = params.keys() - names.parts.keys() - {"encoder"}
    if strange:
        raise UserError(f"transformers has no BERT with {', '.join(sorted(strange))}")
    return next(row for row in names.classes if set(row[1]) <= params.keys())


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
        raise UserError(
            f"{where}: cased or not? {text}; correct the one that is wrong (a tokenizer.json can "
            "be removed where there is a vocab.txt: the tokenizer then follows from that)"
        )


def _family(config: Mapping[str, Any]) -> Family:
    """Finds the family of a config; the first one's is that of configs that do not say theirs."""
    types = _types()
    return types.get(config.get("model_type", ""), next(iter(types.values())))


def _types() -> dict[str, Family]:
    return {family.names.model_type: family for family in FAMILIES.values() if family.names}


def _check_kind(config: Mapping[str, Any], folder: Path) -> None:
    """Raises UserError unless it is the config of a model of a family."""
    known = [name for name, _ in _family(config).known_elsewhere().classes]
    wrong = []
    types = _types()
    if config.get("model_type", next(iter(types))) not in types:
        wrong.append(f"model_type={config['model_type']} (only {', '.join(types)})")
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


def _check_numbers(names: Names, config: Mapping[str, Any], where: Path) -> None:
    """Raises UserError, naming `where`: a size or rate of a config is no number."""
    sizes = [name for name in (*names.sizes, "vocab_size") if name in config]
    rates = [name for name in names.rates if name in config]
    wrong = [n for n in sizes if type(config[n]) is not int or not 1 <= config[n] < 2**31]
    wrong += [n for n in rates if type(config[n]) not in (int, float) or not 0 <= config[n] < 1e6]
    wrong += [n for n in rates if n.endswith("prob") and n not in wrong and config[n] >= 1]
    if wrong:
        text = ", ".join(f"{name}={reprlib.repr(config[name])}" for name in wrong)
        raise UserError(
            f"{where}: the config has {text}; sizes must be whole numbers above 0, rates numbers "
            "(of dropout below 1)"
        )


def _check_tokenizer(settings: Mapping[str, Any], folder: Path) -> None:
    """Raises a UserError where vocab.txt alone does not say how text is split."""
    plain = {
        "tokenizer_class": ("BertTokenizer", "BertTokenizerFast"),
        "do_basic_tokenize": (True,),
        "tokenize_chinese_chars": (True,),
        "word_tokenizer_type": ("basic",),
        "subword_tokenizer_type": ("wordpiece",),
        "strip_accents": (settings.get("do_lower_case", True),),
    }
    for name, known in plain.items():
        if settings.get(name) not in (None, *known):
            raise UserError(
                f"{folder}: the tokenizer has {name}={settings[name]!r}, which vocab.txt does not "
                "tell; a tokenizer.json does: save the tokenizer with a transformers that has a "
                "fast one of its kind"
            )


def _arrays(folder: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of model.safetensors, or of the shards that model.safetensors.index.json names."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists():
        files = ["model.safetensors"]
    elif index.exists():
        files = sorted(set(read_checked(index, schemas.ShardIndex)["weight_map"].values()))
    else:
        others = [
            p.name for s in ("*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack") for p in folder.glob(s)
        ]
        if not others:
            raise UserError(f"{folder} has no model.safetensors")
        name = (config.get("architectures") or ["AutoModel"])[0]
        raise UserError(
            f"{folder} has no model.safetensors, only {some(others)}; .bin and .pt files are "
            "pickles, and opening one runs whatever code is in it. If you trust it, put a "
            'model.safetensors beside it where transformers and torch are: python -c "from '
            f"transformers import {name} as M; M.from_pretrained('{folder}').save_pretrained("
            f"'{folder}')\""
        )
    for file in files:
        open_regular(folder / file).close()
        with (
            library_errors(folder / file),
            safetensors.safe_open(folder / file, framework="numpy") as opened,
        ):
            for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                yield name, opened.get_tensor(name)


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, longest: int, one_segment: bool) -> None:
    """Writes tokenizer.json (and vocab.txt), with the [CLS] and [SEP] that it is to add.

    longest: where texts are cut. one_segment: whether both texts of a pair are of segment 0, as in
    a model that has no other.

    The class is the plain one that takes tokenizer.json as it is: BertTokenizer makes its own of
    the vocabulary alone, and so loses added tokens and how Hangul is kept whole.
    """
    tokenizer.save(folder)
    backend = tokenizers.Tokenizer.from_str(tokenizer.text)
    template = tokenizer.template
    first, second = (0, 0) if one_segment else template.segments
    before, between, after = (
        [tokenizer.tokens[number] for number in ids]
        for ids in (template.before, template.between, template.after)
    )
    opening = [f"{token}:{first}" for token in [*before, "$A"]]
    backend.post_processor = processors.TemplateProcessing(
        single=[*opening, *(f"{token}:{first}" for token in after)],
        pair=[
            *opening,
            *(f"{token}:{first}" for token in between),
            *(f"{token}:{second}" for token in ["$B", *after]),
        ],
        special_tokens=[(tokenizer.tokens[number], number) for number in template.special],
    )
    names = ["input_ids", "attention_mask"]
    if not one_segment:
        names.insert(1, "token_type_ids")
    # Only this: the library would write other last digits of a unigram vocabulary's scores.
    values = json.loads(tokenizer.text)
    values["post_processor"] = json.loads(backend.to_str())["post_processor"]
    write_whole(folder / "tokenizer.json", json.dumps(values, indent=2, ensure_ascii=False))
    roles = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **dict(zip(roles, tokenizer.special_tokens, strict=True)),
        "model_max_length": longest,
        "model_input_names": names,
    }
    write_json(folder / "tokenizer_config.json", settings)
