"""The two small runs that are kept as an earlier version left them, and how each is started."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tiny_corpus
import tiny_tasks

from bert_jax import finetune, main
from bert_jax.training.checkpoint import load_params


def pretrain(folder: Path, workdir: Path, **changes: Any) -> None:
    """Starts or continues the pre-training: next sentence prediction, dropout, several passes."""
    config = tiny_corpus.small_config(
        corpus=str(folder / "corpus"), batch_size=8, model__layers=1, dtype="float32", **changes
    )
    main.pretrain(config, workdir)


def tune(folder: Path, workdir: Path, **changes: Any) -> None:
    """Starts or continues the fine-tuning: tags, a BiLSTM, dropout, two micro-batches a step."""
    config = tiny_tasks.make_config(
        folder / "pretraining", "task=custom,family=tagging", data=str(folder / "data"),
        batch_size=8, accumulation=2, max_length=16, log_every=4, bilstm=1,
        bilstm_width=8, dtype="float32", dropout=0.2, **{"epochs": 2.0, **changes},
    )  # fmt: skip
    finetune.finetune(config, workdir)


RUNS = {"pretraining": pretrain, "finetuning": tune}


def metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without their times."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "time"} for line in lines]


def parameters(workdir: Path) -> dict[str, np.ndarray]:
    """The parameters of the newest checkpoint, by path."""
    leaves = jax.tree.leaves_with_path(load_params(workdir))
    return {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(x) for p, x in leaves}


def machine() -> dict[str, Any]:
    """What the last bits of a matrix product may depend on."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    vector = [flag for flag in flags if flag.startswith(("avx", "fma", "amx", "sse4"))]
    packages = ("jax", "jaxlib", "numpy", "optax", "flax")
    return {
        "architecture": platform.machine(),
        "cpu": sorted(set(vector)),
        "cores": os.cpu_count(),
        **{name: version(name) for name in packages},
    }
