#!/usr/bin/env bash
# From nothing but Python >= 3.11 to a BERT pre-trained and fine-tuned: environment, corpus,
# vocabulary, pre-training, evaluation, report; then a task, beside the same model from scratch.
# Less than ten minutes on two cores. A second call continues or is done at once.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh requirements.txt

corpus=corpora/pydocs task=corpora/pydocs_task run=runs/quickstart
# The documentation of whatever is installed: a later call must not notice that packages were added.
[ -e "$corpus/corpus.json" ] || python -m bert_jax.prepare \
  --config=configs/prepare.py:source=pydocs --config.vocab_size=8192 --config.held_out=0.05 --out="$corpus"
[ -e "$task" ] || python -m bert_jax.pydocs_task --corpus="$corpus" --out="$task"
python -m bert_jax.main --config=configs/pretrain.py:size=tiny,seq=64,preset=quickstart \
  --config.corpus="$corpus" --workdir="$run"

finetune() {
  python -m bert_jax.finetune --config=configs/finetune.py:task=custom,preset=small \
    --config.init_from="$run" --config.data="$task" --config.max_length=64 "$@"
}
echo "Fine-tuning: which library is a passage from?"
finetune --workdir="$run-task"
echo "The same from scratch:"
finetune --workdir="$run-task-from-scratch" --config.from_scratch=true
python - "$run-task/results.json" "$run-task-from-scratch/results.json" <<'END'
import json, sys

tuned, scratch = (json.load(open(path)) for path in sys.argv[1:])
print(f"\n| which library? held-out modules, after {tuned['steps']} steps | accuracy |\n|---|---:|")
for name, scores in {
    "majority label": tuned["baselines"],
    "fine-tuned from scratch": scratch["scores"],
    "fine-tuned from the pre-trained model": tuned["scores"],
}.items():
    print(f"| {name} | {scores['dev']['accuracy']:.1%} |")
END
