"""Score whether a classifier can tell a set of visits from held-out real ones, as records."""

from pathlib import Path

from cohortloom.base.files import write_json
from cohortloom.base.step import log, main
from cohortloom.data.absent import absent
from cohortloom.data.coded import encode, sample_patients
from cohortloom.data.visits import CODE_COLUMNS, read_visits
from cohortloom.evaluation.classifier import two_sample
from cohortloom.evaluation.records import record


def evaluate_classifier(
    *,
    synthetic: Path,
    train: Path,
    test: Path,
    records: Path,
    run: str,
    seed: int = 0,
    mode: str = "synthesize",
    visits: int = 20000,
    sample_seed: int = 0,
) -> None:
    """Train classifiers to tell a sample of `synthetic` from as many visits of `test`, and score them.

    Of `train` only the frequency of codes is used. `seed` is the run's own and only written down;
    `sample_seed` draws samples, folds and the classifiers.
    """
    reference, held_out, everyone = (read_visits(path) for path in (train, test, synthetic))
    known = not {"age", "sex"} & absent(synthetic)
    size = min(visits, held_out.num_rows, everyone.num_rows)
    parts = [reference, *(sample_patients(part, size, sample_seed) for part in (held_out, everyone))]
    found = []
    for column in CODE_COLUMNS:
        (counted, real, scored), names = encode(parts, column)
        figures = two_sample(counted, real, scored, len(names), sample_seed, known)
        for metric, subset, part, n_reference, better in figures:
            ends = (part.value, part.low, part.high, part.n)
            found.append(record(run, seed, mode, metric, subset, *ends, n_reference, better))
    write_json(records, found)
    for row in found:
        log.info("%s: %s %s, n %d beside %d real", run, row["metric"], row["value"], row["n"], real.n_visits)


if __name__ == "__main__":
    main(evaluate_classifier, globals().get("snakemake"))
