"""What the rooms import is what docs/architecture.md says: arrows point one way."""

import ast
import functools
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "rrm_jax"
# A room, or one module of it where no more than that is to be known.
MAY = {
    "models": "",
    "data": "",
    "ranking": "",
    "parallel": "models",
    "rl": "models",
    "checkpoints": "models parallel",
    "sampling": "models parallel checkpoints data.tokenizer",
    "judging": "data sampling.protocol",
    "evaluation": "data judging ranking sampling.protocol checkpoints.run_files",
    "training": "models parallel data checkpoints sampling judging ranking rl evaluation.tournament_rewards",
    "serving": "data sampling judging ranking evaluation.tournament evaluation.tournament_rewards",
    "studies": "data checkpoints sampling judging ranking evaluation training",
    "planning": "models parallel checkpoints sampling rl training evaluation.ranking_report",
    "quickstart": "models data checkpoints sampling judging ranking evaluation training",
    "reproduce": "models parallel data checkpoints ranking evaluation training studies quickstart",
}
EVERYTHING = {"", "api", "cli"}  # what users call
FOUNDATION = {"errors", "config", "provenance", "registry", "types"}  # knows no room
OF_ALL = {"testing": "models"}


@functools.cache
def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imported(name: str, lazily: bool) -> Iterator[str]:
    """The modules of the package that a module imports; without `lazily` those alone that it does when imported."""

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            later |= isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            if lazily or not later:
                yield child
                yield from walk(child)

    for node in walk(ast.parse(modules()[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import"
            wanted = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in wanted:
            parts = target.split(".")
            if parts[0] == "rrm_jax":
                known = (".".join(parts[1:end]) for end in range(len(parts), 0, -1))
                yield next(module for module in known if module in modules())


def room(module: str) -> str:
    return module.partition(".")[0]


def test_every_room_is_in_the_table():
    rooms = {room(module) for module in modules()} - FOUNDATION - EVERYTHING - OF_ALL.keys() - {"__main__"}
    assert rooms == MAY.keys()


@pytest.mark.parametrize("importer", [*MAY, *OF_ALL])
def test_a_room_imports_what_its_line_allows(importer: str):
    allowed = {importer, *(MAY | OF_ALL)[importer].split()}
    found = {
        (name, target)
        for name in modules()
        if room(name) == importer
        for target in imported(name, lazily=True)
        if room(target) not in {*FOUNDATION, ""} and not {room(target), target} & allowed  # "": the version
    }
    assert not found


@pytest.mark.parametrize("importer", sorted(FOUNDATION))
def test_what_all_import_knows_no_room(importer: str):
    found = {target for target in imported(importer, lazily=True) if room(target) not in FOUNDATION}
    assert not found


def test_the_package_itself_imports_nothing_at_once():
    assert not [*imported("", lazily=False)]


def test_no_line_allows_what_nobody_imports():
    for importer, allowed in (MAY | OF_ALL).items():
        used = {target for name in modules() if room(name) == importer for target in imported(name, lazily=True)}
        used |= {room(target) for target in used}
        assert not set(allowed.split()) - used, importer


def test_modules_can_be_imported_in_some_order():
    """No cycle among the imports that happen when a module is imported; graphlib names it."""
    packages = {name for name, path in modules().items() if path.name == "__init__.py"}
    graph = {name: {*imported(name, lazily=False)} - {name} - packages for name in modules()}
    assert len([*graphlib.TopologicalSorter(graph).static_order()]) >= len(modules())
