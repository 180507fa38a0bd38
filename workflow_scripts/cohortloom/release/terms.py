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
    import yaml

    with open(path, encoding="utf-8") as file:
        table = yaml.safe_load(file)
    entry = table.get(source) or {"publish": False, "reason": "its terms of use are not known here"}
    if entry["publish"] is not True:
        allowed = ", ".join(name for name, other in table.items() if other["publish"] is True)
        raise UserError(
            f"publish: cohort.source {source}: {entry['reason']}; "
            f"only models of these sources may be: {allowed} ({Path(path).name})"
        )
    return entry
