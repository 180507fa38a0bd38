"""The direction of imports: packages of the library import what lies below them, and nothing above.

Read from the source by ast, wherever in a file an import stands; nothing is imported. docs/architecture.md
says the same in words.
"""

import ast
from pathlib import Path

import pytest

from conftest import REPOSITORY

LIBRARY = REPOSITORY / "workflow_scripts" / "cohortloom"
MOST_LINES = 400
# package -> the other packages that it may import
BELOW = {
    "base": set(),
    "runtime": {"base"},
    "data": {"base", "runtime"},
    "sources": {"base", "runtime", "data"},
    "model": {"base", "runtime", "data"},
    "generation": {"base", "runtime", "data", "sources", "model"},
    "training": {"base", "runtime", "data", "sources", "model", "generation"},
    "evaluation": {"base", "runtime", "data"},
    "reporting": {"base", "runtime", "data", "evaluation"},
    "release": {"base", "runtime", "data", "model", "generation", "evaluation", "reporting"},
    "config": {"base", "sources"},
}


def imports_of(path: Path, library: Path) -> set[str]:
    """Modules of the library that a file imports, as package.module or, of an __init__.py, as package."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import; write the module's whole name"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    found = set()
    for name in names:
        top, *rest = name.split(".")
        if top == library.name and rest:
            # `from cohortloom.data.visits import SEXES` names a thing of the module, not a module
            found.add(
                ".".join(rest[:2]) if library.joinpath(*rest[:2]).with_suffix(".py").exists() else rest[0]
            )
    return found


def faults(library: Path) -> list[str]:
    """What a tree of packages breaks, a line each, in order of the files; empty for a sound one."""
    found, graph = [], {}
    for path in sorted(library.rglob("*.py")):
        place = path.relative_to(library)
        if path.name == "__init__.py":
            found += [f"{place}: not empty"] * (path.stat().st_size > 0)
        elif len(place.parts) != 2:
            found.append(f"{place}: lies in no package")
    for path in sorted(library.glob("*/*.py")):
        package, module = path.parent.name, f"{path.parent.name}.{path.stem}"
        graph[module] = imports_of(path, library)
        if package not in BELOW:
            found.append(f"{package}: a package that no layer names")
            continue
        allowed = {package, *BELOW[package]}
        found += [
            f"{module} imports {one}" for one in sorted(graph[module]) if one.split(".")[0] not in allowed
        ]
        lines = len(path.read_text(encoding="utf-8").splitlines())
        found += [f"{module}: {lines} lines, more than {MOST_LINES}"] * (lines > MOST_LINES)
    return found + [f"cycle: {' -> '.join(cycle)}" for cycle in cycles(graph)]


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """A cycle for each import that closes one, by a walk in depth."""
    found, done = [], set()

    def walk(module: str, path: list[str]) -> None:
        if module in path:
            found.append([*path[path.index(module) :], module])
        elif module not in done:
            for one in sorted(graph.get(module, ())):
                walk(one, [*path, module])
            done.add(module)

    for module in sorted(graph):
        walk(module, [])
    return found


def test_packages_import_what_lies_below_them():
    assert {path.parent.name for path in LIBRARY.glob("*/*.py")} == set(BELOW)
    assert faults(LIBRARY) == []


def test_the_config_is_read_by_rules_and_tests_alone():
    """Steps take keywords, so they run without a config, and only keys that they use rerun them."""
    for path in (REPOSITORY / "workflow_scripts").glob("*.py"):
        assert not [one for one in imports_of(path, LIBRARY) if one.split(".")[0] == "config"], path


# a tree of files -> the fault that must be seen
WRONG = {
    "upwards": (
        {"data/visits.py": "from cohortloom.model.bart import Bart\n", "model/bart.py": "class Bart: ...\n"},
        "data.visits imports model.bart",
    ),
    "upwards inside a function": (
        {
            "evaluation/fidelity.py": "def f():\n    import cohortloom.reporting.report\n",
            "reporting/report.py": "",
        },
        "evaluation.fidelity imports reporting.report",
    ),
    "a module of the package": (
        {"base/files.py": "from cohortloom.data import visits\n", "data/visits.py": ""},
        "base.files imports data.visits",
    ),
    "beside": (
        {"sources/mimic.py": "from cohortloom.model.bart import x\n", "model/bart.py": "x = 1\n"},
        "sources.mimic imports model.bart",
    ),
    "a cycle in a package": (
        {
            "data/a.py": "from cohortloom.data.b import x\n",
            "data/b.py": "def f():\n    from cohortloom.data.a import y\n",
        },
        "cycle: data.a -> data.b -> data.a",
    ),
    "a module in no package": (
        {"helpers.py": "", "base/files.py": ""},
        "helpers.py: lies in no package",
    ),
    "a package in a package": (
        {"data/more/things.py": "", "base/files.py": ""},
        "data/more/things.py: lies in no package",
    ),
    "more than a folder": ({"base/__init__.py": "x = 1\n"}, "base/__init__.py: not empty"),
    "an unknown package": ({"misc/things.py": ""}, "misc: a package that no layer names"),
    "a long file": ({"base/files.py": "x = 1\n" * 401}, "base.files: 401 lines, more than 400"),
}


@pytest.mark.parametrize("files, fault", WRONG.values(), ids=WRONG)
def test_a_wrong_tree_is_rejected(tmp_path, files, fault):
    library = tmp_path / "cohortloom"
    for name, text in files.items():
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_text(text, encoding="utf-8")
    assert faults(library) == [fault]


def test_a_sound_tree_is_not(tmp_path):
    library = tmp_path / "cohortloom"
    for name, text in {
        "base/files.py": "import json\n",
        "data/visits.py": "from cohortloom.base.files import read\nfrom cohortloom.base import files\n",
        "training/trainer.py": "import cohortloom.data.visits\nfrom cohortloom.generation import naive\n",
        "generation/naive.py": "x = 1\n" * 400,
    }.items():
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_text(text, encoding="utf-8")
    assert faults(library) == []
