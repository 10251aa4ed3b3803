"""A user's mistakes on the command line: exit code 2, one line that says what, nothing written."""

import json
import re
import subprocess
import sys
from pathlib import Path

import programs
import pytest
import tiny_corpus

ROOT = Path(__file__).resolve().parents[1]
# name: (changed settings, None to leave a flag out; what the message says)
MISTAKES = {
    "no corpus given": ({"corpus": ""}, "--config.corpus=FOLDER is needed"),
    "corpus in a bucket": (
        {"corpus": "gs://bucket/wiki"},
        "--config.corpus=gs://bucket/wiki: mount the bucket, and give its folder",
    ),
    "missing corpus": ({"corpus": "nowhere"}, "corpus nowhere does not exist; make it with"),
    "not a corpus": ({"corpus": "."}, r"\. is not a corpus \(it has no corpus.json\)"),
    "unknown field": (
        {"batchsize": 8},
        "error: there is no setting 'batchsize' in the config. Did you mean \"batch_size\"",
    ),
    "unknown field like no other": ({"zzz": 8}, "no setting 'zzz' in the config. The file of"),
    "unknown field of a section": ({"model.with": 8}, "with"),
    "text for a number": ({"batch_size": "many"}, "batch_size"),
    "fraction for a number": ({"steps": 1.5}, "steps"),
    "text for a switch": ({"nsp": "perhaps"}, "nsp"),
    "a whole section": ({"model": 3}, "model"),
    "batch of odd size": ({"batch_size": 9, "accumulation": 2}, "batch_size=9 must divide"),
    "no steps": ({"steps": 0}, "steps"),
    "no rows": ({"batch_size": 0}, "batch_size"),
    "no pieces": ({"accumulation": 0}, "accumulation"),
    "never logged": ({"log_every": 0}, "log_every"),
    "never evaluated": ({"eval_every": 0}, "eval_every=0 must be at least 1"),
    "never saved": ({"checkpoint_every": 0}, "checkpoint_every"),
    "nothing kept": ({"keep_checkpoints": 0}, "keep_checkpoints"),
    "no heads": ({"model.heads": 0}, "heads"),
    "heads that do not fit": ({"model.heads": 3}, "model.width=16 does not divide by"),
    "dropout of everything": ({"model.hidden_dropout": 1.0}, "hidden_dropout"),
    "masking above one": ({"masking.rate": 1.5}, "masking.rate"),
    "no segments": ({"model.segment_types": 0}, "model.segment_types=0 must be at least 1"),
    "pairs of one segment": ({"model.segment_types": 1}, "pairs=true needs model.segment_types=2"),
    "no layers": ({"model.layers": 0}, "model.layers=0 must be at least 1"),
    "negative workers": ({"workers": -1}, "workers=-1 must be at least 0"),
    "negative seed": ({"seed": -1}, "seed=-1 must be at least 0 and at most 4294967295"),
    "shares above one": ({"masking.mask_share": 0.95}, "mask_share"),
    "long sequences": ({"seq_length": 65}, "seq_length=65 is over model.max_positions=64"),
    "long first phase": (
        {"short_phase.share": 0.5, "short_phase.seq_length": 65},
        "seq_length=65 is over model.max_positions=64",
    ),
    "short sequences": ({"seq_length": 4}, "seq_length 4 is too short"),
    "unknown activation": ({"model.activation": "swish"}, "activation is 'swish'; known: gelu"),
    "unknown type": ({"dtype": "float99"}, "dtype is 'float99'; known: auto, float32"),
    "unknown optimizer": ({"optimizer.name": "sgd"}, "known: adamw, lamb"),
    "unknown decay": ({"optimizer.decay_from": "end"}, "known: start, warmup"),
    "warm-up too long": ({"warmup_steps": 13}, "warmup_steps=13 must lie between 0 and steps=12"),
    "mesh too large": ({"mesh.data": 4}, "does not fit 1 devices"),
    "init from nothing": ({"init_from": "nowhere"}, "nowhere is not a model"),
    "no config": ({"--config": None}, "config"),
    "no workdir": ({"--workdir": None}, "--workdir"),
    "missing config file": ({"--config": "nowhere.py"}, "nowhere.py"),
    "a setting as a flag": ({"more": ["--batch_size=3"]}, '"--config.batch_size"'),
    "a setting of a section as a flag": ({"more": ["--rate=0.3"]}, 'Did you mean "--config.maski'),
    "a mistyped flag": ({"more": ["--wokdir=x"]}, 'no flag --wokdir. Did you mean "--workdir"'),
    "a setting of another section": ({"rate": 0.3}, 'Did you mean "masking.rate"'),
    "a mistyped config file": (
        {"--config": "configs/pretrian.py:size=tiny"},
        'configs/pretrian.py does not exist. Did you mean "configs/pretrain.py"',
    ),
    "the config of a run": ({"--config": "run/config.json"}, "is no config file, which is Python"),
    "a config that is not Python": ({"--config": "broken.py"}, "cannot be run: SyntaxError"),
    "a switch without =": (
        {"more": ["--config.nsp", "false"]}, "did you mean --config.nsp=false",
    ),
    "a number in words": ({"steps": "ten"}, "--config.steps=ten must be a whole number"),
    "no such user": ({"--workdir": "~no_one/run"}, "there is no home folder ~no_one"),
    "no such user of a corpus": ({"corpus": "~no_one/c"}, "there is no home folder ~no_one"),
    "a comma too many": (
        {"arg": "size=tiny,mini"}, "'mini' is unknown.*a comma ends the argument before it",
    ),
    "an argument twice": ({"arg": "size=tiny,size=base"}, "argument 'size' is given twice"),
    "a mistyped argument": ({"arg": "sise=tiny"}, 'Did you mean "size"'),
    "without effect": (
        {"arg": "size=tiny,objective=ltr", "masking.rate": 0.2},
        "masking.rate has no effect with model.causal=true",
    ),
    "unknown argument": ({"arg": "size=tiny,sise=base"}, "'sise' is unknown; known: family, size"),
    "unknown size": ({"arg": "size=huge"}, "size 'huge' is unknown; known: tiny"),
    "unknown preset": ({"arg": "preset=best"}, "preset 'best' is unknown; known: paper"),
    "argument of wrong type": ({"arg": "seq=long"}, "seq takes a value of type int"),
    "mistyped flag": ({"--wrkdir": "x"}, "wrkdir"),
    "a value without its flag": ({"more": ["8"]}, "unexpected argument '8'"),
    "another folder": ({"--workdir": "full"}, "full is not empty and holds no run"),
    "other width": ({"--workdir": "run", "model.width": 32}, r"holds a run with another config "
                    r"\(model.width was 16, is 32\); undo that, delete the folder, which has no "
                    "checkpoint yet, or choose another --workdir"),
    "other seed": ({"--workdir": "run", "seed": 1}, r"seed was 0, is 1"),
    "other corpus": ({"--workdir": "run"}, "run holds a run on another corpus than"),
}  # fmt: skip


def command(corpus: Path, workdir: Path, changes: dict) -> list[str]:
    changes = dict(changes)
    more = changes.pop("more", [])
    arg = changes.pop("arg", "size=tiny")
    flags = tiny_corpus.flags(corpus, workdir, arg)
    for name, value in changes.items():
        flags[name if name.startswith("--") else f"--config.{name}"] = value
    flags = {name: value for name, value in flags.items() if value is not None}
    return tiny_corpus.words(flags) + more


def listing(folder: Path) -> dict[str, bytes]:
    return {
        str(f.relative_to(folder)): f.read_bytes() if f.is_file() else b""
        for f in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def answers(corpus_path, tmp_path_factory):
    """{name of the mistake: (exit code, stderr)}, and the folder before and after them all."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "full").mkdir()
    (folder / "full" / "thesis.txt").write_text("mine")
    (folder / "broken.py").write_text("def get_config(:")
    (folder / "run").mkdir()  # as a run leaves it
    config = tiny_corpus.small_config(corpus=str(corpus_path))
    (folder / "run" / "config.json").write_text(json.dumps(config.to_dict()))
    tiny_corpus.tokenizer().save(folder / "run" / "tokenizer")
    (folder / "run" / "corpus.json").write_text("{}")
    before = listing(folder)
    lines = [
        command(corpus_path, folder / f"new-{number}", changes)
        for number, (changes, _) in enumerate(MISTAKES.values())
    ]
    done = [programs.run("-m", "bert_jax.main", *line, cwd=folder) for line in lines]
    result = {name: (one.returncode, one.stderr) for name, one in zip(MISTAKES, done, strict=True)}
    after = {n: listing(folder / f"new-{i}") for i, n in enumerate(MISTAKES)}
    return result, after, before, listing(folder)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_clear_line(answers, name):
    code, error = answers[0][name]
    assert "Traceback" not in error, error[-600:]
    assert code == 2, error
    said = [line for line in error.splitlines() if line]
    assert len(said) == 1, error
    assert said[0].startswith("error: ")
    assert re.search(MISTAKES[name][1], said[0]), said[0]


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_leaves_nothing_behind(answers, name):
    """So that the corrected command is not told that the folder holds another run."""
    assert answers[1][name] == {}


def test_mistakes_touch_no_file_that_was_there(answers):
    _, _, before, after = answers
    assert {name: after[name] for name in before} == before


def test_the_real_command(corpus_path, tmp_path):
    """The forks of `programs` are honest: a new process says the same."""
    flags = tiny_corpus.flags(corpus_path, tmp_path / "run", batchsize=3)
    done = subprocess.run(
        [sys.executable, "-m", "bert_jax.main", *tiny_corpus.words(flags)],
        cwd=ROOT, text=True, capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*batchsize.*\n", done.stderr)
    assert done.stdout == ""
    assert not (tmp_path / "run").exists()


def test_help_lists_the_flags_of_the_entry():
    done = programs.run("-m", "bert_jax.main", "--help")
    assert re.findall(r"^  --(\w+):", done.stdout, re.MULTILINE) == ["config", "workdir"]
