"""Makes a corpus, step by step: sources, vocabulary, tokenised units, assembly.

Each step keeps what it finished under OUT/.partial, so a killed run goes on where it stopped. See
configs/prepare.py for the settings and corpus.py for what is written.
"""

import contextlib
import hashlib
import importlib.metadata
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from tqdm import tqdm

from bert_jax import schemas
from bert_jax.data import pydocs, tfds_source, units
from bert_jax.data.beam import Beam
from bert_jax.data.corpus import FORMAT, PARTIAL, Corpus, open_corpus
from bert_jax.data.corpus_writer import ASSEMBLING, assemble, read_unit, total_counts, write_json
from bert_jax.data.text import SOURCES
from bert_jax.data.tokenizer import Tokenizer, load_tokenizer
from bert_jax.data.vocabulary import train_vocabulary
from bert_jax.errors import UserError
from bert_jax.files import UNFINISHED, read_checked, written_whole
from bert_jax.locks import locked

_LIBRARIES = ("tokenizers", "sentencepiece", "array-record", "numpy", "protobuf")
_CHOICES = {
    "source": ("pydocs", "tfds", *SOURCES),
    "vocab_kind": ("wordpiece", "unigram"),
    "on_error": ("stop", "skip"),
}
# What a killed run may have left in the folder beside PARTIAL: all of it is made again.
_PRODUCTS = (
    "corpus-*.array_record-*", "index", "tokenizer", "token_counts.npy", "dataset_info.json",
    "features.json", "*.json.tmp", "*.incomplete*", f".*{UNFINISHED}",
)  # fmt: skip


def prepare(
    config: ml_collections.ConfigDict, out: Path, quiet: bool = False, beam: Beam | None = None
) -> Corpus:
    """Makes the corpus `out`, or goes on making it, or finds it made already.

    Units are made on `beam`, or in processes of this machine; the corpus is the same.

    Raises:
      UserError: for everything in the settings, the input or `out` that prevents it.
    """
    _check_settings(config)
    files = units.find_files(config.input, config.source)
    if config.source == "pydocs" and not files:
        files = [("pydocs", "pydocs")]
    if not files:
        raise UserError(f"source {config.source} needs an input: --config.input='PATTERN,...'")
    settings = {name: value for name, value in config.items() if name != "workers"}
    identity = {"settings": settings, "sources": _hash_sources(files, config)}
    if (out / "corpus.json").exists():
        return _finished(out, identity)
    with _claimed(out):
        return _Run(config, out, files, identity, quiet, beam).make()


def _check_settings(config: ml_collections.ConfigDict) -> None:
    for name, known in _CHOICES.items():
        if config[name] not in known:
            raise UserError(f"{name} is {config[name]!r}; it is one of {', '.join(known)}")
    if not 0 < config.held_out < 1:
        raise UserError(f"held_out={config.held_out} is not a share between 0 and 1")
    if config.vocab_sample_mb <= 0 or config.workers < 0:
        raise UserError("vocab_sample_mb must be above 0, and workers at least 0")


def _hash_sources(files: Sequence[tuple[str, str]], config: Any) -> list[dict[str, Any]]:
    """`path`, `bytes` and `sha256` of each source; Python packages are summed up."""
    result = []
    for kind, path in tqdm(files, "reading", delay=3, leave=False, unit="file"):
        entry: dict[str, Any] = {"source": kind, "path": path}
        if kind == "pydocs":
            digest, size = hashlib.sha256(), 0
            for name, file in pydocs.python_files():
                sha, length = _hash_file(file)
                digest.update(f"{name} {sha}\n".encode())
                size += length
            entry |= {"bytes": size, "sha256": digest.hexdigest()}
        elif kind == "tfds":
            entry |= _hash_folder(tfds_source.dataset_folder(path))
        else:
            sha, size = _hash_file(Path(path))
            entry |= {"bytes": size, "sha256": sha}
        result.append(entry)
    if config.vocab:
        if not Path(config.vocab).exists():
            raise UserError(f"vocabulary {config.vocab} does not exist")
        result.append({"source": "vocab", "path": config.vocab, **_hash_folder(Path(config.vocab))})
    return result


def _hash_folder(path: Path) -> dict[str, Any]:
    """`bytes` and `sha256` of the files in a folder, or of a file."""
    files = sorted(f for f in path.iterdir() if f.is_file()) if path.is_dir() else [path]
    digests = [_hash_file(file) for file in files]
    text = " ".join(sha for sha, _ in digests)
    sha = digests[0][0] if len(digests) == 1 else hashlib.sha256(text.encode()).hexdigest()
    return {"bytes": sum(size for _, size in digests), "sha256": sha}


def _hash_file(path: Path) -> tuple[str, int]:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _finished(out: Path, identity: dict[str, Any]) -> Corpus:
    corpus = open_corpus(out)
    differing = _differences(corpus.info, identity)
    if differing:
        raise UserError(
            f"{out} holds another corpus (different {', '.join(differing)}); choose another --out"
        )
    shutil.rmtree(out / PARTIAL, ignore_errors=True)  # left by a kill in the last moment
    print(f"{out} is finished already, from the same settings and input")
    return corpus


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    settings = {**old.get("settings", {}), **new["settings"]}
    names = [n for n in settings if old.get("settings", {}).get(n) != new["settings"].get(n)]
    return names + [n for n in new if n != "settings" and old.get(n) != new[n]]


@contextlib.contextmanager
def _claimed(out: Path) -> Iterator[None]:
    """Makes `out`, and makes sure that nothing else is in it and nobody else is at it."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out is a folder")
    partial = out / PARTIAL
    if not partial.exists() and out.exists() and any(out.iterdir()):
        raise UserError(f"{out} holds other files; choose an empty or new folder for --out")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        claim = contextlib.ExitStack()
        mine = claim.enter_context(locked(partial / "lock"))
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}") from error
    with claim:
        if not mine:
            raise UserError(f"another bert_jax.prepare is at work on {out}")
        yield


def _cores() -> int:
    """Those that this process may use; of a system that does not say so, all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Run:
    """One run of prepare: its steps in order; each keeps what it finished under PARTIAL."""

    def __init__(self, config, out: Path, files, identity: dict[str, Any], quiet: bool, beam):
        self.config, self.out, self.identity, self.quiet = config, out, identity, quiet
        self.files, self.beam = files, beam
        # Absolute paths, here and below: a Beam worker starts in another folder.
        self.partial = (out / PARTIAL).absolute()
        self.workers = config.workers or _cores()
        self.versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
        self.begun = time.perf_counter()
        self.peak = 0

    def make(self) -> Corpus:
        self._go_on_or_start_over()
        plan = units.plan_units(self._text_files(), self.config.text_feature)
        if not plan:
            self._fail("the input holds no text")
        tokenizer = self._tokenizer(plan)
        folders = self._tokenize(plan)
        parts = [read_unit(folder) for folder in folders]
        notes = sum((Counter(part["notes"]) for part in parts), Counter())
        self._check_counts(total_counts(parts))
        info = {
            **self.identity, "notes": dict(sorted(notes.items())), "versions": self.versions
        }  # fmt: skip
        assemble(self.out, folders, tokenizer, info)
        corpus = open_corpus(self.out)
        if not self.quiet:
            self._summary(corpus, notes)
        return corpus

    def _go_on_or_start_over(self) -> None:
        """Keeps the finished pieces of a killed run if they are pieces of this corpus.

        Raises: UserError: files are in the way that no run has made.
        """
        products = [old for pattern in _PRODUCTS for old in self.out.glob(pattern)]
        others = [old.name for old in products if old.suffix != UNFINISHED]
        if others and not (self.partial / ASSEMBLING).exists():
            raise UserError(
                f"{self.out} holds {min(others)}, which this corpus would overwrite; move it away, "
                "or choose an empty or new folder for --out"
            )
        mine = {**self.identity, "versions": self.versions, "format": FORMAT}
        path = self.partial / "plan.json"
        if path.exists():
            differing = _differences(read_checked(path, schemas.Plan), mine)
            if not differing:
                self._say("going on with what an earlier run finished")
                return
            self._say(f"starting over: an unfinished run had different {', '.join(differing)}")
        inside = [old for old in self.partial.iterdir() if old.name != "lock"]
        for old in [*products, *inside]:  # what tells whose the products are goes last
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        write_json(path, mine)

    def _text_files(self) -> list[tuple[str, str]]:
        """The files to tokenise: those given, or the text extracted for the other sources."""
        result = []
        for kind, path in self.files:
            if kind == "pydocs":
                result.append(("text", str(self._extract_pydocs())))
            elif kind == "tfds":
                result.append((kind, os.path.abspath(tfds_source.dataset_folder(path))))
            else:
                result.append((kind, os.path.abspath(path)))
        return result

    def _extract_pydocs(self) -> Path:
        target = self.partial / "pydocs.txt"
        if target.exists():
            return target
        files = [path for _, path in pydocs.python_files()]
        groups = [files[i : i + 200] for i in range(0, len(files), 200)]
        outputs = [self.partial / f"pydocs-{i:05d}.json" for i in range(len(groups))]
        size = sum(path.stat().st_size for path in files)
        tasks = [(units.extract_unit, *task) for task in zip(groups, outputs, strict=True)]
        self._pool("reading docstrings", tasks, size)
        documents = (document for output in outputs for document in units.read_documents(output))
        with written_whole(target) as made, open(made, "w", encoding="utf-8", newline="\n") as file:
            for document in pydocs.unique_documents(documents):
                file.write("\n".join(document) + "\n\n")
        return target

    def _tokenizer(self, plan: list[list[units.Piece]]) -> Tokenizer:
        """Loads or trains the tokenizer, and saves it where the workers find it."""
        folder, config = self.partial / "tokenizer", self.config
        if (folder / "done").exists():
            return load_tokenizer(folder)
        if config.vocab:
            tokenizer = load_tokenizer(config.vocab, config.lowercase)
        else:
            total = sum(piece.size for unit in plan for piece in unit)
            # The unigram trainer needs twice the memory for the same text.
            wanted = config.vocab_sample_mb / (2 if config.vocab_kind == "unigram" else 1)
            share = min(1.0, wanted * 1e6 / total)
            samples = [self.partial / f"sample-{i:05d}.txt" for i in range(len(plan))]
            tasks = [
                (units.sample_unit, unit, sample, share, config.to_dict())
                for unit, sample in zip(plan, samples, strict=True)
            ]
            self._run_units("sampling for the vocabulary", tasks, total)
            self._say(f"training a vocabulary on {share * total / 1e6:.1f} MB")
            lowercase = True if config.lowercase is None else config.lowercase
            tokenizer = train_vocabulary(
                samples, config.vocab_kind, config.vocab_size, lowercase, self.partial
            )
            if tokenizer.vocab_size < config.vocab_size:
                self._say(
                    f"note: the text supports a vocabulary of {tokenizer.vocab_size} only, "
                    f"not {config.vocab_size}"
                )
        tokenizer.save(folder)
        (folder / "done").touch()
        return tokenizer

    def _tokenize(self, plan: list[list[units.Piece]]) -> list[Path]:
        folders = [self.partial / f"unit-{i:05d}" for i in range(len(plan))]
        settings = {**self.config.to_dict(), "tokenizer": str(self.partial / "tokenizer")}
        todo = [
            (unit, folder) for unit, folder in zip(plan, folders, strict=True)
            if not folder.exists()
        ]  # fmt: skip
        size = sum(piece.size for unit, _ in todo for piece in unit)
        self._run_units(
            "tokenising", [(units.tokenize_unit, *task, settings) for task in todo], size
        )
        return folders

    def _run_units(self, what: str, tasks: Sequence[tuple], size: int) -> None:
        """Runs tasks of `size` bytes of input on Beam if it was asked for, else in the pool."""
        if self.beam is None:
            self._pool(what, tasks, size)
        else:
            self._say(f"{what}: {len(tasks)} units, {size / 1e6:.1f} MB on {self.beam.runner}")
            self.beam.run(tasks, self.partial)

    def _pool(self, what: str, tasks: Sequence[tuple], size: int) -> None:
        """Runs tasks in the pool under a progress bar of `size` bytes."""
        often = 0.1 if sys.stderr.isatty() else 15  # seconds between lines of a log file
        with tqdm(
            total=size, desc=what, unit="B", unit_scale=True, disable=self.quiet, mininterval=often
        ) as bar:
            peak = units.run_pool(tasks, self.workers, lambda done: bar.update(done - bar.n))
        self.peak = max(self.peak, peak, units.peak_memory())

    def _check_counts(self, counts: dict[str, dict[str, Any]]) -> None:
        train, held_out = counts["train"]["documents"], counts["held_out"]["documents"]
        if not train + held_out:
            self._fail(
                "the input holds no text (of wikiextractor, it is what stands between <doc ...> "
                "and </doc>)"
            )
        if train + held_out == 1:
            self._fail(
                "the input is a single document, and one is needed to train on and another to "
                "hold out; in source=text a blank line ends a document"
            )
        if not train or not held_out:
            which = "held-out" if train else "train"
            self._fail(
                f"the {which} split is empty: {train + held_out} documents are too few for "
                f"held_out={self.config.held_out}; {'raise' if train else 'lower'} it or add text"
            )

    def _fail(self, message: str) -> None:
        shutil.rmtree(self.partial, ignore_errors=True)
        with contextlib.suppress(OSError):  # what else is in there stays
            self.out.rmdir()
        raise UserError(message)

    def _say(self, message: str) -> None:
        if not self.quiet:
            print(message, flush=True)

    def _summary(self, corpus: Corpus, notes: Counter) -> None:
        seconds = time.perf_counter() - self.begun
        splits = corpus.info["splits"]
        print(f"\n{'':10}{'documents':>12}{'sentences':>13}{'tokens':>15}{'MB of text':>12}")
        for name, counts in splits.items():
            print(
                f"{name:10}{counts['documents']:12,}{counts['sentences']:13,}"
                f"{counts['tokens']:15,}{counts['bytes'] / 1e6:12.1f}"
            )
        megabytes = sum(counts["bytes"] for counts in splits.values()) / 1e6
        where = f"with {self.workers} workers · peak memory of a process {self.peak / 1e6:.0f} MB"
        if self.beam is not None:
            where = f"on {self.beam.runner}"
        print(
            f"vocabulary {corpus.tokenizer.vocab_size:,} · {seconds:.1f} s · "
            f"{megabytes / seconds:.2f} MB/s {where}"
        )
        for name, count in sorted(notes.items()):
            print(f"note: {name.replace('_', ' ')}: {count:,}")
        split = corpus.splits["held_out"]
        print("\nsome held-out sentences:")
        for i in range(5):
            at = len(split) * (2 * i + 1) // 10
            (ids,) = split.tokens(np.array([at]), np.array([at + 1]))
            print("  " + corpus.tokenizer.decode(ids.tolist())[:200])
        print(f"\ncorpus: {corpus.path}")
