"""Read a source's raw tables into the one table of visits; race and all else not allowed ends here."""

import hashlib
from pathlib import Path
from typing import Literal

import duckdb

from cohortloom.base.errors import UserError
from cohortloom.base.files import write_json
from cohortloom.base.step import log, main
from cohortloom.base.version import VERSION
from cohortloom.data.codes import CODE_COLUMNS
from cohortloom.data.visits import visits_writer
from cohortloom.sources.audit import Audit
from cohortloom.sources.intake import Intake, Limits, spill_folder
from cohortloom.sources.locate import declared, find_tables, ignored_files
from cohortloom.sources.spelling import Spelling, read_code_map, read_list


def preprocess(
    *,
    raw_dir: Path,
    visits: Path,
    audit: Path,
    source: str,
    columns: list[str] | None = None,
    icd9_list: Path | None = None,
    code_map: Path | None = None,
    unmapped: Literal["keep", "drop"] = "keep",
    max_dropped: float = 0.05,
    max_empty: float = 0.2,
    memory_mb: int = 2000,
) -> None:
    """Read the raw tables of a source in raw_dir into visits, and the account of it into audit.

    `columns` are those of codes that are used, None for all that the source has. `icd9_list` is a table whose
    column `code` lists the ICD-9-CM codes that there are. `code_map` (columns from and to) replaces codes;
    what it does not name is kept or dropped (`unmapped`). Raises UserError where more than `max_dropped` of a
    column's codes are rejected, or more than `max_empty` of the visits have no code. DuckDB takes at most
    `memory_mb`; what does not fit lies beside `visits` until the step ends.
    """
    if unknown := [column for column in columns or [] if column not in CODE_COLUMNS]:
        raise UserError(f"cohort.columns: {unknown[0]!r} is none of {', '.join(CODE_COLUMNS)}")
    spelling = Spelling(
        {"ICD9CM": read_list(icd9_list)} if icd9_list else {},
        read_code_map(code_map) if code_map else None,
        unmapped == "keep",
    )
    account, files = Audit(), find_tables(source, raw_dir, columns)
    account.ignored = ignored_files(source, raw_dir, files)
    used = tuple(columns or CODE_COLUMNS)
    with spill_folder(visits) as spill:
        intake = Intake(
            declared(source), files, used, spill, account, Limits(max_dropped, max_empty, memory_mb)
        )
        try:
            intake.open_tables()
            intake.run_sql()
            digests = "".join(read["sha256"] for read in account.tables)
            metadata = {
                "source": source,
                "seed": "",
                "inputs_sha256": hashlib.sha256(digests.encode()).hexdigest(),
                "tool_version": VERSION,
            }
            if intake.source.days_are_placeholders:
                metadata["days"] = "placeholder"
            with visits_writer(visits, metadata) as writer:
                for batch in intake.visits(spelling):
                    writer.write(batch)
            try:
                write_json(audit, account.summary(source))
            except BaseException:
                visits.unlink(missing_ok=True)  # visits without their account would look like success
                raise
        except duckdb.OutOfMemoryException:
            raise UserError(
                f"cohort.memory_mb: {memory_mb} is too little for these tables, or the disk beside {visits}"
                " is full; raise it, or free the disk"
            ) from None
        except duckdb.IOException as error:
            if "No space left" not in str(error):
                raise
            raise UserError(f"{spill}: the disk is full; free it or choose another folder") from None
        finally:
            intake.connection.close()
    tell(source, account, spelling)


def tell(source: str, account: Audit, spelling: Spelling) -> None:
    """One line on what was read and what was dropped, and a warning where codes look damaged."""
    removed = {name for table in account.tables for name in table["columns_removed"]}
    more = f"; beside files not read: {', '.join(account.ignored)}" if account.ignored else ""
    log.info(
        "%s: %s patients, %s visits, %s; %d columns removed; dropped: %s%s",
        source,
        f"{account.patients:,}",
        f"{account.visits:,}",
        account.codes_in_words(),
        len(removed),
        account.dropped_in_words(),
        more,
    )
    if names := account.empty_tables():
        log.info("tables with a header and no row: %s", ", ".join(names))
    if n := account.normalized["files without a last line end"]:
        log.info("%d files end without a line end: check that they are whole", n)
    for remark in spelling.remarks():
        log.info(remark)
    for warning in spelling.warnings():
        log.warning(warning)


if __name__ == "__main__":
    main(preprocess, globals().get("snakemake"), untracked="cohort")
