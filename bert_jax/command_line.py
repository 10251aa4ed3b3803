"""Flags that several entries have; each is defined once, so that entries can use one another."""

from typing import Any

from absl import flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file and its arguments.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; see the README.")
OUTPUT = flags.DEFINE_string("output", None, "File to write.")
TOPOLOGY = flags.DEFINE_string("topology", None, "A slice, in chips: v5e:16x16, v4:4x4x8 ...")
SLICES = flags.DEFINE_integer("slices", 1, "How many such slices.", lower_bound=1)


def given() -> dict[str, Any]:
    """The fields of the config that the command line sets, by dotted name."""
    return config_flags.get_override_values(flags.FLAGS["config"])
