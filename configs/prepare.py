"""Raw text to a corpus: `python -m bert_jax.prepare --config=configs/prepare.py --out=CORPUS`.

Arguments: `source`, e.g. `--config=configs/prepare.py:source=wikiextractor`.
"""

import ml_collections

from bert_jax.training.config import parse_arg


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The settings of a corpus; all of them but `workers` decide what is in it."""
    args = parse_arg(arg, source="pydocs")
    config = ml_collections.ConfigDict()
    # pydocs (docstrings of the installed packages, needs no input), text (blank line between
    # documents), wikiextractor (its --json too), book (a file is a document), tfds; or files whose
    # records are documents: jsonl, tsv, csv (both with names of columns in their first line),
    # parquet, or pairs (two texts with a tab between them, a document of two sentences). Every file
    # may be compressed: gzip, zstd, bzip2 or xz; such a file is read by one process from its
    # beginning to its end, as a CSV file is.
    config.source = args.source
    # Comma-separated glob patterns (** goes into folders), or names or folders of TFDS data sets;
    # each may begin with its own source: 'wikiextractor:wiki/**,book:books/*.md'.
    config.input = ""
    # What holds the text: a feature of a TFDS data set, a field of JSON lines (a.b is b in a), a
    # column.
    config.text_feature = "text"
    # A vocabulary to use: BERT vocab.txt, tokenizer.json or SentencePiece model; "": train one.
    config.vocab = ""
    # Number of ids of a trained vocabulary.
    config.vocab_size = 30_522
    # Kind of a trained vocabulary: wordpiece or unigram.
    config.vocab_kind = "wordpiece"
    # Text that a vocabulary is trained on, evenly spread, in MB (half of it for a unigram one).
    config.vocab_sample_mb = 32
    # Uncased; unset: what the vocabulary at `vocab` is, true for a trained one.
    config.lowercase = ml_collections.config_dict.placeholder(bool)
    # Split lines and paragraphs into sentences; false: each is a sentence already.
    config.split_sentences = True
    # At invalid UTF-8 and bad records: stop, or skip the line and count it.
    config.on_error = "stop"
    # Share of the documents held out for evaluation, by a hash of their text; one at least.
    config.held_out = 0.02
    # Held out in place of that share: files, written as those of `input`.
    config.held_out_input = ""
    # Processes; 0: one a core.
    config.workers = 0
    return config
