"""TPU slices without TPUs: topologies for the ahead-of-time compiler, and what a chip can do.

Sources: Google Cloud's specification tables of each TPU; links of v2 and v3: Jouppi et al., "A
domain-specific supercomputer for training deep neural networks", 2020. `flops_per_cycle` and
`memory` are the compiler's own (libtpu 0.0.42): its estimate of a bf16 product of 8192³, rounded up
to a power of two, and the "available HBM" of its out-of-memory message.
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any, cast

import jax
from jax.experimental import topologies

from bert_jax.common.errors import UserError
from bert_jax.training.metrics import peak_flops

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One generation; figures are of a JAX device unless they say otherwise."""

    dimensions: int  # of a slice: 2 or 3
    most_chips: int  # of a slice
    devices: int  # a chip: 2 where each of the two cores is one
    flops_per_cycle: int  # dense bf16
    memory: int  # bytes of HBM that programs may use
    memory_bandwidth: float  # bytes/s
    link: float  # bytes/s to one neighbour, one way, of a chip
    network: float  # bytes/s to other slices, of a chip


CHIPS = {
    "v2": Chip(2, 256, 2, 32768, int(7.48 * _GIB), 350e9, 62e9, 3.1e9),
    "v3": Chip(2, 1024, 2, 65536, int(15.48 * _GIB), 450e9, 82e9, 3.1e9),
    "v4": Chip(3, 4096, 1, 262144, int(30.75 * _GIB), 1228e9, 50e9, 6.2e9),
    "v5e": Chip(2, 256, 1, 131072, int(15.75 * _GIB), 819e9, 50e9, 3.1e9),
    "v5p": Chip(3, 8960, 1, 262144, int(95.74 * _GIB), 2765e9, 100e9, 6.2e9),
    "v6e": Chip(2, 256, 1, 524288, int(31.25 * _GIB), 1640e9, 100e9, 12.5e9),
    "7x": Chip(3, 9216, 2, 524288, int(94.75 * _GIB), 3690e9, 100e9, 12.5e9),
}
_FORMS = (
    "KIND:AxB for v2, v3, v5e and v6e, as v5e:16x16; KIND:AxBxC for v4, v5p and 7x, as v4:4x4x8; "
    "in chips, A and B even, or 1 for a single chip of v5e and v6e"
)

# For libtpu where there is no TPU: do not ask the metadata server, do not warn about what it would
# have said, do not mind another process that uses the library.
_LIBRARY = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def parse_topology(text: str) -> tuple[str, tuple[int, ...]]:
    """`v5e:16x16` -> ("v5e", (16, 16)): the kind of the chips, and their number along each axis.

    Raises: UserError: there is no such slice; it lists the valid forms.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", text.lower().removeprefix("tpu"))
    kind, sizes = match.groups() if match else ("", "")
    shape = tuple(int(size) for size in sizes.split("x") if size)
    chip = CHIPS.get(kind)
    one = kind in ("v5e", "v6e") and shape == (1, 1)
    whole_hosts = all(shape) and not any(size % 2 for size in shape[:2])  # 2x2 chips a host
    if chip is None or len(shape) != chip.dimensions or not (one or whole_hosts):
        raise UserError(f"there is no TPU slice {text!r}; valid: {_FORMS}")
    if math.prod(shape) > chip.most_chips:
        raise UserError(
            f"{text} is over the {chip.most_chips:,} chips of the largest slice of {kind}; "
            "several slices are joined by --slices"
        )
    return kind, shape


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice of a topology or several alike, to compile for; nothing can run on it."""

    name: str  # the topology of one
    count: int  # of slices
    chip: Chip
    devices: Sequence[jax.Device]  # of all

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return len(self.devices) // self.chip.devices

    @property
    def peak(self) -> float:
        """Dense bf16 FLOP/s of a device."""
        return cast(float, peak_flops(self.devices[0]))


def open_slice(topology: str, count: int = 1) -> Slice:
    """The slices of a topology, as `parse_topology` reads it.

    Raises: UserError: there is no such slice, or the compiler is not installed.
    """
    kind, shape = parse_topology(topology)
    return Slice(topology, count, CHIPS[kind], _devices(kind, shape, count))


def _devices(kind: str, shape: tuple[int, ...], slices: int) -> list[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "the TPU compiler is not installed here (no TPU is needed): "
            f"pip install 'jax[tpu]=={jax.__version__}'"
        )
    for name, value in _LIBRARY.items():
        os.environ.setdefault(name, value)
    name = f"{'tpu' if kind == '7x' else ''}{kind}:{'x'.join(map(str, shape))}"
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if kind == "v4":
        options["chip_config_name"] = "megacore"  # both cores as one device, as jax runs them
    if math.prod(shape) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return list(topologies.get_topology_desc(name, "tpu", **options).devices)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{name}: {' '.join(str(error).split())}; valid: {_FORMS}") from error
