"""Pre-training: masked language modelling with next sentence prediction.

  python -m bert_jax.main --config=configs/pretrain.py:size=base,seq=128 \
      --config.corpus=CORPUS --workdir=RUN

Arguments (after the colon):
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

import ml_collections

from bert_jax.training.config import SIZES, choose, parse_arg

PRESETS = {
    "paper": {
        "steps": 1_000_000,
        "batch_size": 256,
        "learning_rate": 1e-4,
        "warmup_steps": 0.01,
        "bias_correction": False,
        "decay_from": "start",
        "dropout": 0.1,
        "init_stddev": 0.02,
    },
}
PRESETS["modern"] = PRESETS["paper"] | {
    "steps": 250_000,
    "learning_rate": 5e-4,
    "warmup_steps": 0.05,
    "bias_correction": True,
    "decay_from": "warmup",
}
PRESETS["lamb"] = PRESETS["modern"] | {
    "steps": 7038 + 1563,
    "batch_size": 32_768,
    "learning_rate": 4e-3,
    "warmup_steps": 0.128,
    "optimizer": "lamb",
    "short_phase": {
        "share": 7038 / (7038 + 1563),
        "batch_size": 65_536,
        "learning_rate": 6e-3,
        "warmup_steps": 0.2843,
    },
}
# Narrow layers start from a wider distribution: at 0.02 their attention is all but uniform, and
# stays so for long. They also need the longer warm-up.
PRESETS["laptop"] = PRESETS["modern"] | {
    "steps": 10_000,
    "batch_size": 16,
    "learning_rate": 7e-4,
    "warmup_steps": 0.1,
    "dropout": 0.0,
    "init_stddev": 0.04,
}
PRESETS["quickstart"] = PRESETS["laptop"] | {
    "steps": 3_000,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "init_stddev": 0.06,
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in the module's docstring."""
    a = parse_arg(
        arg, size="base", seq=128, preset="paper", nsp=True, phases=False, objective="mlm"
    )
    causal = choose("objective", a.objective, {"mlm": False, "ltr": True})
    layers, width, heads = choose("size", a.size, SIZES)
    preset = choose("preset", a.preset, PRESETS)
    section = ml_collections.ConfigDict

    config = section()
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

    config.nsp = a.nsp and not causal  # next sentence prediction
    config.pairs = config.nsp  # sentence pairs, which nsp needs; false: contiguous text
    # Half of the pairs are random, as in the paper. False: as released, where the next of a chunk
    # of one sentence always is, so more than half are.
    config.nsp_exact_half = False
    config.short_seq_prob = 0.1  # share of documents cut to a random shorter length (with pairs)
    config.masking = section()
    config.masking.rate = 0.15  # share of tokens predicted
    config.masking.mask_share = 0.8  # of these: shown as [MASK]
    config.masking.random_share = 0.1  # ... as a random token; the rest as they are
    config.masking.whole_word = False
    config.masking.max_predictions = 0  # a sequence; 0: what the rate gives
    config.masking.dupe_factor = 0  # static masks and pairs, new in so many passes; 0: in every one

    config.model = section()
    config.model.layers = layers
    config.model.width = width
    config.model.heads = heads
    config.model.head_width = 0  # 0: width / heads
    config.model.feed_forward = 0  # 0: 4 * width
    config.model.max_positions = 512
    config.model.segment_types = 2
    config.model.activation = "gelu"  # erf (paper); gelu_tanh (released code since 2019-02); relu
    config.model.norm_epsilon = 1e-12
    # of fresh kernels and embeddings, cut at two of it
    config.model.init_stddev = preset["init_stddev"]
    config.model.causal = causal  # no position looks to its right: the objective is LTR
    config.model.hidden_dropout = preset["dropout"]
    config.model.attention_dropout = preset["dropout"]
    config.model.scan_layers = False  # one compiled layer: compiles faster
    config.model.remat = False  # recompute activations in the backward pass: less memory
    config.model.kernels = False  # fused TPU kernels; not yet measured on a TPU

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
