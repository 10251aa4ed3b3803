#!/usr/bin/env bash
# One GPU: the tests that need an accelerator, SIGKILL and resume on it, then the pre-training step
# beside PyTorch's, Base and Large, of 128 and 512 tokens: a table and a JSON line each. In an
# environment with JAX and PyTorch for that GPU:
#   pip install -r requirements-dev.txt -r benchmarks/requirements.txt 'jax[cuda12]'
#   bash benchmarks/gpu.sh [flags of benchmarks.train_step]
# Meant for ten minutes and 140 GB; no GPU has run it yet. A smaller one: --batch_size=16.
set -euo pipefail
cd "$(dirname "$0")/.."

export XLA_PYTHON_CLIENT_PREALLOCATE=false # several processes share it
python -m pytest -m accelerator
JAX_PLATFORMS=cuda,cpu XLA_FLAGS=--xla_gpu_deterministic_ops=true python -m pytest tests/test_resume.py

while read -r size seq_length batch_size; do
  echo "$size, $batch_size x $seq_length"
  python -m benchmarks.train_step --size="$size" --seq_length="$seq_length" \
    --batch_size="$batch_size" --steps=5 --repeats=5 --dtypes=bfloat16 --compile "$@" </dev/null
done <<END
base 128 256
base 512 64
large 128 128
large 512 32
END
