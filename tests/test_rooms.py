"""The rooms of the package: what each may import, and that no imports go round in a circle.

Imports inside functions count as any other.
"""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the top down: a room imports from itself and from the rooms below, not from its neighbours.
FLOORS = (
    {"commands"},
    {"experiments", "planning", "reports", "preparing"},
    {"inference"},
    {"weights"},
    {"families"},
    {"tasks"},
    {"training"},
    {"objectives"},
    {"models"},
    {"data"},
    {"common"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> dict[str, Path]:
    """Finds the modules of the package: "bert_jax.common.errors" and where it is."""
    found = {}
    for path in sorted((ROOT / "bert_jax").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """Finds the modules of the package that a file imports, also late."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in known else str(node.module) for name in full}
    return names & known.keys()


def room(module: str) -> str:
    """Names the room of a module; what stands at the root is a command."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOOR_OF else "commands"


def wrong_imports(graph: dict[str, set[str]]) -> list[str]:
    """Lists the imports that go up, or into a room beside."""
    return [
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in sorted(others)
        if room(module) != room(other) and FLOOR_OF[room(module)] >= FLOOR_OF[room(other)]
    ]


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    return {module: imported(path, known) for module, path in known.items()}


def test_every_folder_is_a_room_that_says_what_it_is_for():
    folders = {path.parent.name for path in (ROOT / "bert_jax").glob("*/*.py")}
    assert folders == FLOOR_OF.keys() - {"commands"}
    for name, path in modules().items():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), name


def test_imports_go_down(graph):
    assert wrong_imports(graph) == []


def test_no_imports_go_round_in_a_circle(graph):
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def test_an_import_that_goes_up_or_round_would_be_seen():
    graph = {"bert_jax.data.a": {"bert_jax.models.b"}, "bert_jax.models.b": {"bert_jax.data.a"}}
    assert wrong_imports(graph) == ["bert_jax.data.a imports bert_jax.models.b"]
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(graph).prepare()


def test_what_stands_at_the_root_is_a_command(graph):
    for name, path in modules().items():
        if room(name) == "commands" and name not in ("bert_jax", "bert_jax.__main__"):
            assert "\ndef main(" in path.read_text(encoding="utf-8"), name
