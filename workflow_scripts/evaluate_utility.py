"""Score how well models trained on a set of visits predict real ones, as records."""

from pathlib import Path

from cohortloom.base.files import write_json
from cohortloom.base.step import log, main
from cohortloom.data.absent import absent
from cohortloom.data.coded import encode, sample_patients
from cohortloom.data.visits import CODE_COLUMNS, read_visits
from cohortloom.evaluation.records import record
from cohortloom.evaluation.utility import prediction


def evaluate_utility(
    *,
    synthetic: Path,
    train: Path,
    test: Path,
    records: Path,
    run: str,
    seed: int = 0,
    mode: str = "synthesize",
    visits: int = 10000,
    sample_seed: int = 0,
) -> None:
    """Predict the most frequent codes of `test` by models trained on a sample of `visits` of `synthetic`.

    Of `train` only the frequency of codes is used. `seed` is the run's own and only written down;
    `sample_seed` draws the samples and the groups of the intervals.
    """
    reference, held_out, release = (read_visits(path) for path in (train, test, synthetic))
    known = not {"age", "sex"} & absent(synthetic)
    parts = [reference, *(sample_patients(part, visits, sample_seed) for part in (held_out, release))]
    found = []
    for column in CODE_COLUMNS:
        (counted, real, made), names = encode(parts, column)
        for metric, subset, part, n_reference, better in prediction(
            counted, real, made, names, sample_seed, known
        ):
            ends = (part.value, part.low, part.high, part.n)
            found.append(record(run, seed, mode, metric, subset, *ends, n_reference, better))
    write_json(records, found)
    for row in found[:1]:
        log.info("%s: mean AUC %.4f of %d codes", run, row["value"], len(found) - 1)


if __name__ == "__main__":
    main(evaluate_utility, globals().get("snakemake"))
