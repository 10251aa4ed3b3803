"""BERT (Devlin et al. 2018): masked tokens and next sentences, by an encoder.

Sizes: the paper's base and large; tiny to medium are of the 24 small models of google-research/bert
(arXiv 1908.08962).
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from bert_jax.common.errors import UserError
from bert_jax.common.fields import Field, Settings, number, switch, whole
from bert_jax.data.template import Vocabulary, cls_sep
from bert_jax.families import encoder
from bert_jax.families.base import Family
from bert_jax.families.bert_names import NAMES
from bert_jax.objectives.corruption import Masking
from bert_jax.objectives.ltr import LeftToRight
from bert_jax.objectives.mlm import MaskedLM
from bert_jax.training.config import choose
from bert_jax.training.settings import PRETRAIN, check_pretraining

SIZES = {
    "tiny": {"layers": 2, "width": 128, "heads": 2},
    "mini": {"layers": 4, "width": 256, "heads": 4},
    "small": {"layers": 4, "width": 512, "heads": 8},
    "medium": {"layers": 8, "width": 512, "heads": 8},
    "base": {"layers": 12, "width": 768, "heads": 12},
    "large": {"layers": 24, "width": 1024, "heads": 16},
}
PARAMETERS = {  # of transformers' BertForPreTraining; 110M and 340M in the paper
    "tiny": 4_433_468,
    "mini": 11_267_900,
    "small": 29_058_876,
    "medium": 41_668_412,
    "base": 110_106_428,
    "large": 336_226_108,
}

PRESETS = {
    "paper": {
        "steps": 1_000_000,
        "batch_size": 256,
        "learning_rate": 1e-4,
        "warmup_steps": 0.01,
        "bias_correction": False,
        "decay_from": "start",
        "dropout": 0.1,
        "init_stddev": 0.02,
    },
}
PRESETS["modern"] = PRESETS["paper"] | {
    "steps": 250_000,
    "learning_rate": 5e-4,
    "warmup_steps": 0.05,
    "bias_correction": True,
    "decay_from": "warmup",
}
PRESETS["lamb"] = PRESETS["modern"] | {
    "steps": 7038 + 1563,
    "batch_size": 32_768,
    "learning_rate": 4e-3,
    "warmup_steps": 0.128,
    "optimizer": "lamb",
    "short_phase": {
        "share": 7038 / (7038 + 1563),
        "batch_size": 65_536,
        "learning_rate": 6e-3,
        "warmup_steps": 0.2843,
    },
}
# Narrow layers start from a wider distribution: at 0.02 their attention is all but uniform, and
# stays so for long. They also need the longer warm-up.
PRESETS["laptop"] = PRESETS["modern"] | {
    "steps": 10_000,
    "batch_size": 16,
    "learning_rate": 7e-4,
    "warmup_steps": 0.1,
    "dropout": 0.0,
    "init_stddev": 0.04,
}
PRESETS["quickstart"] = PRESETS["laptop"] | {
    "steps": 3_000,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "init_stddev": 0.06,
}


def _masks(config: Any) -> str:
    return (
        "with model.causal=true (objective=ltr): nothing is masked" if config.model.causal else ""
    )


def _pairs(config: Any) -> str:
    return "" if config.pairs else "with pairs=false: text is contiguous"


_ROWS: dict[str, Field] = {
    "nsp": switch(),
    "pairs": switch(),
    "nsp_exact_half": switch(_pairs),
    "short_seq_prob": number(least=0, most=1, acts=_pairs),
    "masking.rate": number(above=0, most=1, acts=_masks),
    "masking.mask_share": number(least=0, most=1, acts=_masks),
    "masking.random_share": number(least=0, most=1, acts=_masks),
    "masking.whole_word": switch(_masks),
    "masking.max_predictions": whole(0, acts=_masks),
    "masking.dupe_factor": whole(0),
}


def _section(config: Any, a: Any, preset: Mapping[str, Any]) -> None:
    causal = choose("objective", a.objective, {"mlm": False, "ltr": True})
    config.nsp = a.nsp and not causal  # next sentence prediction
    config.pairs = config.nsp  # sentence pairs, which nsp needs; false: contiguous text
    # Half of the pairs are random, as in the paper. False: as released, where the next of a chunk
    # of one sentence always is, so more than half are.
    config.nsp_exact_half = False
    config.short_seq_prob = 0.1  # share of documents cut to a random shorter length (with pairs)
    config.masking = masking = ml_collections.ConfigDict()
    masking.rate = 0.15  # share of tokens predicted
    masking.mask_share = 0.8  # of these: shown as [MASK]
    masking.random_share = 0.1  # ... as a random token; the rest as they are
    masking.whole_word = False
    masking.max_predictions = 0  # a sequence; 0: what the rate gives
    masking.dupe_factor = 0  # static masks and pairs, new in so many passes; 0: in every one
    config.model = encoder.section(choose("size", a.size, SIZES), preset, causal)


def _check(config: Any) -> None:
    check_pretraining(config)
    if config.masking.mask_share + config.masking.random_share > 1:
        raise UserError("masking.mask_share and masking.random_share are over 1 together")
    if config.nsp and (config.model.causal or not config.pairs):
        raise UserError("nsp=true needs pairs=true and model.causal=false")
    if config.pairs and config.model.segment_types < 2:
        raise UserError("pairs=true needs model.segment_types=2")


def _objective(config: Any, vocabulary: Vocabulary, format: int) -> MaskedLM | LeftToRight:
    network = encoder.backbone(config.model.to_dict(), vocabulary.size, config.dtype)
    never = cls_sep(vocabulary).special
    if network.causal:
        return LeftToRight(network, never)
    m = config.masking
    masking = Masking(
        vocab_size=vocabulary.size,
        mask_id=vocabulary.id("mask"),
        never=never,
        rate=m.rate,
        max_predictions=m.max_predictions or None,
        mask_share=m.mask_share,
        random_share=m.random_share,
        continuation=vocabulary.continuation if m.whole_word else None,
    )
    return MaskedLM(network, masking, config.nsp, config.pairs, config.seed, format)


def _layout_options(config: Any) -> dict[str, Any]:
    if not config.pairs:
        return {}
    return {"short_seq_prob": config.short_seq_prob, "exact_half": config.nsp_exact_half}


FAMILY = Family(
    name="bert",
    source="arXiv 1810.04805v2; google-research/bert",
    sizes=SIZES,
    size="base",
    parameters=PARAMETERS,
    vocabulary=30522,
    presets=PRESETS,
    arguments={"nsp": True, "objective": "mlm"},
    section=_section,
    settings=Settings({**PRETRAIN.rows, **encoder.ROWS, **_ROWS}, _check),
    template=cls_sep,
    backbone=encoder.backbone,
    objective=_objective,
    layout_options=_layout_options,
    names=NAMES,
    dupe_factor=lambda config: config.masking.dupe_factor or None,
)
