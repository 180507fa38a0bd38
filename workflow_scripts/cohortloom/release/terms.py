"""Sources whose models may be published, and the terms of each (resources/publication.yaml).

Imported while Snakemake parses the workflow, so it imports neither torch nor anything that reads data.
"""

from pathlib import Path
from typing import Any

from cohortloom.base.errors import UserError

# What a site states about its own source (publish.terms), as text but for `limits`, a list of text.
STATED = ("source", "title", "url", "license", "terms", "limits")


def terms_of(source: str, path: Path, site_terms: Path | None = None) -> dict[str, Any]:
    """The entry of a source: title, url, license, terms, limits.

    site_terms: a file that states them for a source that `path` does not list. Raises UserError for a source
    whose models may not be published, or that neither names, and for a faulty file.
    """
    table = _table(path)
    if site_terms is not None:
        if source not in table:
            return _stated(site_terms, source)
        if table[source]["publish"] is True:
            raise _listed(site_terms, source, path)
    entry = _entry(source, table)
    if entry["publish"] is not True:
        allowed = ", ".join(name for name, other in table.items() if other["publish"] is True)
        remedy = "" if source in table else "; or state its terms in a file, publish.terms"
        raise UserError(
            f"publish: cohort.source {source}: {entry['reason']}; "
            f"only models of these sources may be: {allowed} ({Path(path).name}){remedy}"
        )
    return entry


def _stated(path: Path, source: str) -> dict[str, Any]:
    """The terms that a site states for its source. Raises UserError for a faulty file."""
    import yaml

    where = f"publish.terms: {path}"
    try:
        with open(path, encoding="utf-8") as file:
            entry = yaml.safe_load(file)
    except FileNotFoundError:
        raise UserError(f"{where}: no such file; correct the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: is no YAML in UTF-8 ({str(error).splitlines()[0]})") from None
    known = ", ".join(STATED)
    if not isinstance(entry, dict):
        raise UserError(f"{where}: holds no keys; give {known}")
    if missing := [key for key in STATED if key not in entry]:
        raise UserError(f"{where}: {missing[0]} is missing; give {known}")
    if extra := [key for key in entry if key not in STATED]:
        raise UserError(f"{where}: {extra[0]}: unknown key; give {known}")
    if entry["source"] != source:
        raise UserError(f"{where}: states the terms of {entry['source']!r}, and cohort.source is {source!r}")
    limits = entry["limits"]
    if not isinstance(limits, list) or not limits or not all(isinstance(limit, str) for limit in limits):
        raise UserError(f"{where}: limits: give a list of sentences, one or more")
    for key in ("title", "license", "terms"):
        if not isinstance(entry[key], str) or not entry[key].strip():
            raise UserError(f"{where}: {key}: {entry[key]!r} is no text; say it in words")
    if not isinstance(entry["url"], str | None):
        raise UserError(f"{where}: url: {entry['url']!r} is neither text nor null")
    return {"publish": True, "name": entry["title"], **entry}


def terms_in_words(source: str, path: Path, site_terms: Path | None = None) -> str:
    """What the README of an export says on the terms of its source, in Markdown.

    site_terms: a file that states them for a source that `path` does not list. Raises UserError for a source
    that it lists, and for a faulty file.
    """
    table = _table(path)
    if site_terms is not None:
        if source in table:
            raise _listed(site_terms, source, path)
        entry = _stated(site_terms, source)
        title = f"{entry['title']} ({entry['url']})" if entry["url"] else entry["title"]
        limits = "".join(f"\n- {limit}" for limit in entry["limits"])
        return (
            f"Source: {title}. Licence: {entry['license']}. {entry['terms'].strip()}\n\n"
            f"Limits that the site states, which trained the model:\n{limits}"
        )
    entry = _entry(source, table)
    if entry["publish"] is True:
        return f"Source: {entry['title']}. {entry['terms'].strip()}"
    return (
        f"Source: {source}; {entry['reason']}. What is derived from it falls under its terms: do not hand"
        " this folder on before the person responsible for the data has agreed."
    )


def _listed(site_terms: Path, source: str, path: Path) -> UserError:
    return UserError(
        f"publish.terms: {site_terms}: the terms of {source} are in {Path(path).name}; take the key out"
    )


def _table(path: Path) -> dict[str, dict[str, Any]]:
    import yaml

    with open(path, encoding="utf-8") as file:
        return yaml.safe_load(file)


def _entry(source: str, table: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return table.get(source) or {"publish": False, "reason": "its terms of use are not known here"}
