"""Score how like the training visits a set of visits is, as records."""

from pathlib import Path

from cohortloom.base.files import write_json
from cohortloom.base.step import log, main
from cohortloom.data.absent import absent
from cohortloom.data.coded import encode, sample_patients
from cohortloom.data.visits import CODE_COLUMNS, read_visits
from cohortloom.evaluation.fidelity import fidelity
from cohortloom.evaluation.records import record


def evaluate_fidelity(
    *,
    synthetic: Path,
    train: Path,
    records: Path,
    run: str,
    seed: int = 0,
    mode: str = "synthesize",
    visits: int = 10000,
    sample_seed: int = 0,
) -> None:
    """Score how like the training visits a sample of whole patients of `visits` visits is.

    `seed` is the run's own and only written down; `sample_seed` draws the sample and the groups of the
    intervals.
    """
    everyone, reference, lacking = read_visits(synthetic), read_visits(train), absent(synthetic)
    sample = sample_patients(everyone, visits, sample_seed)
    found = []
    for column in CODE_COLUMNS:
        (known, scored), codes = encode([reference, sample], column)
        figures = fidelity(known, scored, len(codes), sample_seed, lacking)
        for metric, subset, part, n_reference, better in figures:
            found.append(
                record(
                    run,
                    seed,
                    mode,
                    metric,
                    subset,
                    part.value,
                    part.low,
                    part.high,
                    part.n,
                    n_reference,
                    better,
                )
            )
    write_json(records, found)
    shown = {row["metric"]: row["value"] for row in found if not row["subset"]}
    log.info(
        "%s: %d of %d visits against %d, js_distance %s, bigram_r2 %s",
        run,
        sample.num_rows,
        everyone.num_rows,
        reference.num_rows,
        shown["js_distance"],
        shown["bigram_r2"],
    )


if __name__ == "__main__":
    main(evaluate_fidelity, globals().get("snakemake"))
