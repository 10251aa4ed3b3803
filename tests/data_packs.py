"""The packs of public data that some tests read, where they are there."""

import functools
import pathlib
import subprocess
import tempfile

import pytest

_PACKS = pathlib.Path(__file__).parents[2] / "shared" / "data"


@functools.cache
def _unpack(name: str) -> pathlib.Path:
    folder = pathlib.Path(tempfile.gettempdir()) / "bert_jax_data_packs"
    script = str(_PACKS / "unpack.sh")
    subprocess.run(["bash", script, str(folder), name], check=True, capture_output=True)
    return folder


def pack(name: str) -> pathlib.Path:
    """Folder with the unpacked pack `name`; skips the test where the packs are absent."""
    if not (_PACKS / f"{name}.tar.xz").exists():
        pytest.skip(f"the data pack {name} is not at ../shared/data")
    return _unpack(name)
