"""What the fields of configs/prepare.py may be."""

from typing import Any

from bert_jax.common.fields import Acts, Field, Settings, number, one_of, path, switch, text, whole
from bert_jax.data.records import RECORDS
from bert_jax.preparing.text import KINDS


def _trains_vocabulary(config: Any) -> str:
    return "with vocab, which is taken as it is" if config.vocab else ""


def _reads_kind(*kinds: str) -> Acts:
    def acts(config: Any) -> str:
        parts = [part.strip().split(":")[0] for part in config.input.split(",")]
        found = {config.source, *parts}.intersection(kinds)
        return "" if found else f"on source={config.source}: it is for {', '.join(kinds)}"

    return acts


_PREPARE: dict[str, Field] = {
    "source": one_of("pydocs", "tfds", *KINDS),
    "input": Field("patterns"),
    "text_feature": text(_reads_kind("tfds", *RECORDS)),
    "vocab": path(),
    "vocab_size": whole(1, acts=_trains_vocabulary),
    "vocab_kind": one_of("wordpiece", "unigram", acts=_trains_vocabulary),
    "vocab_sample_mb": whole(1, acts=_trains_vocabulary),
    "lowercase": switch(),
    "split_sentences": switch(),
    "on_error": one_of("stop", "skip", acts=_reads_kind(*KINDS)),
    "held_out_input": Field("patterns"),
    "held_out": number(above=0, below=1),
    "workers": whole(0, 1_000),
}
PREPARE = Settings(_PREPARE)
