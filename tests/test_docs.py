"""The documentation: its links lead somewhere, its commands exist, and its site has every page."""

import functools
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from absl import flags
from kinds import settings_of
from ml_collections import ConfigDict, config_flags

from bert_jax import reproduce
from bert_jax.__main__ import COMMANDS
from bert_jax.common.errors import UserError
from bert_jax.common.fields import flat
from bert_jax.common.flag_parsing import _check_words, _config_word
from bert_jax.common.shipped import config_module, configs

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *sorted(ROOT.glob("README*.md")), ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("docs/*.md")), ROOT / "launch" / "README.md", ROOT / "results" / "README.md",
]  # fmt: skip
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def module_at(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prose(path: Path) -> str:
    """The text of a page without its fenced blocks."""
    return _FENCE.sub("", path.read_text(encoding="utf-8"))


@functools.cache
def anchors(path: Path) -> set[str]:
    """The anchors of a page, as they are where repositories are read."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
    return {f"{slug}-{n}" if n else slug for slug, last in found.items() for n in range(last + 1)}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?:|mailto:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert ROOT in (target, *target.parents), f"{link} leaves the repository"
        if anchor:
            assert anchor in anchors(target), link


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command of ours in a page, beginning with its entry."""
    for language, block in _FENCE.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines() if language == "bash" else ():
            words = shlex.split(line, comments=True)
            for place, word in enumerate(words):
                ours = re.fullmatch(r"bert_jax\.[\w.]+|launch/\w+\.(py|sh)", word)
                if (ours and words[place - 1] in ("-m", "python", "bash")) or word == "bert-jax":
                    ends = [words.index(end) for end in ("&&", "|", "--") if end in words[place:]]
                    yield words[place : min(ends, default=None)]


def check_flag(file: Path, name: str, value: str) -> None:
    """Checks that an entry has a flag, and takes the value."""
    if file.parent.name == "launch":  # two of them define a flag that a command has, too
        source = file.read_text(encoding="utf-8")
        assert re.search(rf'\("{name}"|\(\n *"{name}"|\b{name.upper()}\b', source), name
        return
    module = importlib.import_module(f"bert_jax.{file.stem}")
    holders = [held for held in vars(module).values() if isinstance(held, flags.FlagHolder)]
    assert name in {holder.name for holder in holders}, name
    if value and name != "config":
        flags.FLAGS[name].parser.parse(value)


def read_config(words: list[str], monkeypatch: pytest.MonkeyPatch) -> ConfigDict:
    """The config that the words of a command line give."""
    _check_words(words)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    monkeypatch.setattr(sys, "argv", words)  # where ml_collections looks for overrides
    values(words)
    return values["config"].value


def check_command(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks that there is such an entry, with such flags and such a config."""
    entry, *words = command
    if entry == "bert-jax":
        entry, *words = (f"bert_jax.{COMMANDS[words[0]]}", *words[1:])
    file = ROOT / (entry if "/" in entry else entry.replace(".", "/") + ".py")
    assert file.exists(), command
    if file.suffix == ".sh":
        return
    overrides = [word for word in words if word.startswith("--config.")]
    given = [word for word in words if word.startswith("--config=")]
    for word in words:
        flag, _, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and flag != "help" and word not in overrides:
            check_flag(file, flag, value)
    assert given or not overrides, command
    if given:
        config = read_config(["command", _config_word(given[0]), *overrides], monkeypatch)
        chosen = {word[len("--config.") :].partition("=")[0] for word in overrides}
        if "pretraining" in config:  # of a table: what it overrides is checked with its rows
            reproduce.check_chosen(config, chosen)
        else:
            settings_of(config).check(config, chosen)


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_as_their_entries_take_them(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in commands(ROOT / name):
        check_command(command, monkeypatch)


@pytest.mark.parametrize(
    "line",
    [
        "bert-jax pretrian",
        "python -m bert_jax.pretrain --workdir=runs/a",
        "python -m bert_jax.main --config=configs/pretrain.py:size=huge",
        "python -m bert_jax.main --config=configs/pretrain.py --config.optimizer.rate=1",
        "bash launch/local_pod.sh 2 4 -- \\\n python -m bert_jax.main --work_dir=runs/a",
        "bert-jax finetune --config=configs/finetune.py:task=rte --config.epochs=many",
        "bert-jax finetune --config=configs/finetune.py:task=rte --config.custom.text=a",
        "bert-jax features --level=word",
    ],
)
def test_wrong_commands_are_found(line, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "page.md").write_text(f"A block:\n\n```bash\ncd runs\n{line}\n```\n")
    *_, command = commands(tmp_path / "page.md")
    wrong = (AssertionError, LookupError, AttributeError, ValueError, flags.Error, UserError)
    with pytest.raises(wrong):
        check_command(command, monkeypatch)


@functools.cache
def fields() -> set[str]:
    """The dotted names of all fields of all shipped configs, and of their sections."""
    names: set[str] = set()
    for path in configs().glob("*.py"):
        for name, _ in flat(config_module(path.stem).get_config()):
            parts = name.split(".")
            names.update(".".join(parts[: end + 1]) for end in range(len(parts)))
    return names


@pytest.mark.parametrize("name", NAMES)
def test_settings_in_the_text_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for field in re.findall(r"--config\.([a-z_]\w*(?:\.[a-z_]\w*)*)", text):
        task = re.sub(r"^finetuning\.\w+\.", "", field)  # of reproduce: a field of finetune
        assert field in fields() or task in fields(), field


def test_every_page_is_in_the_site():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = re.findall(r": (\S+\.md)$", nav, re.MULTILINE)
    site: Any = module_at(ROOT / "docs" / "site.py")
    pages = site.gather()
    assert len(listed) == len(set(listed))
    assert {path.name for path in ROOT.glob("docs/*.md")} <= set(listed)
    assert set(listed) <= {site.place(path) for path in pages}
    for page, text in pages.items():  # a link of the site leads to a file of the site
        for link in re.findall(r"\]\(([^)\s#]+)", site.fitted(page, _FENCE.sub("", text))):
            if not re.match(r"https?:", link):
                there = (Path("/") / Path(site.place(page)).parent / link).as_posix()
                places = {site.place(path) for path in pages}
                assert str(Path(re.sub(r"[^/]+/\.\./", "", there))).lstrip("/") in places, link
