"""Published lines of models, a file each: what it selects of everything else. `base` says what.

Nothing outside this room and the tests knows a family's name.
"""

from typing import Any

from bert_jax.common import run_format
from bert_jax.common.errors import UserError, did_you_mean
from bert_jax.data.template import Vocabulary
from bert_jax.families import bert
from bert_jax.families.base import Family
from bert_jax.objectives.base import Pretraining

FAMILIES: dict[str, Family] = {family.name: family for family in (bert.FAMILY,)}
DEFAULT = next(iter(FAMILIES))
run_format.MEANT["family"] = DEFAULT  # runs that do not say theirs are from before the others


def get_family(name: str) -> Family:
    """Gives the family of a name. Raises: UserError: there is none."""
    if name not in FAMILIES:
        hint = did_you_mean(name, FAMILIES)
        raise UserError(f"family {name!r} is unknown; known: {', '.join(FAMILIES)}{hint}")
    return FAMILIES[name]


def build_objective(
    config: Any, vocabulary: Vocabulary, format: int = run_format.FORMAT
) -> Pretraining:
    """Makes the objective of a pre-training config. format: of the run, which decides its keys."""
    return family_of(config).objective(config, vocabulary, format)


def family_of(config: Any) -> Family:
    """Gives the family of a run's config. Raises: UserError: this version does not know it."""
    return get_family(config.get("family", DEFAULT))
