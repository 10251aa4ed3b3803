"""What a result of a benchmark must say about where it comes from."""

import contextlib
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any


def provenance(benchmark: str) -> dict[str, Any]:
    """The benchmark, its flags, versions of what it uses, and the machine."""
    packages = ("jax", "jaxlib", "flax", "torch", "transformers", "libtpu")
    versions = {}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "benchmark": benchmark,
        "flags": sys.argv[1:],
        "versions": versions,
        "cores": len(os.sched_getaffinity(0)),
        "machine": _machine(),
    }


def _machine() -> str:
    """The name of the processor, as far as the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()
