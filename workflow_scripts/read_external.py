"""Read visits that another generator made into the one table of visits, so that they can be scored."""

from pathlib import Path

from cohortloom.base.files import write_json
from cohortloom.base.step import log, main
from cohortloom.base.version import VERSION
from cohortloom.data.visits import write_visits
from cohortloom.sources import external
from cohortloom.sources.audit import Audit


def read_external(*, source: Path, synthetic: Path, counts: Path) -> None:
    """Read a parquet file, a long CSV or a folder of tables into `synthetic`, and the account of it into
    `counts`.

    What is missing of days, age and sex is named in the metadata of `synthetic`, and the evaluations leave
    out the figures that need it.
    """
    account = Audit()
    table, absent = external.read(source, account)
    account = account.summary("external")
    write_json(counts, {**account, "absent": sorted(absent)})
    metadata = {"source": "external", "seed": "", "inputs_sha256": "", "tool_version": VERSION}
    write_visits(table, synthetic, {**metadata, "absent": ",".join(sorted(absent))})
    dropped = {row["reason"]: row["rows"] for row in account["dropped"] if row["rows"]}
    known = f"missing: {', '.join(sorted(absent))}" if absent else "days, age and sex are known"
    log.info("%s: %d visits; %s; dropped: %s", source, table.num_rows, known, dropped or "nothing")


if __name__ == "__main__":
    main(read_external, globals().get("snakemake"))
