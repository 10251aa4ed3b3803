"""Which settings a config is checked by, for tests that go over configs of every kind."""

from typing import Any

from bert_jax.common.fields import Settings
from bert_jax.experiments.settings import settings_of as settings_of_table
from bert_jax.families import family_of
from bert_jax.preparing.settings import PREPARE
from bert_jax.tasks.settings import FINETUNE
from bert_jax.training.settings import PRETRAIN


def settings_of(config: Any) -> Settings:
    """Gives the settings of a config of any kind."""
    if PRETRAIN.describes(config):
        return family_of(config).settings
    kinds = [kind for kind in (FINETUNE, PREPARE) if kind.describes(config)]
    return kinds[0] if kinds else settings_of_table(config)
