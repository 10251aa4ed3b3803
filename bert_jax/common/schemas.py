"""What is in each JSON file that is read: a schema for `files.read_checked` and `files.check`.

msgspec checks them: it is small and fast to import, strict (true is no number, "1" no size), and
says where in a value the fault is. Fields that a schema does not name may be there; those that have
a default may be missing. The rows of tasks (task.json) are their own schemas: `tasks.from_dict`.
"""

from typing import Annotated, Any

from msgspec import Meta, Struct

from bert_jax.common.errors import UserError

Count = Annotated[int, Meta(ge=0, le=2**62)]
Size = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Share = Annotated[float, Meta(ge=0, lt=1)]
Positive = Annotated[float, Meta(gt=0, lt=1e6)]  # nor nan
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


# A corpus ----------------------------------------------------------------------------------------


class Counts(Struct):
    """Of a split: how much is in it; bytes of text."""

    documents: Count
    sentences: Count
    tokens: Count
    records: Count
    bytes: Count


class CountsOfSplit(Counts):
    """shards: the records of each."""

    shards: list[Size]


class Splits(Struct):
    train: CountsOfSplit
    held_out: CountsOfSplit


class Corpus(Struct):
    """corpus.json. digests: SHA-256 of its small files; corpora of before have none."""

    format: int
    splits: Splits
    vocab_size: Size
    tokenizer_sha256: Sha256
    digests: dict[str, Sha256] = {}
    settings: dict[str, Any] = {}
    sources: list[dict[str, Any]] = []
    notes: dict[str, int] = {}
    versions: dict[str, str] = {}


class UnitSplits(Struct):
    train: Counts
    held_out: Counts


class Unit(Struct):
    """unit.json: a finished piece of an unfinished corpus."""

    splits: UnitSplits
    notes: dict[str, int]
    smallest: int
    largest: int
    digests: dict[str, Sha256] = {}


class Plan(Struct):
    """plan.json: what an unfinished corpus is made of."""

    format: int
    settings: dict[str, Any]
    sources: list[dict[str, Any]]
    versions: dict[str, str]


# A run -------------------------------------------------------------------------------------------


class ModelSection(Struct):
    """The section `model` of a config.json; head_width and feed_forward: 0 for the usual ones."""

    layers: Size
    width: Size
    heads: Size
    max_positions: Size
    head_width: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    feed_forward: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    segment_types: Size
    activation: str
    hidden_dropout: Share
    attention_dropout: Share
    init_stddev: Positive
    norm_epsilon: Positive = 1e-12  # TF1 releases do not name theirs
    scan_layers: bool = False
    remat: bool = False
    causal: bool = False
    kernels: bool = False


class Tuning(Struct):
    """What a config.json of a fine-tuned model says besides: how it was fine-tuned."""

    features: str = ""
    bilstm: Count = 0
    bilstm_width: Size = 1
    max_length: Size = 1


class Results(Struct):
    """results.json of a fine-tuning. scores and baselines: of each split."""

    task: str
    metric: str
    scores: dict[str, dict[str, float | None]]
    baselines: dict[str, dict[str, float | None]]
    examples: dict[str, Count] = {}

    def __post_init__(self) -> None:
        if lacking := [split for split, one in self.scores.items() if self.metric not in one]:
            raise UserError(f"metric: {self.metric!r} is not among the scores of {lacking[0]}")


class Report(Struct):
    """report.json of a pre-training; null, or NaN of old ones: a number there is none for."""

    steps: Count
    held_out: dict[str, float | None]
    baseline: dict[str, float | None] = {}


class MetricsLine(Struct):
    """A line of metrics.jsonl; all other fields are numbers."""

    step: Count
    split: str
    time: dict[str, float | None]


class Seconds(Struct):
    starting: float
    steps: float


class GoodputLine(Struct):
    """A line of goodput.jsonl."""

    start: Count
    began: float
    from_step: Count
    step: Count
    seconds: Seconds


# Files of Hugging Face and of TF1 releases -------------------------------------------------------


class BertConfig(Struct):
    """config.json and bert_config.json: what is read besides sizes and rates."""

    hidden_act: str | None = None
    architectures: list[str] | None = None
    model_type: str = ""
    position_embedding_type: str = "absolute"
    problem_type: str | None = None
    tokenizer_class: str | None = None
    do_lower_case: bool | None = None


class TokenizerConfig(Struct):
    """tokenizer_config.json."""

    do_lower_case: bool | None = None
    tokenizer_class: str | None = None


class ShardIndex(Struct):
    """model.safetensors.index.json. weight_map: the file of each array, in the same folder."""

    weight_map: dict[str, Annotated[str, Meta(pattern=r"^[^/\\\x00]+\.safetensors$")]]
