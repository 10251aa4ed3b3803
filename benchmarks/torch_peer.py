"""The peer: BERT of PyTorch `transformers`, set up as its users would."""

import contextlib
from typing import Any

import torch
import transformers

from bert_jax.families.bert import SIZES

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build(architecture: str, size: str, attention: str = "sdpa", **fields: Any) -> Any:
    """A fresh model of the named class, in training mode, float32.

    size: as in configs/pretrain.py. attention: "sdpa" or "eager". fields: more of BertConfig.
    """
    torch.manual_seed(0)
    layers, width, heads = SIZES[size].values()
    config = transformers.BertConfig(
        num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads,
        intermediate_size=4 * width, attn_implementation=attention, **fields,
    )  # fmt: skip
    return getattr(transformers, architecture)(config).to(DEVICE).train()


def precision(dtype: str) -> Any:
    """The context in which a forward pass computes in `dtype`."""
    if dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(DEVICE.type, getattr(torch, dtype))


def adamw(model: Any, learning_rate: float = 1e-4) -> torch.optim.AdamW:
    """The released optimiser's settings: no decay of biases and layer norms."""
    parameters = dict(model.named_parameters())
    plain = [n for n in parameters if n.endswith("bias") or "LayerNorm" in n]
    groups = [
        {"params": [p for n, p in parameters.items() if n not in plain], "weight_decay": 0.01},
        {"params": [parameters[n] for n in plain], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, eps=1e-6, fused=True)


def wait() -> None:
    """Until the device is done."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
