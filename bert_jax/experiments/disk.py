"""The disk that the checkpoints of many runs take, told before the first of them starts."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def checkpoint_bytes(model: Mapping[str, Any], vocab_size: int) -> int:
    """About what a checkpoint takes: parameters and both moments of the optimiser, in float32.

    model: the section of a config. Biases and norms, under a hundredth, are left out.
    """
    width = model["width"]
    attention = (model["head_width"] * model["heads"]) or width
    layer = 4 * width * attention + 2 * width * (model["feed_forward"] or 4 * width)
    tables = (vocab_size + model["max_positions"] + model["segment_types"]) * width
    heads = 2 * width * width  # of MLM, and the pooler
    return 3 * 4 * (model["layers"] * layer + tables + heads)


def told(needed: int, folder: Path) -> str:
    """One line on what checkpoints need, and on what the disk of the folder has."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    line = f"checkpoints in {folder} take up to {in_units(needed)}; {in_units(free)} are free"
    return line if needed < free else f"warning: {line}, which is too little"


def in_units(size: float) -> str:
    """`1.3 GB`, `20 MB`."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{max(size / 1e6, 1):,.0f} MB"
