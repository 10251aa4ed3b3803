"""Damaged copies of files: a mutation of one file by a random generator, the same for a seed.

`damage_bench.py` has the sound files and what reads them, `damage_draws.py` makes the draws.
"""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEEP = 100_000  # levels of nesting, far beyond what a parser that recurses can take
_STRANGE: list[Any] = [
    None, True, -1, 0, 1.5, 10**30, -(10**30), float("nan"), float("inf"), 1e-300, "", "x", "0",
    "../../x", "a\0b", "\ud800", [], ["x"], [1.5], [[]], {}, {"x": 1},
]  # fmt: skip


def damage(path: Path, rng: random.Random) -> str:
    """Damages the file at `path` in place; returns what was done, in words."""
    makers = [*_OF_ANY, *_OF_FILES] + (_OF_JSON * 3 if path.suffix in (".json", ".jsonl") else [])
    data = path.read_bytes()
    makers += _OF_TEXT if _is_text(data) else []
    while True:
        made = rng.choice(makers)(path, data, rng)
        if made is not None:
            return made


def _is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return b"\0" not in data


def _replace(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


# Of any file: its bytes.


def _truncate(path: Path, data: bytes, rng: random.Random) -> str | None:
    if not data:
        return None
    size = rng.choice([0, 1, len(data) - 1, rng.randrange(len(data))])
    _replace(path, data[:size])
    return f"cut to {size} of {len(data)} bytes"


def _flip(path: Path, data: bytes, rng: random.Random) -> str | None:
    if not data:
        return None
    place, bit = rng.randrange(len(data)), rng.randrange(8)
    changed = bytearray(data)
    changed[place] ^= 1 << bit
    _replace(path, bytes(changed))
    return f"bit {bit} of byte {place} flipped"


def _garbage(path: Path, data: bytes, rng: random.Random) -> str:
    _replace(path, rng.randbytes(rng.choice([1, 16, 1000])))
    return "random bytes"


def _zeros(path: Path, data: bytes, rng: random.Random) -> str | None:
    if len(data) < 2:
        return None
    start = rng.randrange(len(data))
    _replace(path, data[:start] + bytes(len(data) - start))
    return f"zeros from byte {start}"


def _insert(path: Path, data: bytes, rng: random.Random) -> str:
    place = rng.randrange(len(data) + 1)
    part = rng.choice([b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\n\n", b"\t", b"\r"])
    _replace(path, data[:place] + part + data[place:])
    return f"{part!r} inserted at byte {place}"


# Of any file: what stands in its place.


def _remove(path: Path, data: bytes, rng: random.Random) -> str:
    path.unlink()
    return "removed"


def _folder(path: Path, data: bytes, rng: random.Random) -> str:
    path.unlink()
    path.mkdir()
    return "a folder in its place"


def _pipe(path: Path, data: bytes, rng: random.Random) -> str:
    path.unlink()
    os.mkfifo(path)
    return "a pipe in its place"


def _swap(path: Path, data: bytes, rng: random.Random) -> str | None:
    others = [p for p in sorted(path.parent.iterdir()) if p.is_file() and p != path]
    if not others:
        return None
    other = rng.choice(others)
    path.unlink()
    shutil.copy(other, path)
    return f"{other.name} in its place"


# Of text files: lines.


def _lines(path: Path, data: bytes, rng: random.Random) -> str | None:
    lines = data.split(b"\n")
    if len(lines) < 3:
        return None
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    kind = rng.randrange(4)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(other, lines[at])
    elif kind == 2:
        lines[at] = rng.choice([b"", b"\t", b" ", lines[at] * 50, b"x" * 200_000, b"\xff"])
    else:
        lines[at] = lines[at][: len(lines[at]) // 2]
    _replace(path, b"\n".join(lines))
    return f"line {at + 1}: {('removed', f'twice, at {other + 1}', 'another', 'cut')[kind]}"


def _letter(path: Path, data: bytes, rng: random.Random) -> str | None:
    text = list(data.decode())
    places = [place for place, letter in enumerate(text[:100_000]) if letter.isalnum()]
    if not places:
        return None
    place = rng.choice(places)
    new = rng.choice("aZ09-. \t\"'é한\u2028")
    old, text[place] = text[place], new
    _replace(path, "".join(text).encode())
    return f"{old!r} at {place} became {new!r}"


# Of JSON: values.


def _parsed(
    path: Path, data: bytes, rng: random.Random
) -> tuple[Any, Callable[[str], None]] | None:
    """The value of a file, or of one line of JSON lines, and how to put a text in its place."""
    if path.suffix == ".jsonl":
        lines = data.decode().splitlines()
        if not lines:
            return None
        at = rng.randrange(len(lines))

        def put(text: str) -> None:
            joined = "\n".join([*lines[:at], text.replace("\n", " "), *lines[at + 1 :]]) + "\n"
            _replace(path, joined.encode("utf-8", "surrogatepass"))

        return json.loads(lines[at]), put
    return json.loads(data), lambda text: _replace(path, text.encode("utf-8", "surrogatepass"))


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside a value, few of long lists and objects."""
    found: list[tuple[Any, Any]] = []
    pairs = list(value.items()) if isinstance(value, dict) else []
    if isinstance(value, list):
        pairs = list(enumerate(value))
    for key, inner in [*pairs[:40], *pairs[40:][-2:]]:
        found += [(value, key), *_places(inner)]
    return found


def _json_value(path: Path, data: bytes, rng: random.Random) -> str | None:
    try:
        parsed = _parsed(path, data, rng)
    except ValueError:
        return None
    if parsed is None:
        return None
    value, put = parsed
    places = _places(value)
    if not places:
        return None
    # As likely near the top as deep inside, where most places are.
    top = [place for place in places if place[0] is value]
    container, key = rng.choice(rng.choice([top, places]))
    old = container[key]
    kind = rng.choice(["delete", "strange", "strange", "typo", "rename", "deep", "digits", "twice"])
    said = f"{kind} at {key!r} ({json.dumps(old)[:40]})"
    if kind == "delete":
        del container[key]
    elif kind == "strange":
        container[key] = rng.choice(_STRANGE)
        said += f": {container[key]!r}"
    elif kind == "typo":
        texts = [place for place in places if isinstance(place[0][place[1]], str)]
        texts = [place for place in texts if place[0][place[1]]]
        if not texts:
            return None
        container, key = rng.choice(texts)
        text = container[key]
        at = rng.randrange(len(text))
        container[key] = text[:at] + rng.choice(["", "x", "Q", " "]) + text[at + 1 :]
        said = f"typo at {key!r}: {text[:40]!r} became {container[key][:40]!r}"
    elif kind == "rename" and isinstance(container, dict):
        container[f"{key}x"] = container.pop(key)
    elif kind in ("deep", "digits", "twice", "rename"):
        container[key] = "<HERE>"
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    new = {"deep": "[" * DEEP + "]" * DEEP, "digits": "9" * 6000, "rename": "-0"}.get(kind, "1")
    if kind == "twice" and isinstance(container, dict):
        new = f"{json.dumps(old)}, {json.dumps(key)}: 1"
    put(text.replace('"<HERE>"', new))
    return said


def _json_top(path: Path, data: bytes, rng: random.Random) -> str:
    text = rng.choice(["null", "[]", "{}", '""', "1", "NaN", "{", "[1,", "9" * 6000, "[" * DEEP])
    _replace(path, text.encode())
    return f"{text[:10]!r} in its place"


_Maker = Callable[[Path, bytes, random.Random], str | None]
_OF_ANY: list[_Maker] = [_truncate, _flip, _flip, _garbage, _zeros, _insert]
_OF_FILES: list[_Maker] = [_remove, _folder, _pipe, _swap]
_OF_TEXT: list[_Maker] = [_lines, _lines, _letter, _letter]
_OF_JSON: list[_Maker] = [_json_value, _json_value, _json_value, _json_top]
