"""Read visits that another generator made into the one table of visits, so that they can be scored."""

from pathlib import Path
from typing import Literal

from cohortloom.base.files import write_json
from cohortloom.base.step import log, main
from cohortloom.base.version import VERSION
from cohortloom.data.visits import used_columns, write_visits
from cohortloom.sources import external
from cohortloom.sources.audit import Audit
from cohortloom.sources.intake import spill_folder
from cohortloom.sources.spelling import Spelling, read_code_map, read_list

MANY = 0.2  # share of visits without a code of which a warning is given


def read_external(
    *,
    source: Path,
    synthetic: Path,
    counts: Path,
    icd9_list: Path | None = None,
    code_map: Path | None = None,
    unmapped: Literal["keep", "drop"] = "keep",
    max_dropped: float = 0.05,
) -> None:
    """Read a file or a folder in any shape of sources/shapes.py into `synthetic`, the account into `counts`.

    What is missing of days, age and sex is named in the metadata of `synthetic`, and the evaluations leave
    out the figures that need it. `icd9_list` is a table whose column `code` lists the ICD-9-CM codes that
    there are. `code_map` and `unmapped` replace codes as in the cohort. Raises UserError where more than
    `max_dropped` of a column's codes are rejected.
    """
    spelling = Spelling(
        {"ICD9CM": read_list(icd9_list)} if icd9_list else {},
        read_code_map(code_map) if code_map else None,
        unmapped == "keep",
    )
    account = Audit()
    with spill_folder(synthetic) as spill:
        found = external.read(source, account, spill, spelling, max_dropped)
        facts = {
            **account.summary("external"),
            "shape": found.shape,
            "scored": used_columns(found.visits),
            "visits_not_scored": found.not_scored,
            "absent": sorted(found.absent),
        }
        metadata = {"source": "external", "seed": "", "inputs_sha256": "", "tool_version": VERSION}
        write_visits(found.visits, synthetic, {**metadata, "absent": ",".join(facts["absent"])})
    write_json(counts, facts)
    log.info(external.in_one_line(source, found, account))
    for remark in spelling.remarks():
        log.info(remark)
    for warning in spelling.warnings():
        log.warning(warning)
    empty = account.dropped["visits", "no code"]
    if empty > MANY * (account.visits + empty):
        log.warning("warning: %s of the visits have no code: check that no table is cut off", f"{empty:,}")


if __name__ == "__main__":
    main(read_external, globals().get("snakemake"))
