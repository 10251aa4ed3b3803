"""Pre-training: masked language modelling with next sentence prediction.

  python -m bert_jax.main --config=configs/pretrain.py:size=base,seq=128 \
      --config.corpus=CORPUS --workdir=RUN

Arguments (after the colon):
  family  bert (default). The others below are its; each family has sizes and presets of its own.
  size    tiny, mini, small, medium, base (default) or large; single sizes by --config.model.width
          and so on.
  seq     sequence length, default 128.
  preset  paper (default): the published settings, Adam without bias correction, rate decaying from
          step 0, dropout. BERT-Base, batch 256: 1 M steps, 4 days on 4 Cloud TPUs (paper, A.2).
          modern: bias correction, decay from the end of warm-up, fewer steps at a higher rate.
          laptop: `modern` sized for an hour or so on two CPU cores, without dropout.
          lamb: large batches (arXiv 1904.00962): with size=large,seq=512,phases=true 64k sequences
          of 128 tokens, then 32k of 512, in 8,601 steps. Rates and warm-ups as in NVIDIA's
          DeepLearningExamples; the decay is linear here, a square root there.
          quickstart: what launch/quickstart.sh trains in five minutes, with size=tiny,seq=64.
  nsp     true (default): sentence pairs and the NSP loss; false: contiguous text, MLM alone. The
          other reading of the paper's "No NSP", pairs without the loss: --config.nsp=false.
  objective  mlm (default); ltr: left to right over every token, with a causal mask that stays in
          fine-tuning, on contiguous text (the paper's "LTR & No NSP").
  phases  true: the paper's two phases, 128 tokens for 90% of the steps (lamb: 82%), then `seq`
          (say 512).

Acceptance figure for BERT-Base on English: held-out perplexity about 4.0, NSP accuracy 97-98%.
"""

import re

import ml_collections

from bert_jax.families import DEFAULT, get_family
from bert_jax.training.config import choose, parse_arg


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in the module's docstring."""
    named = re.search(r"(?:^|,)\s*family=(\w*)", arg or "")
    family = get_family(named[1] if named else DEFAULT)
    a = parse_arg(
        arg, family=family.name, size=family.size, seq=128, preset="paper", phases=False,
        **family.arguments,
    )  # fmt: skip
    preset = choose("preset", a.preset, family.presets)
    section = ml_collections.ConfigDict

    config = section()
    config.family = family.name  # the published line of models
    config.corpus = ""  # folder written by bert_jax.prepare
    config.init_from = ""  # work directory whose parameters to start from; empty: from scratch
    config.seed = 0  # of everything random: initial parameters, data order, masks, dropout

    config.steps = preset["steps"]  # optimiser updates in all
    config.batch_size = preset["batch_size"]  # sequences an update, over all hosts and devices
    config.accumulation = 1  # micro-batches an update; divides batch_size
    config.seq_length = a.seq  # tokens, with [CLS] and [SEP]
    config.short_phase = section()
    config.short_phase.seq_length = 128  # of the first phase
    short = preset.get("short_phase", {})
    # of the steps; 0: one phase only
    config.short_phase.share = short.get("share", 0.9) if a.phases else 0.0
    config.short_phase.batch_size = short.get("batch_size", 0)  # 0: as the second phase
    # at the peak of a schedule of its own, after which the second starts anew; 0: one schedule
    config.short_phase.learning_rate = short.get("learning_rate", 0.0)
    config.short_phase.warmup_steps = short.get("warmup_steps", 0.0)  # of that schedule

    config.learning_rate = preset["learning_rate"]  # at its peak
    config.warmup_steps = float(preset["warmup_steps"])  # below 1: a share of the steps
    config.optimizer = section()
    config.optimizer.name = preset.get("optimizer", "adamw")  # adamw or lamb
    config.optimizer.beta1 = 0.9
    config.optimizer.beta2 = 0.999
    config.optimizer.epsilon = 1e-6
    config.optimizer.weight_decay = 0.01  # not of biases and layer norms
    config.optimizer.clip_norm = 1.0  # global gradient norm; 0: no clipping
    config.optimizer.bias_correction = preset["bias_correction"]
    config.optimizer.decay_all = False  # weights of biases and norms decay, too
    config.optimizer.decay_from = preset["decay_from"]  # start (released code) or warmup

    family.section(config, a, preset)

    config.dtype = "auto"  # of the computation; bfloat16 on accelerators, float32 on CPU
    config.workers = 0  # processes that make batches; 0: threads
    config.log_every = 100  # steps
    config.log_instances = False  # write down which instances each step took, a file a process
    steps = config.get_oneway_ref("steps")  # as the command line may set it
    config.eval_every = (steps + 9) // 10
    config.eval_instances = 2048  # of the held-out split
    config.checkpoint_every = (steps + 19) // 20
    # Since the last one: another, so that no more than this is lost. 0: by steps alone.
    config.checkpoint_minutes = 10.0
    config.keep_checkpoints = 2  # the newest
    config.keep_every = 0  # steps; at multiples of it one is saved, and stays; 0: none
    config.mesh = section()  # devices along each axis; -1: the rest
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.tensor = 1
    return config
