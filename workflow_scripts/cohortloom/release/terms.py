"""Sources whose models may be published, and the terms of each (resources/publication.yaml).

Imported while Snakemake parses the workflow, so it imports neither torch nor anything that reads data.
"""

from pathlib import Path
from typing import Any

from cohortloom.base.errors import UserError


def terms_of(source: str, path: Path) -> dict[str, Any]:
    """The entry of a source: title, url, license, terms, limits.

    Raises UserError for a source whose models may not be published, or that is not listed.
    """
    table = _table(path)
    entry = _entry(source, table)
    if entry["publish"] is not True:
        allowed = ", ".join(name for name, other in table.items() if other["publish"] is True)
        raise UserError(
            f"publish: cohort.source {source}: {entry['reason']}; "
            f"only models of these sources may be: {allowed} ({Path(path).name})"
        )
    return entry


def terms_in_words(source: str, path: Path) -> str:
    """What the README of an export says on the terms of its source, in one paragraph."""
    entry = _entry(source, _table(path))
    if entry["publish"] is True:
        return f"Source: {entry['title']}. {entry['terms'].strip()}"
    return (
        f"Source: {source}; {entry['reason']}. What is derived from it falls under its terms: do not hand"
        " this folder on before the person responsible for the data has agreed."
    )


def _table(path: Path) -> dict[str, dict[str, Any]]:
    import yaml

    with open(path, encoding="utf-8") as file:
        return yaml.safe_load(file)


def _entry(source: str, table: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return table.get(source) or {"publish": False, "reason": "its terms of use are not known here"}
