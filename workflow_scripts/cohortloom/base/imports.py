"""The files of this repository that a script imports: editing one reruns exactly the steps that use it.

They are read from the source, which is not run: parsing the workflow needs neither torch nor data.
"""

import ast
import functools
from pathlib import Path

SCRIPTS = Path(__file__).parents[2]  # workflow_scripts/


def imported_files(script: str) -> list[Path]:
    """workflow_scripts/<script>.py and every file of this repository that it imports, in order of name.

    Imports count at any depth, at the top of a file or inside a function.
    """
    visited: set[Path] = set()
    queue = [SCRIPTS / f"{script}.py"]
    while queue:
        path = queue.pop()
        if path not in visited:
            visited.add(path)
            queue += _imports_of(path)
    return sorted(visited)


@functools.cache
def _imports_of(path: Path) -> list[Path]:
    """Files of this repository that one file imports."""
    names, statements = set(), ast.parse(path.read_text(encoding="utf-8")).body
    for node in statements:  # grows below by nested blocks; expressions are skipped, for they hold no imports
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # from . import x
                package = path.relative_to(SCRIPTS).parts[: -node.level]
                base = ".".join([*package, *base.split(".")] if base else package)
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):
            statements += getattr(node, block, [])
    return [file for name in names for file in _files_of_module(name)]


@functools.cache
def _files_of_module(name: str) -> list[Path]:
    """Files of this repository that importing a dotted name runs: the module and its packages."""
    parts = name.split(".")
    files = []
    for length in range(1, len(parts) + 1):
        stem = SCRIPTS.joinpath(*parts[:length])
        files += [stem / "__init__.py", stem.with_suffix(".py")]
    return [file for file in files if file.is_file()]
