"""A table or figure of the paper, at a chosen scale.

  python -m bert_jax.reproduce --config=configs/reproduce.py:table=5,scale=laptop \
      --config.pretraining.corpus=CORPUS --config.glue=glue_data \
      --config.finetuning.wnut17.data=wnut17 --workdir=OUT

Arguments (after the colon):
  table   1 (GLUE), 2, 3 (SQuAD), 4 (SWAG): fine-tuning of `--config.checkpoint` over the paper's
          grid; 5 (pre-training tasks), 6 (model size), figure5 (steps), 7 (named entities), 8
          (masking): whatever must be pre-trained, then fine-tuned.
  scale   laptop (default): 4 layers of 128, hours of two CPU cores for a table. accelerator: 8
          layers of 512, sized for a day of one GPU or TPU VM, not yet measured. paper: the
          published settings and batch sizes; `--topology` prints what that costs on a slice.
  tasks   joined by +, as mrpc+cola; by default the paper's, at laptop scale others in their place.
  grid    none: each task's own settings; paper: section 4.1; paper_a3; small. For GLUE's tasks;
          the others keep the paper's own. Default: paper at that scale, and of a checkpoint at
          accelerator's; else none, as models so narrow want the higher rate of the scale. For
          them, small is what was published: five times the runs of paper.

`config.pretraining` is a whole configs/pretrain.py and `config.finetuning.TASK` a whole
configs/finetune.py: every field can be set. A task without data is left out, and that is said.
"""

import ml_collections

from bert_jax.common.shipped import config_module
from bert_jax.experiments.grid import GRIDS
from bert_jax.experiments.paper import BASE, FROM_CHECKPOINT, LAPTOP_TASKS, SIZES, TASKS
from bert_jax.tasks import TASKS as KNOWN_TASKS
from bert_jax.training.config import choose, parse_arg

# Not by `import`: an installed package has no folder `configs` on Python's path.
finetune, pretrain = config_module("finetune"), config_module("pretrain")

# By scale: argument of configs/pretrain.py and of configs/finetune.py, and fields of the first.
SCALES = {
    "laptop": (
        "seq=128,preset=laptop,phases=true", "preset=small",
        {
            "steps": 6_000, "masking.rate": 0.2, "eval_every": 1_000, "checkpoint_every": 500,
            # Short sequences first: attention to neighbours is learnt early (results/README.md).
            "short_phase.seq_length": 24, "short_phase.share": 0.5, "short_phase.batch_size": 84,
            "short_phase.learning_rate": 1e-3, "short_phase.warmup_steps": 0.1,
        },
    ),
    "accelerator": (
        "seq=512,preset=modern,phases=true", "preset=small",
        {"steps": 100_000, "eval_every": 10_000, "checkpoint_every": 2_000},
    ),
    "paper": (
        "seq=512,preset=paper,phases=true", "preset=paper",
        {"checkpoint_every": 10_000},
    ),
}  # fmt: skip
# At laptop scale; what is smaller than this converges later.
_LAPTOP_EPOCHS = {"sst2": 1.0, "wnut17": 8.0, "conll2003": 3.0, "codah": 3.0, "mnli": 1.0}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in the module's docstring."""
    a = parse_arg(arg, table="5", scale="laptop", tasks="", grid="")
    choose("table", a.table, TASKS)
    pretraining, finetuning, fields = choose("scale", a.scale, SCALES)
    config = ml_collections.ConfigDict()
    config.table = a.table
    config.scale = a.scale
    published = a.scale == "paper" or (a.scale == "accelerator" and a.table in FROM_CHECKPOINT)
    config.grid = a.grid or ("paper" if published else "none")
    choose("grid", config.grid, GRIDS)
    config.seeds = 5 if a.scale == "paper" else 3  # of each fine-tuning
    config.checkpoint = ""  # tables 1-4 and 7: the model to fine-tune; 7 pre-trains one if empty
    config.glue = ""  # folder with CoLA/, MRPC/ and so on, for those of them without data

    config.pretraining = pretrain.get_config(pretraining)
    layers, width, heads = SIZES[a.scale][BASE]
    config.pretraining.update_from_flattened_dict(
        {**fields, "model.layers": layers, "model.width": width, "model.heads": heads}
    )
    config.finetuning = ml_collections.ConfigDict()
    default = (LAPTOP_TASKS if a.scale == "laptop" else TASKS)[a.table]
    for task in a.tasks.split("+") if a.tasks else default.split():
        choose("task", task, KNOWN_TASKS)
        one = finetune.get_config(f"task={task},{finetuning}")
        one.bilstm_width = width  # paper: 768, the width of BERT-Base
        if a.scale == "laptop":
            one.epochs = _LAPTOP_EPOCHS.get(task, one.epochs)
        if task == "codah":
            one.dev_share = 0.2  # its one file has no splits
        config.finetuning[task] = one
    return config
