"""Write synthesized visits as OMOP CDM 5.4, which OMOP tools and PyHealth read."""

from functools import partial
from pathlib import Path
from typing import Literal

from cohortloom.base.step import main
from cohortloom.release import omop
from cohortloom.release.exports import save_export
from cohortloom.release.layout import omop_files


def export_omop(
    *,
    synthetic: Path,
    folder: Path,
    titles: list[Path],
    terms: Path,
    readme: Path,
    cdm: Path,
    experiment: str,
    run: str,
    source: str,
    seed: int = 0,
    placeholder_days: bool = False,
    site_terms: Path | None = None,
    athena: Path | None = None,
    unmapped: Literal["zero", "source"] = "zero",
    table_files: Literal["csv", "parquet"] = "csv",
) -> None:
    """Write the visits of `synthetic` into `folder`; a file a table.

    `titles` and `terms` are resources/titles/* and publication.yaml, `cdm` is omop_cdm54.csv, `readme`
    the template of README.md, which names `experiment`, `run` and the `source` of the training data.
    `seed` draws dates and births. `placeholder_days`: the source knows no days between visits.
    `site_terms`: the site's own file of the terms of a source that `terms` does not list. `athena` is the
    folder of a download of OMOP's vocabularies; a code without a standard concept there, and every code
    without it, has the concept 0 or that of its source (`unmapped`). Raises UserError, with nothing
    written, for visits that no trained run synthesized, a folder of vocabularies that is none, and a
    folder with foreign files.
    """
    keywords = dict(locals())
    own = {key: keywords.pop(key) for key in ("cdm", "athena", "unmapped", "table_files")}
    save_export(
        "omop",
        partial(omop.write, name=f"{experiment} {run}", **own),
        omop_files(table_files, athena is not None),
        {},
        **keywords,
    )


if __name__ == "__main__":
    main(export_omop, globals().get("snakemake"))
