"""The house: which room may import from which. An import never climbs, inside a function neither."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# a room imports from its own floor's rooms only itself, and from every floor below
FLOORS = (
    ("runtime",),
    ("structures",),
    ("config",),
    ("ops", "drawing"),
    ("models", "data"),
    ("checkpoints",),
    ("evaluation",),
    ("inference", "training", "export"),
    ("convert_checkpoint",),
)
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}
FILES = sorted(p for p in (ROOT / "src").rglob("*.py") if p != ROOT / "src/__init__.py")


def imported(path: Path) -> list[tuple[int, str]]:
    """(line, module of src) of every import, wherever it stands."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: a relative import hides where it leads"
            names = [f"src.{a.name}" for a in node.names] if node.module == "src" else [node.module]
        found += [(node.lineno, n) for n in names if n.split(".")[0] == "src"]
    return found


def room_of(module: str) -> str:
    return module.split(".")[1]


def climbs(path: Path) -> list[str]:
    here = path.relative_to(ROOT / "src").parts[0].removesuffix(".py")
    out = []
    for line, module in imported(path):
        there = room_of(module)
        if there != here and FLOOR[there] >= FLOOR[here]:
            out.append(f"line {line}: {here} imports {module}")
    return out


def test_every_file_is_in_a_room():
    rooms = {p.relative_to(ROOT / "src").parts[0].removesuffix(".py") for p in FILES}
    assert rooms == FLOOR.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_no_import_climbs(path):
    assert climbs(path) == []


def test_a_climb_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    path = tmp_path / "src/data/new.py"
    path.parent.mkdir(parents=True)
    path.write_text("import os\n\n\ndef f():\n    from src.training.loop import Trainer\n    import src.config\n")
    assert climbs(path) == ["line 5: data imports src.training.loop"]


def test_no_circles_within_a_room():
    graph = {}
    for path in FILES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        graph[name] = {m for _, m in imported(path)}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above[above.index(name) :], name))
        if name in done:
            return
        for other in graph.get(name, ()):
            if other in graph and other != name:
                visit(other, (*above, name))
        done.add(name)

    for name in graph:
        visit(name, ())
