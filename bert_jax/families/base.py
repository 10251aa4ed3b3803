"""What a family is: a published line of models as one value."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from bert_jax.common.errors import UserError
from bert_jax.common.fields import Settings
from bert_jax.data.template import Template, Vocabulary
from bert_jax.families.names import Names
from bert_jax.models.backbone import Backbone
from bert_jax.objectives.base import Pretraining

Section = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Family:
    """What a published line of models selects; it never loops.

    The functions take a config (a ConfigDict of configs/pretrain.py) or its `model` section.
    """

    name: str  # of config.family
    source: str  # the paper and the code that it follows
    sizes: Mapping[str, Mapping[str, int]]  # by name; the fields of the model section that differ
    size: str  # the one where none is named
    # Of the pre-training model at each published size, with its heads and a vocabulary of
    # `vocabulary` tokens.
    parameters: Mapping[str, int]
    vocabulary: int
    presets: Mapping[str, Mapping[str, Any]]  # of pre-training; the first is the paper's
    # What it takes after the colon of --config beside what every family does, with the defaults.
    arguments: Mapping[str, Any]
    # (config, arguments, preset): adds the fields that this family has.
    section: Callable[[Any, Any, Mapping[str, Any]], None]
    settings: Settings  # of such a config
    template: Callable[[Vocabulary], Template]  # the special tokens around texts
    backbone: Callable[[Mapping[str, Any], int, str], Backbone]  # (model section, V, dtype)
    # (config, vocabulary, format): the objective of pre-training. format: of the run.
    objective: Callable[[Any, Vocabulary, int], Pretraining]
    layout_options: Callable[[Any], Mapping[str, Any]]  # of a config: what its layout takes
    names: Names | None = None  # of its arrays and settings in other formats; None: it has no other
    # Of a config: after how many passes over the text these repeat; None: never.
    dupe_factor: Callable[[Any], int | None] = lambda config: None

    def known_elsewhere(self) -> Names:
        """Gives its names in other formats. Raises: UserError: it has no other."""
        if self.names is None:
            raise UserError(f"a model of family={self.name} has no other format than ours")
        return self.names
