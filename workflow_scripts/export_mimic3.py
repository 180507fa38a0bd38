"""Write synthesized visits in the shape of MIMIC-III, which PyHealth reads."""

from pathlib import Path

from cohortloom.base.step import main
from cohortloom.release import mimic
from cohortloom.release.exports import save_export
from cohortloom.release.layout import EXPORTED


def export_mimic3(
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
    """Write the visits of `synthetic` into `folder`; six tables.

    `titles` and `terms` are resources/titles/* and publication.yaml, `readme` the template of
    README.md, which names `experiment`, `run` and the `source` of the training data. `seed` draws dates
    and births. `placeholder_days`: the source knows no days between visits. `site_terms`: the site's own
    file of the terms of a source that `terms` does not list. Raises UserError, with nothing written, for
    visits that no trained run synthesized, codes of ICD-10, and a folder with foreign files.
    """
    keywords = dict(locals())
    save_export(
        "mimic3",
        mimic.write_mimic3,
        EXPORTED["mimic3"],
        mimic.HELD3,
        **keywords,
    )


if __name__ == "__main__":
    main(export_mimic3, globals().get("snakemake"))
