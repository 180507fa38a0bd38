"""Score how well the hidden codes of held-out visits were found again, as records."""

from pathlib import Path

from cohortloom.base.files import write_json
from cohortloom.base.step import log, main
from cohortloom.data.visits import read_visits
from cohortloom.evaluation.reconstruction import reconstruction
from cohortloom.evaluation.records import record


def evaluate_reconstruction(
    *, reconstruct: Path, test: Path, records: Path, run: str, seed: int = 0, group_seed: int = 0
) -> None:
    """Score a reconstruct file against the held-out visits: hidden codes found, Jaccard a visit.

    `seed` is the run's own and only written down; `group_seed` draws the groups of the intervals.
    """
    written, real = read_visits(reconstruct), read_visits(test)
    found = [
        record(run, seed, "reconstruct", metric, "", part.value, part.low, part.high, part.n, None, better)
        for metric, part, better in reconstruction(written, real, reconstruct, group_seed)
    ]
    write_json(records, found)
    shown = {row["metric"]: row["value"] for row in found}
    log.info(
        "%s: %d visits, jaccard %.4f, hidden F1 %s", run, real.num_rows, shown["jaccard"], shown["hidden_f1"]
    )


if __name__ == "__main__":
    main(evaluate_reconstruction, globals().get("snakemake"))
