"""Fine-tuning on one task, or evaluating and predicting with a fine-tuned model.

  python -m bert_jax.finetune --config=configs/finetune.py:task=mrpc \
      --config.init_from=RUN --config.data=glue_data/MRPC --workdir=OUT
  python -m bert_jax.finetune --config=configs/finetune.py:task=mrpc,mode=predict \
      --config.data=glue_data/MRPC --workdir=OUT

Arguments (after the colon):
  task    a name of the table (`bert_jax/tasks`), or custom: your own file, see `config.custom`.
  family  of a custom task: classification (default), answering, tagging or choice.
  mode    train (default): train, evaluate, keep the best by the official dev metric, predict the
          test split if there is one. eval, predict: with the model in --workdir, into a folder in
          it; with --output=FILE.csv (.tsv, .jsonl) a table beside the columns of the input.
  preset  paper (default): sections 4 and A.3; Adam without bias correction.
          stable: bias correction, 20 epochs, the top layer and the pooler made new (Mosbach et al.
          2021, Zhang et al. 2021), for small data sets on which runs collapse.
          small: bias correction and a higher rate, for models narrower than BERT-Base
          (google-research/bert, "Smaller BERT models").
"""

import ml_collections

from bert_jax.tasks import FAMILIES, get_task
from bert_jax.tasks import family as family_of
from bert_jax.training.config import choose, parse_arg

# max_length, batch_size, learning_rate, epochs: by family, and where the paper has others, by task.
_PAPER = {
    "classification": (128, 32, 2e-5, 3.0),
    "answering": (384, 32, 5e-5, 3.0),
    "tagging": (128, 32, 5e-5, 3.0),  # not given in the paper
    "choice": (128, 16, 2e-5, 3.0),
    "squad2": (384, 48, 5e-5, 2.0),
}
PRESETS = {
    "paper": {"bias_correction": False, "decay_from": "start", "reinit_layers": 0},
    "stable": {
        "bias_correction": True, "decay_from": "warmup", "reinit_layers": 1,
        "learning_rate": 2e-5, "epochs": 20.0,
    },
    "small": {
        "bias_correction": True, "decay_from": "warmup", "reinit_layers": 0,
        "learning_rate": 3e-4, "epochs": 4.0,
    },
}  # fmt: skip
MODES = ("train", "eval", "predict")


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in the module's docstring."""
    a = parse_arg(arg, task="mrpc", family="classification", mode="train", preset="paper")
    choose("family", a.family, FAMILIES)
    kind = a.family if a.task == "custom" else family_of(get_task(a.task))
    names = ("max_length", "batch_size", "learning_rate", "epochs")
    recipe = dict(zip(names, _PAPER.get(a.task, _PAPER[kind]), strict=True))
    recipe |= choose("preset", a.preset, PRESETS)
    choose("mode", a.mode, dict.fromkeys(MODES))
    section = ml_collections.ConfigDict

    config = section()
    config.task = a.task
    config.mode = a.mode
    config.init_from = ""  # a run, a Hugging Face folder or a TF1 release: weights and vocabulary
    config.from_scratch = False  # only the sizes and the vocabulary of init_from: a baseline
    config.seed = 0  # of new parameters, data order and dropout

    config.data = ""  # folder of the official files, or tfds:NAME
    config.train = ""  # single files in place of those of the folder
    config.dev = ""
    config.test = ""
    config.dev_share = 0.0  # of the training examples held out where there is no dev file
    config.train_examples = 0  # the first so many only; 0: all
    config.custom = section()  # task=custom: what the columns of your file are
    config.custom.family = a.family
    config.custom.text = "text"
    config.custom.pair = ""  # column of the second text
    config.custom.label = "label"  # of numbers: one or more columns, a,b,c
    config.custom.kind = "single"  # one label a text; multi: several or none; numbers
    config.custom.separator = ","  # of several labels
    config.custom.prompt = "prompt"  # choice: column of the beginning
    config.custom.endings = ""  # choice: columns a,b,c of the endings
    config.custom.labels = ""  # choice: what the label column calls them; empty: 0, 1, ...
    config.custom.unanswerable = True  # answering: SQuAD 2.0 rather than 1.1
    config.custom.joined = False  # tagging: characters of running text, not words
    config.custom.document_context = False  # tagging: fill the input with the document around
    config.add_tokens = ""  # file of new vocabulary entries, one a line

    config.max_length = recipe["max_length"]  # tokens, with [CLS] and [SEP]
    config.batch_size = recipe["batch_size"]
    config.accumulation = 1  # micro-batches an update; divides batch_size
    config.epochs = recipe["epochs"]
    config.learning_rate = recipe["learning_rate"]  # at its peak
    config.warmup_steps = 0.1  # below 1: a share of the steps
    config.optimizer = section()
    config.optimizer.name = "adamw"
    config.optimizer.beta1 = 0.9
    config.optimizer.beta2 = 0.999
    config.optimizer.epsilon = 1e-6
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0
    config.optimizer.bias_correction = recipe["bias_correction"]
    config.optimizer.decay_all = False  # weights of biases and norms decay, too
    config.optimizer.decay_from = recipe["decay_from"]
    config.dropout = 0.1  # everywhere, whatever the model was pre-trained with
    config.reinit_layers = recipe["reinit_layers"]  # top layers (and the pooler) made new

    config.features = ""  # frozen encoder: embeddings, second_to_last, last, weighted_last_4,
    # concat_last_4 or weighted_all (paper, Table 7); empty: fine-tuning
    config.bilstm = 0  # layers of a fresh BiLSTM on top (paper, feature-based: 2)
    config.bilstm_width = 768

    config.remat = False  # recompute activations in the backward pass: less memory
    config.dtype = "auto"  # of the computation; bfloat16 on accelerators, float32 on CPU
    config.log_every = 50  # steps
    config.eval_every = 0  # steps; 0: once an epoch
    config.checkpoint_minutes = 10.0  # since the last evaluation or checkpoint: another; 0: none
    config.keep_checkpoints = 1  # newest, beside the best
    config.mesh = section()  # devices along each axis; -1: the rest
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.tensor = 1
    return config
