"""Write synthesized visits as MEDS, which MEDS tools and PyHealth read."""

from pathlib import Path

from cohortloom.base.step import main
from cohortloom.release import meds
from cohortloom.release.exports import save_export
from cohortloom.release.layout import EXPORTED


def export_meds(
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
    """Write the visits of `synthetic` into `folder`; data/ and metadata/ of MEDS 0.4.1.

    `titles` and `terms` are resources/titles/* and publication.yaml, `readme` the template of
    README.md, which names `experiment`, `run` and the `source` of the training data. `seed` draws dates,
    births and the split of the subjects. `placeholder_days`: the source knows no days between visits.
    `site_terms`: the site's own file of the terms of a source that `terms` does not list. Raises
    UserError, with nothing written, for visits that no trained run synthesized and a folder with foreign
    files.
    """
    keywords = dict(locals())
    save_export(
        "meds",
        lambda connection, new: meds.write(connection, new, f"{experiment} {run}", seed),
        EXPORTED["meds"],
        {},
        **keywords,
    )


if __name__ == "__main__":
    main(export_meds, globals().get("snakemake"))
