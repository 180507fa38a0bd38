"""Write synthesized visits in the shape of MIMIC-IV, which PyHealth reads."""

from pathlib import Path

from cohortloom.base.step import main
from cohortloom.release import mimic
from cohortloom.release.exports import save_export
from cohortloom.release.layout import EXPORTED


def export_mimic4(
    *,
    synthetic: Path,
    folder: Path,
    titles: list[Path],
    terms: Path,
    readme: Path,
    experiment: str,
    run: str,
    source: str,
    seed: int = 0,
    placeholder_days: bool = False,
    site_terms: Path | None = None,
) -> None:
    """Write the visits of `synthetic` into `folder`; the tables of modules hosp and icu.

    `titles` and `terms` are resources/titles/* and publication.yaml, `readme` the template of
    README.md, which names `experiment`, `run` and the `source` of the training data. `seed` draws dates
    and births. `placeholder_days`: the source knows no days between visits. `site_terms`: the site's own
    file of the terms of a source that `terms` does not list. Raises UserError, with nothing written, for
    visits that no trained run synthesized, codes that are neither ICD-9 nor ICD-10-CM or -PCS, and a
    folder with foreign files.
    """
    keywords = dict(locals())
    save_export(
        "mimic4",
        mimic.write_mimic4,
        EXPORTED["mimic4"],
        mimic.HELD4,
        **keywords,
    )


if __name__ == "__main__":
    main(export_mimic4, globals().get("snakemake"))
