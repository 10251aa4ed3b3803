"""Flags that several entries have; each is defined once, so that entries can use one another."""

from typing import Any

from absl import flags
from ml_collections import config_flags

from bert_jax.common.fields import Settings
from bert_jax.common.flag_parsing import path_flag

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file and its arguments.")
WORKDIR = path_flag("workdir", "Folder of the run (docs/pretraining.md).")
OUT = path_flag("out", "Folder to make; of a submission the zip file.")
OUTPUT = path_flag("output", "File to write.")
TOPOLOGY = flags.DEFINE_string("topology", None, "A slice, in chips: v5e:16x16, v4:4x4x8 ...")
SLICES = flags.DEFINE_integer("slices", 1, "How many such slices.", lower_bound=1)


def read_config(flag: flags.FlagHolder, settings: Settings) -> Any:
    """Gives the config of the command line (`flag` is CONFIG), with the home folder for `~`.

    Returns: None where there is none, or where it is one of another kind.
    """
    if not settings.describes(flag.value):
        return None
    settings.expand_paths(flag.value)
    return flag.value


def given() -> dict[str, Any]:
    """The fields of the config that the command line sets, by dotted name."""
    return config_flags.get_override_values(flags.FLAGS["config"])


def changed() -> dict[str, Any]:
    """Those of `given` that are not as the config file has them."""
    file = config_flags.get_config_filename(flags.FLAGS["config"])
    default = flags.FLAGS["config"].parser.parse(file)
    before = {name: _value(default, name) for name in given()}
    return {name: value for name, value in given().items() if value != before[name]}


def _value(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = config[part]
    return config
