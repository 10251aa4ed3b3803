"""English prose from the documentation strings of the installed Python packages.

The text that every machine has without a network: docstrings of the standard library and of
site-packages, a document a module, cleaned of code, tables, signatures and markup. A sentence is
kept once, where it comes first in the order of the files.
"""

import ast
import hashlib
import inspect
import os
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from bert_jax.data.sentences import split_sentences

LARGEST_FILE = 1_000_000  # bytes; larger ones are generated tables
SMALLEST_DOCUMENT = 400  # characters
_TESTS = re.compile(r"^(.*_)?tests?(_.*)?(\.py)?$|^(testing|conftest\.py|idlelib|lib2to3|_vendor)$")


def python_files() -> list[tuple[str, Path]]:
    """(name, path) of every Python source file, sorted by name.

    The name begins with `stdlib` or `site-packages`; it doesn't tell where Python is installed.
    """
    roots = {"stdlib": sysconfig.get_path("stdlib")}
    sites = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    sites |= dict.fromkeys(p for p in sys.path if p.endswith("site-packages"))
    roots |= {f"site-packages{i or ''}": site for i, site in enumerate(sites)}
    result: dict[Path, str] = {}
    for name, root in roots.items():
        for folder, folders, files in os.walk(root):
            folders[:] = sorted(
                f for f in folders
                if not _TESTS.match(f) and f not in ("site-packages", "__pycache__")
            )  # fmt: skip
            for file in files:
                path = Path(folder, file)
                if file.endswith(".py") and not _TESTS.match(file):
                    result.setdefault(path, f"{name}/{path.relative_to(root).as_posix()}")
    return sorted((name, path) for path, name in result.items())


def module_prose(path: Path) -> list[str]:
    """Paragraphs of prose in the docstrings of one source file, in the order of the source."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            return []
        source = path.read_bytes()
        if b'"""' not in source and b"'''" not in source:
            return []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's files
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return [text for doc in _docstrings(tree) for text in clean_docstring(doc)]


_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _docstrings(node: ast.AST) -> Iterator[str]:
    body = getattr(node, "body", None)
    if not isinstance(body, list):
        return
    if body and isinstance(node, _DOCUMENTED):
        first = body[0]
        value = getattr(getattr(first, "value", None), "value", None)  # Expr, Constant, str
        if isinstance(first, ast.Expr) and isinstance(value, str):
            yield inspect.cleandoc(value)
    for child in body:
        yield from _docstrings(child)


_RULE = re.compile(r"[\W_]*|<?\w+://\S*")  # nothing but marks, or a URL
_BULLET = re.compile(r"(?:[-*+•]|\(?\d{1,2}[.)]|\(?[a-z]\))\s+")
_FIELD = re.compile(r":(?:param|type|arg|return|rtype|raise|var|ivar|cvar|keyword|yield)[^:]*:\s*")
# `name: text`, `name (int): text`, `*name : int, optional`, a numpy parameter, at a line's start.
_PARAMETER = re.compile(r"[*`\"']{0,3}[A-Za-z_][\w.*,`\"'/ ]{0,40}(?:\([^)]*\))?\s?:(?:\s+|$)")
_LABEL = re.compile(r"[\w*`]+ ?\(|:|(?:Returns?|Raises|Yields?|Args|Note|Notes):")
_TABLE = re.compile(r"\||[=\-+~^*#]{4,}|\S(?: {3,}|\t+)\S")
_INLINE = [
    (re.compile(r":[\w:+.-]+:`~?([^`<]*?)(?:\s*<[^>]*>)?`"), r"\1"),  # :class:`~a.B`
    (re.compile(r"`([^`<]+?)\s*<[^>]*>`_{0,2}"), r"\1"),  # `text <url>`_
    (re.compile(r"\[([^\]]+)\]\([^)]*\)"), r"\1"),  # [text](url)
    (re.compile(r"``?([^`]*)``?_{0,2}"), r"\1"),
    (re.compile(r"\*\*?([^*\s][^*]*?)\*\*?"), r"\1"),
    (re.compile(r"\s*\[[\w.,\s]{1,8}\]_"), ""),  # references
]


def clean_docstring(text: str) -> list[str]:
    """Paragraphs of prose in a docstring: only whole sentences, without markup."""
    result = []
    for paragraph in _paragraphs(text.splitlines()):
        for pattern, replacement in _INLINE:
            paragraph = pattern.sub(replacement, paragraph)
        sentences = [s for s in split_sentences(paragraph) if _is_prose(s)]
        if sentences:
            result.append(" ".join(sentences))
    return result


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Joins wrapped lines; leaves out code, doctests, tables, rules, directives, headings."""
    paragraph: list[str] = []
    skip_above = -1  # lines indented more than this belong to a block to leave out
    fenced = doctest = False
    indent = 0
    for line in lines:
        text = line.strip()
        if text.startswith(("```", "~~~")):
            fenced = not fenced
        doctest = (doctest or text.startswith((">>>", "$ "))) and bool(text)
        new_indent = len(line) - len(line.lstrip())
        in_block = skip_above >= 0 and (not text or new_indent > skip_above)
        if not in_block:
            skip_above = -1
        drop = fenced or doctest or in_block or _RULE.fullmatch(text) or _TABLE.search(text)
        if text.startswith((".. ", "@")) and not in_block:
            skip_above, drop = new_indent, True
        bullet = _BULLET.match(text)
        label = _FIELD.match(text) or _PARAMETER.match(text)
        inside = bool(paragraph) and new_indent == indent and paragraph[-1][-1:] not in ".!?"
        if inside and not _LABEL.match(text):
            label = None  # a colon in the middle of a sentence
        if paragraph and (drop or bullet or label or abs(new_indent - indent) > 2):
            yield " ".join(paragraph)
            paragraph = []
        indent = new_indent
        if drop:
            continue
        if text.endswith("::"):
            skip_above, text = new_indent, text[:-1]
        start = bullet or label
        paragraph.append(text[start.end() :] if start else text)
    if paragraph:
        yield " ".join(paragraph)


_PLAIN_WORD = re.compile(
    r"[(\"'“‘]*[A-Za-z][A-Za-z’'-]*[)\"'”’]*[.,;:!?]*[)\"'”’]*|\d[\d.,]*%?[.,;)]*|-+"
)
_CODE = re.compile(r"[{}<>=\\|~^@$_#]|\w\(|\w\.\w\w|://|\w\[|[a-z][A-Z]|--\w|;$")
_NOT_ENGLISH = re.compile(r"[^\x20-\x7e‘’“”–—…éèüöä°]")


def _is_prose(sentence: str) -> bool:
    """Whether a sentence reads as English: whole, with mostly plain words."""
    words = sentence.split()
    if not 4 <= len(words) <= 120 or sentence[-1] not in ".!?:\"')”’" or sentence[-2] == " ":
        return False
    if not (sentence[0].isupper() or sentence[0] in "\"'(“‘") or _NOT_ENGLISH.search(sentence):
        return False
    code = sum(bool(_CODE.search(word)) for word in words)
    plain = sum(bool(_PLAIN_WORD.fullmatch(word)) for word in words)
    if "..." in sentence[:-4]:
        return False
    return code <= max(1, 0.12 * len(words)) and plain >= 0.75 * len(words)


def unique_documents(documents: Iterable[list[str]]) -> Iterator[list[str]]:
    """Documents without the sentences that an earlier one had, those of some length only."""
    seen: set[bytes] = set()
    for document in documents:
        kept = []
        for paragraph in document:
            sentences = []
            for sentence in split_sentences(paragraph):
                key = hashlib.blake2b(sentence.lower().encode(), digest_size=8).digest()
                if key not in seen:
                    seen.add(key)
                    sentences.append(sentence)
            if sentences:
                kept.append(" ".join(sentences))
        if sum(map(len, kept)) >= SMALLEST_DOCUMENT:
            yield kept
