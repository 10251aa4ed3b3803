"""The tables and the figure of the BERT paper (arXiv 1810.04805v2), as rows of runs.

A row is a pre-training (by name; tables share them), changes to its fine-tuning, and the published
figures by column. A column is a task, with a metric where the paper does not report the task's
first. Figures are in percent but for perplexities; of dev sets, but for Table 1's.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

Values = Mapping[str, float]
Changes = Mapping[str, Any]

# Sizes (L, D, N) of Table 6, and models in the same proportions for less.
SIZES = {
    "paper": (
        (3, 768, 12), (6, 768, 3), (6, 768, 12), (12, 768, 12), (12, 1024, 16), (24, 1024, 16),
    ),
    "accelerator": (
        (2, 512, 8), (4, 512, 2), (4, 512, 8), (8, 512, 8), (8, 768, 12), (16, 768, 12),
    ),
    "laptop": ((1, 128, 4), (2, 128, 1), (2, 128, 4), (4, 128, 4), (4, 192, 6), (8, 192, 6)),
}  # fmt: skip
BASE = 3  # the row of SIZES that the other tables take

# The paper gives no learning rate and no epochs for these; those of fine-tuning leave a new BiLSTM
# untrained.
_FROZEN: Changes = {"bilstm": 2, "learning_rate": 1e-3, "epochs": 20.0}
FEATURE_BASED: Changes = {"features": "concat_last_4", **_FROZEN}


@dataclasses.dataclass(frozen=True)
class Row:
    """A model of a table."""

    label: str
    pretraining: str = "BERT"  # of PRETRAININGS, or a size
    finetuning: Changes = dataclasses.field(default_factory=dict)  # fields of configs/finetune.py
    published: Values = dataclasses.field(default_factory=dict)  # by name of the column
    share: float = 1.0  # of the pre-training's steps: a checkpoint along the way
    reference: str = ""  # label of the row it is compared with; empty: the first


@dataclasses.dataclass(frozen=True)
class Column:
    """A score of a table; of a task's dev set."""

    name: str
    task: str
    metric: str = ""  # empty: the one that decides
    split: str = "dev"
    finetuning: Changes = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows, compared with the first unless they name another."""

    title: str
    rows: tuple[Row, ...]
    note: str = ""
    perplexity: bool = False  # a column of the held-out perplexity of the pre-training


# name -> changes to configs/pretrain.py
PRETRAININGS: dict[str, Changes] = {
    "BERT": {},
    "no_nsp": {"nsp": False, "pairs": False},
    "no_nsp_pairs": {"nsp": False},
    "ltr": {"nsp": False, "pairs": False, "model.causal": True},
    **{
        f"mask_{mask}_{same}_{random}": {
            "masking.mask_share": mask / 100,
            "masking.random_share": random / 100,
        }
        for mask, same, random in (
            (100, 0, 0), (80, 0, 20), (80, 20, 0), (0, 20, 80), (0, 0, 100),
        )
    },
}  # fmt: skip


def size_name(size: tuple[int, int, int]) -> str:
    """L3_H768_A12, in the paper's letters."""
    return "L{}_H{}_A{}".format(*size)


def _published(names: str, *values: float) -> Values:
    return dict(zip(names.split(), values, strict=True))


_GLUE = "mnli dev_mismatched qqp qnli sst2 cola stsb mrpc rte"
_TABLE_5 = "mnli qnli mrpc sst2 squad1"
_TABLE_6 = "perplexity mnli mrpc sst2"
_TABLE_8 = "mnli conll2003 conll2003_features"


def _table_5() -> Table:
    return Table(
        "Table 5: pre-training tasks",
        (
            Row("BERT", "BERT", {}, _published(_TABLE_5, 84.4, 88.4, 86.7, 92.7, 88.5)),
            Row("No NSP", "no_nsp", {}, _published(_TABLE_5, 83.9, 84.9, 86.5, 92.6, 87.9)),
            Row("No NSP, pairs kept", "no_nsp_pairs"),
            Row("LTR & No NSP", "ltr", {}, _published(_TABLE_5, 82.1, 84.3, 77.5, 92.1, 77.8)),
            Row("+ BiLSTM", "ltr", {"bilstm": 2},
                _published(_TABLE_5, 82.1, 84.1, 75.7, 91.6, 84.9)),
        ),
        "The paper does not say whether its No NSP kept the segment pairs (RoBERTa suspects so): "
        "contiguous text and pairs are both here. LTR is pooled from the last [SEP].",
    )  # fmt: skip


def _table_6(scale: str) -> Table:
    figures = (
        (5.84, 77.9, 79.8, 88.4), (5.24, 80.6, 82.2, 90.7), (4.68, 81.9, 84.8, 91.3),
        (3.99, 84.4, 86.7, 92.9), (3.54, 85.7, 86.9, 93.3), (3.23, 86.6, 87.8, 93.7),
    )  # fmt: skip
    rows = [
        Row(size_name(size), "BERT" if place == BASE else size_name(size), {},
            _published(_TABLE_6, *numbers))
        for place, (size, numbers) in enumerate(zip(SIZES[scale], figures, strict=True))
    ]  # fmt: skip
    note = "" if scale == "paper" else "Published figures are of the paper's six sizes, in order."
    return Table("Table 6: model size", tuple(rows), note, perplexity=True)


def _figure_5() -> Table:
    shares = (0.1, 0.3, 0.5, 0.7, 1.0)

    def label(name: str, share: float) -> str:
        return f"{name}, {share:.0%} of the steps"

    rows = [Row(label("MLM", s), "no_nsp", share=s, reference=label("MLM", 0.5)) for s in shares]
    rows += [Row(label("LTR", s), "ltr", share=s, reference=label("MLM", s)) for s in shares]
    return Table(
        "Figure 5: pre-training steps",
        tuple(rows),
        "MLM is compared with itself after half of the steps, LTR with MLM after as many.",
    )


def _table_7() -> Table:
    figures = {
        "embeddings": 91.0, "second_to_last": 95.6, "last": 94.9, "weighted_last_4": 95.9,
        "concat_last_4": 96.1, "weighted_all": 95.5,
    }  # fmt: skip
    rows = [Row("fine-tuning", published={"conll2003": 96.4})]
    rows += [
        Row(f"features: {name.replace('_', ' ')}", finetuning={"features": name, **_FROZEN},
            published={"conll2003": figure})
        for name, figure in figures.items()
    ]  # fmt: skip
    return Table("Table 7: named entities, fine-tuned and feature-based", tuple(rows))


def _table_8() -> Table:
    figures = {
        "BERT": (84.2, 95.4, 94.9), "mask_100_0_0": (84.3, 94.9, 94.0),
        "mask_80_0_20": (84.1, 95.2, 94.6), "mask_80_20_0": (84.4, 95.2, 94.7),
        "mask_0_20_80": (83.7, 94.8, 94.6), "mask_0_0_100": (83.6, 94.9, 94.6),
    }  # fmt: skip
    rows = [
        Row(
            "80 MASK, 10 SAME, 10 RND" if name == "BERT"
            else "{} MASK, {} SAME, {} RND".format(*name.split("_")[1:]),
            name, {}, _published(_TABLE_8, *numbers),
        )
        for name, numbers in figures.items()
    ]  # fmt: skip
    return Table("Table 8: masking strategies", tuple(rows))


def _glue() -> Table:
    base = _published(_GLUE, 84.6, 83.4, 71.2, 90.5, 93.5, 52.1, 85.8, 88.9, 66.4)
    return Table(
        "Table 1: GLUE",
        (Row("given checkpoint", published=base),),
        "Published: BERT-Base, of the test sets by the leaderboard; ours are of dev.",
    )


def get_table(name: str, scale: str) -> Table:
    """A table of TASKS, at a scale of SIZES."""
    given = {
        "2": Table("Table 2: SQuAD 1.1", (Row("given checkpoint", published={"squad1": 88.5}),)),
        "3": Table("Table 3: SQuAD 2.0", (Row("given checkpoint", published={"squad2": 81.9}),),
                   "Published: BERT-Large."),
        "4": Table("Table 4: SWAG", (Row("given checkpoint", published={"swag": 81.6}),)),
    }  # fmt: skip
    made = {
        "1": _glue, "5": _table_5, "figure5": _figure_5, "7": _table_7, "8": _table_8,
        "6": lambda: _table_6(scale),
    }  # fmt: skip
    return given[name] if name in given else made[name]()


# Tasks of each table: the paper's, and stand-ins of which small models learn something in minutes
# (of MRPC and CoLA they learn next to nothing: results/README.md).
TASKS = {
    "1": "mnli qqp qnli sst2 cola stsb mrpc rte",
    "2": "squad1", "3": "squad2", "4": "swag",
    "5": "mnli qnli mrpc sst2 squad1",
    "6": "mnli mrpc sst2",
    "figure5": "mnli",
    "7": "conll2003",
    "8": "mnli conll2003",
}  # fmt: skip
LAPTOP_TASKS = TASKS | {
    "1": "sst2 cola stsb mrpc rte", "4": "codah",
    "5": "stsb sst2 wnut17",
    "6": "stsb wnut17",
    "figure5": "stsb",
    "7": "wnut17",
    "8": "stsb wnut17",
}  # fmt: skip
FROM_CHECKPOINT = ("1", "2", "3", "4")  # tables that pre-train nothing


def columns(table: str, task: str, tags: bool) -> list[Column]:
    """The columns of a task in a table. tags: it is a tagging task."""
    metric = "accuracy" if task == "mrpc" and table != "1" else ""
    found = [Column(task, task, metric)]
    if table == "1" and task == "mnli":
        found.append(Column("dev_mismatched", task, split="dev_mismatched"))
    if table == "8" and tags:
        found.append(Column(f"{task}_features", task, metric, finetuning=FEATURE_BASED))
    return found
