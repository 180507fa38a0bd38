"""Read a source's raw tables into the one table of visits; race and all else not allowed ends here."""

import hashlib
import logging
from pathlib import Path
from typing import Literal

from cohortloom.base.files import write_json
from cohortloom.base.step import main
from cohortloom.base.version import VERSION
from cohortloom.data.visits import check_visits, write_visits
from cohortloom.sources import mimic3, nhds2010
from cohortloom.sources.cohort import Audit
from cohortloom.sources.locate import find_tables

log = logging.getLogger("cohortloom")
Source = Literal["simulated", "mimic3", "nhds2010"]
READERS = {"simulated": mimic3.read, "mimic3": mimic3.read, "nhds2010": nhds2010.read}


def preprocess(*, raw_dir: Path, visits: Path, audit: Path, source: Source) -> None:
    """Read the raw tables of a source in raw_dir into visits, and the account of it into audit."""
    account, tables = Audit(), find_tables(source, raw_dir)
    table = check_visits(READERS[source](tables, account), str(raw_dir))
    summary = account.summary(source, table)
    digests = "".join(read["sha256"] for read in account.tables)
    metadata = {
        "source": source,
        "seed": "",
        "inputs_sha256": hashlib.sha256(digests.encode()).hexdigest(),
        "tool_version": VERSION,
    }
    write_json(audit, summary)
    try:
        write_visits(table, visits, metadata)
    except BaseException:
        audit.unlink(missing_ok=True)  # an account without its visits would look like success
        raise
    cohort = summary["cohort"]
    log.info(
        "%s: %d patients, %d visits, %d codes (%d distinct); %d columns removed",
        source,
        cohort["patients"],
        cohort["visits"],
        cohort["codes"],
        cohort["distinct_codes"],
        len(summary["columns_removed"]),
    )


if __name__ == "__main__":
    main(preprocess, globals().get("snakemake"))
