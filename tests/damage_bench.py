"""Sound inputs of every kind, and every entry that reads them, for damaged inputs to be tried on.

`damage.py` damages a file, `damage_draws.py` makes the draws.
"""

import contextlib
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock


class Entry(NamedTuple):
    """Something that reads files: `run(folder)` returns what it made of them."""

    parts: str  # folders of the bench that it reads
    run: Callable[[Path], Any]
    only: str = ""  # beginnings of the names of those that are damaged, between spaces


# What is read ------------------------------------------------------------------------------------


def make_bench(bench: Path) -> None:
    """Makes the sound inputs in folders of `bench`."""
    import jax
    import numpy as np
    import tf1_release
    import tiny_corpus
    import tiny_tasks

    from bert_jax import main, tasks
    from bert_jax.models.body import Body
    from bert_jax.preparing.vocabulary import train_vocabulary
    from bert_jax.tasks.base import Source
    from bert_jax.weights import hugging_face, opening, store

    corpus = tiny_corpus.write_corpus(bench / "corpus")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main.pretrain(_pretraining(corpus), bench / "run")
    shutil.rmtree(bench / "run" / "compiled", ignore_errors=True)
    shutil.copytree(bench / "run", bench / "going")
    for name in ("report.json", "report.md", "curves.png", "checkpoints/4"):
        path = bench / "going" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    texts = bench / "texts"
    texts.mkdir()
    lines = [" ".join(document) for document in tiny_corpus.documents()[:60]]
    (texts / "texts.txt").write_text("\n\n".join(lines[:30]) + "\n")
    (texts / "tokens.txt").write_text("brigantine\nschooner\nsloop\n")
    (texts / "book.txt").write_text("# One\n\n" + "\n\n".join(lines[30:]) + "\n")
    vocabulary = bench / "vocabulary"
    for name in ("wordpiece", "json", "unigram"):
        (vocabulary / name).mkdir(parents=True)
    tiny_corpus.tokenizer().save(vocabulary / "json")
    shutil.move(vocabulary / "json" / "vocab.txt", vocabulary / "wordpiece" / "vocab.txt")
    _prepare(bench, killed=True)
    train_vocabulary([texts / "texts.txt"], "unigram", 150, True, vocabulary / "unigram")
    base = opening.open_model(bench / "run")
    hugging_face.write(bench / "hf", base)
    tf1_release.write(bench / "tf1", base)
    for number, (family, (write, custom)) in enumerate(tiny_tasks.FAMILIES.items()):
        folder = bench / "data" / family
        folder.mkdir(parents=True)
        for split, count in (("train", 24), ("dev", 12), ("test", 12)):
            write(folder, count, number + len(split), split)
        settings = {name.removeprefix("custom."): value for name, value in custom.items()}
        task = tasks.get_task("custom", {"family": family, "unanswerable": True, **settings})
        source = Source(str(folder))
        task = task.fit(task.read(source, "train") or [])
        body = base.body("float32")
        features = task.featurise((task.read(source, "train") or [])[:2], base.tokenizer, 32, True)
        batch = {name: value[None] for name, value in features[0].arrays.items()}
        batch.setdefault("lengths", np.array([len(features[0].arrays["tokens"])], np.int32))
        params = task.objective(Body(body.backbone)).init(jax.random.key(number), batch)
        model = store.Pretrained(
            base.model, jax.tree.map(np.asarray, _plain(params)), base.tokenizer,
            tasks.to_dict(task), tuning={"features": "", "max_length": 32},
        )  # fmt: skip
        store.save_model(bench / "tuned" / family, model)
        hugging_face.write(bench / "hf_tuned" / family, model)
        examples = task.read(source, "dev") or []
        predicted = task.baseline(task.read(source, "train") or [], examples)
        task.write(bench / "predicted" / family, "dev", examples, predicted)
    _shard(bench / "hf", bench / "hf_sharded")


def _plain(params: Any) -> Any:
    import flax.linen as nn

    return nn.unbox(params)


def _shard(source: Path, folder: Path) -> None:
    """A copy of a Hugging Face folder with its arrays in two files and an index."""
    import safetensors.numpy

    shutil.copytree(source, folder)
    arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(arrays)
    files = {name: f"model-{place % 2}.safetensors" for place, name in enumerate(names)}
    for file in set(files.values()):
        some = {name: arrays[name] for name in names if files[name] == file}
        safetensors.numpy.save_file(some, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _pretraining(corpus: Path, **changes: Any) -> Any:
    import tiny_corpus

    sizes = {
        "steps": 4, "model__layers": 1, "model__width": 8, "batch_size": 8, "seq_length": 16,
        "log_every": 1, "eval_every": 2, "checkpoint_every": 2, "eval_instances": 8,
    }  # fmt: skip
    return tiny_corpus.small_config(corpus=str(corpus), workers=0, **(sizes | changes))


# What reads it -----------------------------------------------------------------------------------


def _digest_of_run(workdir: Path) -> str:
    from bert_jax.training.checkpoint import load_params

    return _digest(load_params(workdir))


def _digest(tree: Any) -> str:
    import jax
    import numpy as np

    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.asarray(leaf).tobytes() if not isinstance(leaf, str) else leaf.encode())
    return digest.hexdigest()


def _continue(folder: Path) -> Any:
    from bert_jax import main

    main.pretrain(_pretraining(folder / "corpus"), folder / "going")
    return _digest_of_run(folder / "going")


def _begin(folder: Path) -> Any:
    from bert_jax import main

    init = str(folder / "run")
    main.pretrain(_pretraining(folder / "corpus", init_from=init, steps=1), folder / "new")
    return _digest_of_run(folder / "new")


def _finished(folder: Path) -> Any:
    from bert_jax import main

    main.pretrain(_pretraining(folder / "corpus"), folder / "run")


def _read_corpus(folder: Path) -> Any:
    from bert_jax import main

    config = _pretraining(folder / "corpus")
    corpus = main.open_corpus(config.corpus)
    digest = hashlib.sha256(str(corpus.token_counts.tolist()).encode())
    objective = main.build_objective(config, corpus.tokenizer.vocabulary)
    for split in ("train", "held_out"):
        instances = main._instances(config, corpus, objective, split, 16, seed=1)
        for start in range(0, 400, 40):
            batch = instances.batch(range(start, start + 40))
            digest.update(b"".join(value.tobytes() for _, value in sorted(batch.items())))
    return digest.hexdigest(), corpus.tokenizer.tokens


def _tuning(folder: Path, family: str) -> Any:
    import tiny_tasks

    return tiny_tasks.make_config(
        folder / "run", f"task=custom,family={family}", batch_size=8, max_length=32, epochs=1.0,
        **tiny_tasks.settings(folder / "data", family),
    )  # fmt: skip


def _read_inputs(folder: Path, family: str) -> Any:
    from bert_jax import finetune

    inputs = finetune.read_inputs(_tuning(folder, family))
    arrays = {split: [f.arrays for f in some] for split, some in inputs.features.items()}
    return _digest([arrays, inputs.model.params]), inputs.task


def _apply(folder: Path, family: str, mode: str) -> Any:
    from bert_jax import finetune

    config = _tuning(folder, family)
    config.mode = mode
    finetune.apply_model(config, folder / "tuned" / family, {"mode": mode, "data": ""})
    found = sorted((folder / "tuned" / family / mode / "predictions").iterdir())
    return [path.read_text() for path in found]


def _use(folder: Path, path: str) -> Any:
    from bert_jax import tasks
    from bert_jax.inference import loading

    model = loading.load(folder / path)
    sentence = "the old ship crosses the harbor."
    family = tasks.family(model.task) if model.task else ""
    if family == "classification":
        return model.classify([sentence, "the bread."])
    if family == "answering":
        return model.answer("what does the ship cross", sentence)
    if family == "tagging":
        return model.tag([sentence])
    if family == "choice":
        return model.choose("the ship", ["the harbor", "the bread"])
    guesses = model.fill_mask("the old [MASK] crosses the harbor.")
    return guesses, _digest([model.embed([sentence])])


def _features(folder: Path) -> Any:
    from bert_jax import features
    from bert_jax.inference import loading

    out = folder / "out.npz"
    model = loading.load(folder / "run")
    features.write_features(model, folder / "texts" / "texts.txt", out, [-1], "words")
    return hashlib.sha256(out.read_bytes()).hexdigest()


def _with_flags(main: Callable[[], None], **values: Any) -> str:
    from absl import flags
    from absl.testing import flagsaver

    flags.FLAGS(["damage"])
    out, texts = io.StringIO(), {name: str(value) for name, value in values.items()}
    with flagsaver.flagsaver(**texts), contextlib.redirect_stdout(out):
        main()
    return out.getvalue()


def _convert(folder: Path, source: str, kind: str, to: str) -> Any:
    from bert_jax import convert

    tokens = {"add_tokens": folder / "texts" / "tokens.txt"} if to == kind else {}
    dst = folder / "converted"
    _with_flags(convert.main, src=folder / source, dst=dst, **{"from": kind, "to": to}, **tokens)
    if to == "run":
        return _digest_of_run(dst)
    return [hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(dst.iterdir())]


_SCORED = {  # the gold file of each family, and that of its predictions
    "classification": ("dev.tsv", "dev_predictions.tsv"),
    "tagging": ("dev.txt", "dev_predictions.conll"),
    "answering": ("dev.json", "predictions.json"),
    "choice": ("dev.csv", "dev_predictions.csv"),
}


def _score(folder: Path, family: str) -> Any:
    from bert_jax import score

    gold, predictions = _SCORED[family]
    gold, predictions = folder / "data" / family / gold, folder / "predicted" / family / predictions
    task = folder / "tuned" / family / "task.json"
    return _with_flags(score.main, task=task, gold=gold, predictions=predictions)


def _prepare(folder: Path, killed: bool = False, **changes: Any) -> Any:
    """Prepares a corpus in this process. killed: only up to where a kill may come."""
    from bert_jax.preparing import build, units
    from configs import prepare as config_file

    config = config_file.get_config("source=text")
    texts = "texts/texts.txt,texts/tokens.txt"
    config.update({"input": texts, "held_out": 0.4, "vocab_size": 150, **changes})

    def run_pool(tasks: Any, workers: int, on_progress: Any) -> int:
        for function, *arguments in tasks:
            function(*arguments)
        return 0

    stop = mock.Mock(side_effect=KeyboardInterrupt)
    with mock.patch.object(units, "run_pool", run_pool), contextlib.chdir(folder):
        if killed:
            with mock.patch.object(build, "assemble", stop), contextlib.suppress(KeyboardInterrupt):
                build.prepare(config, Path("made"), quiet=True)
        else:
            build.prepare(config, Path("made"), quiet=True)
    files = sorted(path for path in (folder / "made").rglob("*") if path.is_file())
    names = {"corpus.json", "lock"}  # corpus.json: the names of the input
    return [hashlib.sha256(p.read_bytes()).hexdigest() for p in files if p.name not in names]


def entries() -> dict[str, Entry]:
    """Every entry by name."""
    found = {
        "continue": Entry("corpus going", _continue, "going"),
        "finished": Entry("corpus run", _finished, "run"),
        "begin": Entry("corpus run", _begin),
        "corpus": Entry("corpus", _read_corpus),
        "features": Entry("run texts", _features),
        "use run": Entry("run", lambda f: _use(f, "run")),
        "use hf": Entry("hf", lambda f: _use(f, "hf")),
        "use sharded": Entry("hf_sharded", lambda f: _use(f, "hf_sharded")),
        "use tf1": Entry("tf1", lambda f: _use(f, "tf1")),
        "run to hf": Entry("run", lambda f: _convert(f, "run", "run", "hf")),
        "hf to run": Entry("hf", lambda f: _convert(f, "hf", "hf", "run")),
        "tf1 to run": Entry("tf1", lambda f: _convert(f, "tf1", "tf1", "run")),
        "add tokens": Entry("run texts", lambda f: _convert(f, "run", "run", "run"), "texts"),
        "prepare": Entry("texts", _prepare),
        "go on preparing": Entry("texts made", _prepare, "made"),
    }  # fmt: skip
    for kind in ("wordpiece", "json", "unigram"):
        found[f"prepare with {kind}"] = Entry(
            "texts vocabulary", lambda f, k=kind: _prepare(f, vocab=f"vocabulary/{k}"),
            f"vocabulary/{kind}",
        )  # fmt: skip
    for f in ("classification", "tagging", "answering", "choice"):
        data, tuned = f"data/{f}", f"tuned/{f}"
        found |= {
            f"finetune {f}": Entry("run data", lambda d, f=f: _read_inputs(d, f), data),
            f"evaluate {f}": Entry(
                "run data tuned", lambda d, f=f: _apply(d, f, "eval"), f"{data}/dev {tuned}"
            ),
            f"predict {f}": Entry(
                "run data tuned", lambda d, f=f: _apply(d, f, "predict"), f"{data}/test {tuned}"
            ),
            f"use {f}": Entry("tuned", lambda d, f=f: _use(d, f"tuned/{f}"), tuned),
            f"use hf {f}": Entry(
                "hf_tuned", lambda d, f=f: _use(d, f"hf_tuned/{f}"), f"hf_tuned/{f}"
            ),
            f"score {f}": Entry(
                "data tuned predicted", lambda d, f=f: _score(d, f),
                f"{data}/dev {tuned}/task.json predicted/{f}",
            ),
        }  # fmt: skip
    return found


_LEFT_ALONE = ("events", "lock", ".png", "compiled")


def files_of(entry: Entry, folder: Path) -> dict[str, list[Path]]:
    """The files that may be damaged, by kind: those of checkpoints are one."""
    kinds: dict[str, list[Path]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        chosen = not entry.only or any(name.startswith(only) for only in entry.only.split())
        if chosen and not any(part in name for part in _LEFT_ALONE):
            kind = "checkpoint" if "/checkpoints/" in name else name
            kinds.setdefault(kind, []).append(path)
    return kinds
