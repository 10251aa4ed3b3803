"""The pre-training step (MLM + NSP, dropout 0.1, AdamW, clipping) beside PyTorch's, in one run.

  pip install -r benchmarks/requirements.txt
  python -m benchmarks.train_step --size=base --batch_size=8 --seq_length=128 --repeats=5

Contenders: ours and `transformers` BertForPreTraining (SDPA), each in float32 and bfloat16 (of
PyTorch: autocast); with --compile also through torch.compile. All see full rows of the same shapes,
predict 15% of the positions, and hold float32 parameters. Ours draws the masks anew in every step,
as in training; PyTorch's batch is ready-made. TF32 is off in both, but for --tf32, which allows it
to PyTorch. Each turn begins with a step that does not count: the one after a pause is slower, of
PyTorch in bfloat16 several times. Seconds are of a step. A table, and one JSON line. MFU counts the
model's FLOPs analytically, at the published bf16 peak of the device.
"""

import dataclasses
import functools

from absl import flags

from benchmarks.contest import Result, Turn, as_json, contest, show
from benchmarks.our_step import VOCAB_SIZE, Shape, ours
from bert_jax import plan
from bert_jax.common import entry
from bert_jax.families import build_objective
from bert_jax.training.metrics import PEAK_FLOPS

_SIZE = flags.DEFINE_string("size", "base", "Size of the models, as in configs/pretrain.py.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Rows.", lower_bound=1)
_SEQ_LENGTH = flags.DEFINE_integer("seq_length", 128, "Tokens of a row.", lower_bound=8)
_STEPS = flags.DEFINE_integer("steps", 3, "Steps of a turn, besides one before.", lower_bound=1)
_DTYPES = flags.DEFINE_list("dtypes", ["float32", "bfloat16"], "Precisions.")
_COMPILE = flags.DEFINE_bool("compile", False, "Also torch.compile.")
_TF32 = flags.DEFINE_bool("tf32", False, "Allow TF32 to PyTorch.")


def pytorch(shape: Shape, compiled: bool, tf32: bool) -> Turn:
    """The same of `transformers`."""
    import torch

    from benchmarks import torch_peer as peer

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    model = peer.build("BertForPreTraining", shape.size)
    optimizer = peer.adamw(model)
    rows = {name: torch.from_numpy(x).long() for name, x in shape.batch().items()}
    objective = build_objective(shape.config(), plan.stand_in(VOCAB_SIZE))
    predicted = objective.masking.slots(shape.seq_length)
    labels = torch.full_like(rows["tokens"], -100)
    labels[:, 1 : predicted + 1] = rows["tokens"][:, 1 : predicted + 1]
    batch = {
        "input_ids": rows["tokens"],
        "token_type_ids": rows["segments"],
        "attention_mask": torch.ones_like(rows["tokens"]),
        "labels": labels,
        "next_sentence_label": rows["pair_label"],
    }
    batch = {name: x.to(peer.DEVICE) for name, x in batch.items()}
    call = torch.compile(model) if compiled else model

    def turn(times: int) -> None:
        for _ in range(times):
            with peer.precision(shape.dtype):
                loss = call(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        peer.wait()

    return turn


def main() -> None:
    """Measures all contenders."""
    shape = Shape(_SIZE.value, _BATCH_SIZE.value, _SEQ_LENGTH.value, "float32")
    contenders = {}
    for dtype in _DTYPES.value:
        one = dataclasses.replace(shape, dtype=dtype)
        contenders[f"ours, {dtype}"] = functools.partial(ours, one)
        contenders[f"PyTorch, {dtype}"] = functools.partial(pytorch, one, False, _TF32.value)
        if _COMPILE.value:
            compiled = functools.partial(pytorch, one, True, _TF32.value)
            contenders[f"PyTorch, {dtype}, torch.compile"] = compiled
    results = contest(contenders, _STEPS.value)
    objective = build_objective(shape.config(), plan.stand_in(VOCAB_SIZE))
    flops = objective.flops(shape.batch_size, shape.seq_length)
    kind = next((r.device for r in results.values() if r.device), "")
    peak = next((peak for part, peak in PEAK_FLOPS.items() if part in kind), None)

    def mfu(result: Result) -> str:
        return f"{flops / result.seconds / peak:.1%}" if peak else "-"

    show(results, {"tokens/s": lambda r: f"{shape.tokens / r.seconds:,.0f}", "MFU": mfu})
    print(as_json("train_step", results, tokens=shape.tokens, model_flops=flops))


if __name__ == "__main__":
    entry.run(main)
