"""Makes the golden numbers in this folder with PyTorch `transformers`, a second implementation.

Run it in an environment of its own (nothing of bert_jax is imported, no JAX is needed):

    python3.11 -m venv torchenv
    torchenv/bin/pip install torch==2.13.0 transformers numpy
    torchenv/bin/python tests/golden/make_bert_goldens.py

It writes, next to itself, float32 arrays under bert_jax's names ("params/encoder/...", `/` between
the levels; a query kernel is [D, N, H], an output kernel [N, H, D], a dense kernel [in, out]):

- `bert_erf.npz`, `bert_tanh.npz`: a tiny `BertForPreTraining` (eager attention, dropout off) with
  random weights everywhere, biases and layer norms included, so that no wrong bias, scale or order
  can hide behind the zeros and ones of a fresh model. `config/`, `batch/`, `params/`, `hidden`
  [L + 1, B, S, D] (embeddings first), `pooled`, `mlm_logits` at `batch/positions`, `nsp_logits`,
  `mlm_loss`, `nsp_loss`, and `grads/`, the gradients of mlm_loss + nsp_loss.
- in `bert_erf.npz` also `adamw_released/`: `params/` after three steps of the optimiser of
  google-research/bert `optimization.py`, written out below from that file. Step t is given the
  gradients `grad_scales[t] * grads` (some under, some over the clipping norm) and `rates[t]`.
- `bert_counts.npz`: number of parameters of `BertForPreTraining` at the published sizes, V 30522.
"""

import os
import re

import numpy as np
import torch
import transformers

HERE = os.path.dirname(os.path.abspath(__file__))
SIZES = {  # layers, width, heads
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "medium": (8, 512, 8),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
}
NAMES = [  # theirs, ours
    (r"bert\.embeddings\.word_embeddings\.weight", "encoder/embeddings/token"),
    (r"bert\.embeddings\.position_embeddings\.weight", "encoder/embeddings/position"),
    (r"bert\.embeddings\.token_type_embeddings\.weight", "encoder/embeddings/segment"),
    (r"bert\.embeddings\.LayerNorm", "encoder/embeddings/norm"),
    (r"bert\.encoder\.layer\.(\d+)\.", r"encoder/layer_\1/"),
    (r"attention\.self\.", "attention/"),
    (r"attention\.output\.dense", "attention/output"),
    (r"attention\.output\.LayerNorm", "attention_norm"),
    (r"intermediate\.dense", "feed_forward/inner"),
    (r"output\.dense", "feed_forward/outer"),
    (r"output\.LayerNorm", "feed_forward_norm"),
    (r"bert\.pooler\.dense", "pooler/dense"),
    (r"cls\.predictions\.transform\.dense", "mlm_head/dense"),
    (r"cls\.predictions\.transform\.LayerNorm", "mlm_head/norm"),
    (r"cls\.predictions\.bias", "mlm_head/bias"),
    (r"cls\.seq_relationship", "nsp_head/dense"),
    (r"(norm)\.weight$", r"\1/scale"),
    (r"\.weight$", "/kernel"),
    (r"\.bias$", "/bias"),
]


def our_name(theirs: str) -> str:
    """The name of a parameter of `BertForPreTraining` in bert_jax."""
    for pattern, replacement in NAMES:
        theirs = re.sub(pattern, replacement, theirs)
    assert "." not in theirs, theirs
    return theirs


def our_layout(name: str, value: np.ndarray, heads: int) -> np.ndarray:
    """The array as bert_jax keeps it; `value` is PyTorch's, [out, in] for a linear layer."""
    if re.search(r"attention/(query|key|value)/kernel", name):
        return value.T.reshape(value.shape[1], heads, -1)
    if re.search(r"attention/(query|key|value)/bias", name):
        return value.reshape(heads, -1)
    if name.endswith("attention/output/kernel"):
        return value.T.reshape(heads, -1, value.shape[0])
    return value.T if name.endswith("/kernel") else value


def ours(model, heads: int, attribute: str) -> dict[str, np.ndarray]:
    """The `data` or `grad` of every parameter (a tied one once), by our names."""
    found = {}
    for theirs, parameter in model.named_parameters():
        name = our_name(theirs)
        value = getattr(parameter, attribute).detach().numpy()
        found[name] = np.array(our_layout(name, value, heads), np.float32)
    return found


def released_adamw(params, grads, scales, rates):
    """google-research/bert `optimization.py`: clipping, then `AdamWeightDecayOptimizer`."""
    beta_1, beta_2, epsilon, decay, clip = 0.9, 0.999, 1e-6, 0.01, 1.0
    params = {name: p.astype(np.float64) for name, p in params.items()}
    m = {name: np.zeros_like(p) for name, p in params.items()}
    v = {name: np.zeros_like(p) for name, p in params.items()}
    for scale, rate in zip(scales, rates, strict=True):
        step = {name: g.astype(np.float64) * scale for name, g in grads.items()}
        norm = np.sqrt(sum(np.sum(g * g) for g in step.values()))
        for name in params:
            g = step[name] * clip / max(norm, clip)
            m[name] = beta_1 * m[name] + (1 - beta_1) * g
            v[name] = beta_2 * v[name] + (1 - beta_2) * g * g
            update = m[name] / (np.sqrt(v[name]) + epsilon)  # no bias correction
            # exclude_from_weight_decay=["LayerNorm", "layer_norm", "bias"]: every embedding and
            # kernel decays, no layer norm and no bias (the MLM output bias included) does.
            if not re.search("norm|bias", name):
                update = update + decay * params[name]
            params[name] = params[name] - rate * update
    return {name: p.astype(np.float32) for name, p in params.items()}


def make_model(path: str, seed: int, activation: str, heads: int, optimizer: bool) -> None:
    """Writes one golden file: L 2, D 24, F 48, V 61, S 16, B 3; head width 24 / heads."""
    sizes = {"layers": 2, "width": 24, "heads": heads, "head_width": 24 // heads}
    sizes |= {"feed_forward": 48, "vocab_size": 61, "max_positions": 20}
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    config = transformers.BertConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["width"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=heads,
        intermediate_size=sizes["feed_forward"],
        max_position_embeddings=sizes["max_positions"],
        hidden_act=activation,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-12,
        attn_implementation="eager",
    )
    model = transformers.BertForPreTraining(config).float()
    # Theirs would drop the gradient of id 0 in the input; the released code does not.
    model.bert.embeddings.word_embeddings.padding_idx = None
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.25)
            if "LayerNorm.weight" in name:
                parameter.add_(1.0)

    size = 16
    lengths = np.array([16, 11, 5], np.int32)
    tokens = rng.integers(0, sizes["vocab_size"], (3, size), np.int32)
    tokens[0, 3] = 0  # a real token with the id of [PAD] (the released code draws it as well)
    real = np.arange(size) < lengths[:, None]
    segments = (np.arange(size) >= np.array([[9], [4], [2]])) & real
    tokens, segments = np.where(real, tokens, 0), segments.astype(np.int32)
    positions = np.array([[1, 3, 7, 8, 15], [2, 3, 10, 0, 0], [4, 0, 0, 0, 0]], np.int32)
    weights = np.array([[1] * 5, [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], np.float32)
    labels = rng.integers(0, sizes["vocab_size"], positions.shape, np.int32)
    labels = labels * (weights > 0)
    next_label = np.array([1, 0, 1], np.int32)
    theirs = np.full((3, size), -100)
    for row, slot in zip(*np.nonzero(weights), strict=True):
        theirs[row, positions[row, slot]] = labels[row, slot]

    def tensor(array):
        return torch.tensor(np.asarray(array, np.int64))

    out = model(
        input_ids=tensor(tokens),
        token_type_ids=tensor(segments),
        attention_mask=tensor(real),
        output_hidden_states=True,
    )
    pooled = model.bert(tensor(tokens), tensor(real), tensor(segments)).pooler_output
    mlm_logits, nsp_logits = out.prediction_logits, out.seq_relationship_logits
    mlm_loss = torch.nn.functional.cross_entropy(
        mlm_logits.reshape(-1, sizes["vocab_size"]), tensor(theirs).reshape(-1), ignore_index=-100
    )
    nsp_loss = torch.nn.functional.cross_entropy(nsp_logits, tensor(next_label))
    with_loss = model(
        input_ids=tensor(tokens),
        token_type_ids=tensor(segments),
        attention_mask=tensor(real),
        labels=tensor(theirs),
        next_sentence_label=tensor(next_label),
    )
    assert torch.allclose(with_loss.loss, mlm_loss + nsp_loss, atol=1e-6)
    with_loss.loss.backward()

    params, grads = ours(model, heads, "data"), ours(model, heads, "grad")
    picked = np.take_along_axis(mlm_logits.detach().numpy(), positions[..., None], axis=1)
    arrays = {f"config/{name}": np.array(value) for name, value in sizes.items()}
    batch = {"tokens": tokens, "segments": segments, "lengths": lengths, "positions": positions}
    batch |= {"labels": labels, "weights": weights, "is_random_next": next_label}
    arrays |= {f"batch/{name}": value for name, value in batch.items()}
    arrays |= {f"params/{name}": value for name, value in params.items()}
    arrays |= {f"grads/{name}": value for name, value in grads.items()}
    arrays |= {
        "hidden": torch.stack(out.hidden_states).detach().numpy(),
        "pooled": pooled.detach().numpy(),
        "mlm_logits": picked,
        "nsp_logits": nsp_logits.detach().numpy(),
        "mlm_loss": mlm_loss.detach().numpy(),
        "nsp_loss": nsp_loss.detach().numpy(),
    }
    if optimizer:
        norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in grads.values()))
        scales = np.array([0.5, -3.0, 1.7]) / norm  # global norms 0.5, 3.0, 1.7; clipped to 1
        rates = np.array([0.01, 0.02, 0.005])
        after = released_adamw(params, grads, scales, rates)
        arrays |= {"adamw_released/grad_scales": scales, "adamw_released/rates": rates}
        arrays |= {f"adamw_released/params/{name}": value for name, value in after.items()}
    np.savez_compressed(os.path.join(HERE, path), **arrays)
    print(path, f"mlm_loss {mlm_loss:.6f}", f"nsp_loss {nsp_loss:.6f}", f"{len(params)} parameters")


def make_counts(path: str) -> None:
    """Writes how many parameters each published size has."""
    counts = {}
    for name, (layers, width, heads) in SIZES.items():
        config = transformers.BertConfig(
            vocab_size=30522,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
        )
        with torch.device("meta"):
            model = transformers.BertForPreTraining(config)
            model.tie_weights()
        counts[name] = np.array(sum(p.numel() for p in model.parameters()))
        print(name, f"{counts[name]:,}")
    np.savez_compressed(os.path.join(HERE, path), **counts)


if __name__ == "__main__":
    print("torch", torch.__version__, "transformers", transformers.__version__)
    make_model("bert_erf.npz", seed=1, activation="gelu", heads=4, optimizer=True)
    make_model("bert_tanh.npz", seed=2, activation="gelu_new", heads=3, optimizer=False)
    make_counts("bert_counts.npz")
