"""Korean texts and pairs: NSMC, KLUE NLI and STS (Park et al. 2021), KorNLI and KorSTS (Ham et al.
2020), from the original files.

Where these have no test split, one can be given (`--config.test=FILE`).
"""

from bert_jax.tasks.classification import Classification

_PREMISE = (("sentence1", "premise"), ("sentence2", "hypothesis"))
_SENTENCES = (("sentence1",), ("sentence2",))
_NLI = ("contradiction", "entailment", "neutral")

TASKS = (
    Classification(
        name="nsmc",
        files=(("train", "ratings_train.txt"), ("dev", "ratings_test.txt"), ("test",)),
        texts=(("document",),),
        labels=("negative", "positive"),
        codes=("0", "1"),
        lenient=True,  # a few reviews are empty
    ),
    Classification(
        name="klue_nli",
        files=(
            ("train", "klue-nli-v1.1_train.json"),
            ("dev", "klue-nli-v1.1_dev.json"),
            ("test",),
        ),
        texts=_PREMISE,
        label=(("gold_label", "label"),),
        labels=_NLI,
    ),
    Classification(
        name="klue_sts",
        files=(
            ("train", "klue-sts-v1.1_train.json"),
            ("dev", "klue-sts-v1.1_dev.json"),
            ("test",),
        ),
        texts=_SENTENCES,
        label=(("labels.real-label",),),  # as KLUE's own code; labels.label is that, rounded
        kind="numbers",
        metrics=("pearson", "f1", "squared_error"),
        threshold=3.0,  # of labels.binary-label
    ),
    Classification(
        name="kornli",
        files=(
            ("train", "multinli.train.ko.tsv"),
            ("train", "snli_1.0_train.ko.tsv"),
            ("dev", "xnli.dev.ko.tsv"),
            ("test", "xnli.test.ko.tsv"),
        ),
        texts=_PREMISE,
        label=(("gold_label", "label"),),
        labels=_NLI,
        ignored=("-",),
        lenient=True,  # the training data is a machine's translation
    ),
    Classification(
        name="korsts",
        files=(("train", "sts-train.tsv"), ("dev", "sts-dev.tsv"), ("test", "sts-test.tsv")),
        texts=_SENTENCES,
        label=(("score",),),
        kind="numbers",
        metrics=("spearman", "pearson", "squared_error"),
    ),
)
