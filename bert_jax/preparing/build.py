"""Makes a corpus, step by step: sources, vocabulary, tokenised units, assembly.

Each step keeps what it finished under OUT/.partial, so a killed run goes on where it stopped. See
configs/prepare.py for the settings and corpus.py for what is written.
"""

import contextlib
import importlib.metadata
import itertools
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from bert_jax.common import schemas
from bert_jax.common.errors import UserError
from bert_jax.common.files import UNFINISHED, read_checked, written_whole
from bert_jax.common.locks import locked
from bert_jax.common.progress import Progress, follow
from bert_jax.data import tfds_source
from bert_jax.data.corpus import FORMAT, PARTIAL, Corpus, open_corpus
from bert_jax.data.tokenizer import Tokenizer, load_tokenizer
from bert_jax.preparing import pydocs, sources, units
from bert_jax.preparing.beam import Beam
from bert_jax.preparing.corpus_writer import (
    ASSEMBLING,
    assemble,
    read_unit,
    total_counts,
    write_json,
)
from bert_jax.preparing.settings import PREPARE
from bert_jax.preparing.text import Reader
from bert_jax.preparing.vocabulary import train_vocabulary

_LIBRARIES = ("tokenizers", "sentencepiece", "array-record", "numpy", "protobuf")
_PIECES = 2  # version of what is kept of an unfinished run
_FEW_SENTENCES = 3.5  # a document, in the mean; about three is too few for pairs of sentences
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
    PREPARE.check(config)
    files = sources.find_files(config.input, config.source)
    if config.source == "pydocs" and not files:
        files = [("pydocs", "pydocs")]
    if not files:
        raise UserError(f"source {config.source} needs an input: --config.input='PATTERN,...'")
    held_out = sources.held_out_files(config, files)
    settings = {name: value for name, value in config.items() if name != "workers"}
    if not held_out:
        del settings["held_out_input"]  # as in corpora from before this setting
    identity = {"settings": settings, "sources": sources.hash_sources(files, held_out, config)}
    if (out / "corpus.json").exists():
        return _finished(out, identity)
    try:
        with _claimed(out):
            return _Run(config, out, files, held_out, identity, quiet, beam).make()
    except OSError as error:
        where = os.path.abspath(str(error.filename or out))
        if not where.startswith(str(out.absolute())):
            raise
        reason = error.strerror or f"{error}: is the disk full?"  # numpy gives no more
        raise UserError(
            f"cannot write to {out}: {reason}; when that is mended, the same command goes on from "
            "here"
        ) from error


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

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        out: Path,
        files: Sequence[tuple[str, str]],
        held_out: Sequence[tuple[str, str]],
        identity: dict[str, Any],
        quiet: bool,
        beam: Beam | None,
    ):
        self.config, self.out, self.identity, self.quiet = config, out, identity, quiet
        self.files, self.held_out, self.beam = files, held_out, beam
        # Absolute paths, here and below: a Beam worker starts in another folder.
        self.partial = (out / PARTIAL).absolute()
        self.workers = config.workers or _cores()
        self.versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
        self.begun = time.perf_counter()
        self.peak = 0

    def make(self) -> Corpus:
        self._go_on_or_start_over()
        plan = self._plan()
        tokenizer = self._tokenizer(plan)
        folders = self._tokenize(plan)
        parts = self._both_splits(plan, folders)
        notes = sum((Counter(part["notes"]) for part in parts), Counter())
        info = {
            **self.identity, "notes": dict(sorted(notes.items())), "versions": self.versions
        }  # fmt: skip
        assemble(self.out, folders, tokenizer, info)
        corpus = open_corpus(self.out)
        if not self.quiet:
            self._summary(corpus, notes)
        return corpus

    def _plan(self) -> list[list[units.Piece]]:
        """Units of the input, then of what is held out, if that is given apart.

        Raises: UserError: a file is of another kind, or there is too little text for two splits.
        """
        feature = self.config.text_feature
        try:
            apart = "train" if self.held_out else ""
            plan = units.plan_units(self._text_files(self.files), feature, apart)
            self._check_documents(plan, "the input", 1 if self.held_out else 2)
            if self.held_out:
                more = units.plan_units(self._text_files(self.held_out), feature, "held_out")
                self._check_documents(more, "held_out_input", 1)
                plan += more
        except UserError:
            if not (self.partial / "tokenizer").exists():
                self._leave_nothing()
            raise
        return plan

    def _check_documents(self, plan: list[list[units.Piece]], what: str, least: int) -> None:
        """Raises UserError unless the first documents of the plan are there."""
        reader = Reader(self.config.on_error, self.config.text_feature)
        pieces = [piece for unit in plan for piece in unit]
        documents = (
            document
            for piece in follow(pieces, "looking for text", len(pieces), "piece")
            for document in units.read_piece(piece, reader)
            if any(document)
        )
        found = len(list(itertools.islice(documents, least)))
        if not found:
            raise UserError(
                f"{what} holds no text (of wikiextractor, it is what stands between <doc ...> "
                "and </doc>)"
            )
        if found < least:
            raise UserError(
                f"{what} is a single document, and one is needed to train on and another to "
                "hold out; in source=text a blank line ends a document"
            )

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
        mine = {
            **self.identity, "versions": self.versions, "format": FORMAT, "pieces": _PIECES
        }  # fmt: skip
        path = self.partial / "plan.json"
        if path.exists():
            differing = _differences(read_checked(path, schemas.Plan), mine)
            if not differing:
                self._say("going on with what an earlier run finished")
                for old in self.partial.glob(f".*{UNFINISHED}"):  # of workers that were killed
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
                return
            self._say(f"starting over: an unfinished run had different {', '.join(differing)}")
        inside = [old for old in self.partial.iterdir() if old.name != "lock"]
        for old in [*products, *inside]:  # what tells whose the products are goes last
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        write_json(path, mine)

    def _text_files(self, files: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """The files to tokenise: those given, or the text extracted for the other sources.

        Raises: UserError: a file is plainly of another kind.
        """
        result = []
        for kind, path in follow(files, "looking at files", len(files), "file"):
            if kind == "pydocs":
                result.append(("text", str(self._extract_pydocs())))
            elif kind == "tfds":
                result.append((kind, os.path.abspath(tfds_source.dataset_folder(path))))
            else:
                result.append((sources.check_kind(kind, path), os.path.abspath(path)))
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
            plan = [unit for unit in plan if unit[0].split != "held_out"]
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

    def _tokenize(
        self, plan: list[list[units.Piece]], changes: dict[str, Any] | None = None
    ) -> list[Path]:
        """Makes the folders of the units that are not there; changes: to the settings."""
        folders = [self.partial / f"unit-{i:05d}" for i in range(len(plan))]
        settings = {
            **self.config.to_dict(), "tokenizer": str(self.partial / "tokenizer"), **(changes or {})
        }  # fmt: skip
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
        with Progress(size, "B", what, quiet=self.quiet) as progress:
            peak = units.run_pool(
                tasks, self.workers, lambda done: progress.update(done - progress.done)
            )
        self.peak = max(self.peak, peak, units.peak_memory())

    def _both_splits(
        self, plan: list[list[units.Piece]], folders: Sequence[Path]
    ) -> list[dict[str, Any]]:
        """What `read_unit` gives of each unit, after seeing to it that no split is empty.

        Where the share puts no document into a split, the one with the smallest hash is held out
        (or the one with the largest is trained on), with all its copies. That depends on the
        documents alone.

        Raises: UserError: all documents are the same.
        """
        parts = [read_unit(folder) for folder in folders]
        counts = {name: split["documents"] for name, split in total_counts(parts).items()}
        if all(counts.values()):
            return parts
        if self.held_out or not any(counts.values()):
            self._leave_nothing()
            raise UserError("the input holds no text that the vocabulary has tokens for")
        smallest = min(part["smallest"] for part in parts)
        largest = max(part["largest"] for part in parts)
        if smallest == largest:
            self._leave_nothing()
            raise UserError("all documents of the input are the same; add others to hold out")
        name, below = ("smallest", smallest + 1) if counts["train"] else ("largest", largest)
        self._say(
            f"note: held_out={self.config.held_out} of {sum(counts.values())} documents left a "
            f"split without one, so one document is {'held out' if counts['train'] else 'kept'}"
        )
        chosen = smallest if counts["train"] else largest
        for folder, part in zip(folders, parts, strict=True):
            if part[name] == chosen:
                gone = folder.rename(folder.with_name(f".{folder.name}{UNFINISHED}"))
                shutil.rmtree(gone)  # a kill within it leaves no unit with a part missing
        self._tokenize(plan, {"held_out_below": below})
        return [read_unit(folder) for folder in folders]

    def _leave_nothing(self) -> None:
        """Removes what was made; other things in the folder stay."""
        shutil.rmtree(self.partial, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.out.rmdir()

    def _say(self, message: str) -> None:
        if not self.quiet:
            print(message, flush=True)

    def _hint(self, counts: dict[str, Any]) -> None:
        """Says where documents are too short for what is trained on them."""
        mean = counts["sentences"] / counts["documents"]
        if mean > _FEW_SENTENCES or all(kind == "pairs" for kind, _ in self.files):
            return
        ends = "; is a blank line really the end of a document? In source=book a file is one"
        print(
            f"note: documents have {mean:.1f} sentences in the mean; next-sentence pairs need "
            "longer ones, or training without them (--config.nsp=false --config.pairs=false)"
            + (ends if any(kind == "text" for kind, _ in self.files) else "")
        )

    def _summary(self, corpus: Corpus, notes: Counter) -> None:
        seconds = time.perf_counter() - self.begun
        splits = corpus.info["splits"]
        self._hint(splits["train"])
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
