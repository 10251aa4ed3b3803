#!/usr/bin/env bash
# From nothing but Python >= 3.11 to a pre-trained BERT: environment, corpus, vocabulary, training,
# evaluation, report. About eight minutes on two cores. A second call continues or is done at once.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh requirements.txt

corpus=corpora/pydocs run=runs/quickstart
# The documentation of whatever is installed: a later call must not notice that packages were added.
[ -e "$corpus/corpus.json" ] || python -m bert_jax.prepare \
  --config=configs/prepare.py:source=pydocs --config.vocab_size=8192 --config.held_out=0.05 --out="$corpus"
python -m bert_jax.main --config=configs/pretrain.py:size=tiny,seq=64,preset=quickstart \
  --config.corpus="$corpus" --workdir="$run"
