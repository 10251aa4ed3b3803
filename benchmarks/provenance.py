"""What a result of a benchmark must say about where it comes from."""

import contextlib
import os
import platform
import subprocess
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
        "commit": _commit(),
        "versions": versions,
        "cores": len(os.sched_getaffinity(0)),
        "machine": _machine(),
    }


def _commit() -> str:
    """Of this repository, with a + where files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        commit = subprocess.check_output([*git, "rev-parse", "--short", "HEAD"], text=True).strip()
        changed = subprocess.check_output([*git, "status", "--porcelain", "-uno"], text=True)
        return commit + "+" * bool(changed)
    return ""


def _machine() -> str:
    """The name of the processor, as far as the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()
