"""Score what a released set of visits says about the training patients, as records."""

from pathlib import Path

from cohortloom.base.step import log, main
from cohortloom.data.absent import has_demographics
from cohortloom.data.coded import encode, sample_patients
from cohortloom.data.visits import CODE_COLUMNS, patient_starts, read_visits
from cohortloom.evaluation import privacy
from cohortloom.evaluation.records import Figure, save_figures

# Share of the control's patients that are training patients: what a leak of a tenth looks like at this size.
PLANTED = 0.1


def evaluate_privacy(
    *,
    synthetic: Path,
    train: Path,
    val: Path,
    test: Path,
    records: Path,
    run: str,
    seed: int = 0,
    mode: str = "synthesize",
    visits: int = 20000,
    sampling_fraction: float | None = None,
    control: bool = False,
    sample_seed: int = 0,
) -> None:
    """Attack patients of `train` and as many held-out ones of `test` with the release `synthetic`.

    `visits`: at most so many of each side, in whole patients; copies are looked for in all of them.
    `sampling_fraction`: share of the people whom an attacker wonders about that are training patients; by
    default that of this cohort, from the sizes of the three splits. With `control` a share PLANTED of the
    release's patients is replaced by training patients and scored again: what such a leak looks like. `seed`
    is the run's own and only written down; `sample_seed` draws samples and the groups of the intervals.
    """
    known, held_out, release = (read_visits(path) for path in (train, test, synthetic))
    sizes = [len(patient_starts(part)) for part in (known, held_out, read_visits(val))]
    fraction = sampling_fraction or sizes[0] / sum(sizes)
    size = min(visits, known.num_rows, held_out.num_rows)
    attacked = [sample_patients(part, size, sample_seed) for part in (known, held_out)]
    # A seed of its own: `copy` is drawn from the very table that the members are drawn from.
    parts = [known, *attacked, sample_patients(release, visits, sample_seed + 1), release]
    if control:
        leaking = privacy.plant(release, known, PLANTED, sample_seed)
        parts += [sample_patients(leaking, visits, sample_seed + 1), leaking]
    log.info("%s: %d training patients and %d others attacked", run, *map(len, map(patient_starts, attacked)))
    figures: list[Figure] = []
    for column in CODE_COLUMNS:
        (training, members, others, sample, whole, *leak), names = encode(parts, column)
        sides, n_codes = (members, others), len(names)
        figures += privacy.membership(*sides, sample, n_codes, sample_seed, fraction)
        figures += privacy.adversarial_accuracy(*sides, sample, n_codes, sample_seed)
        figures += privacy.copy_share(training, whole, n_codes, sample_seed)
        if has_demographics(synthetic):
            figures += privacy.attribute_inference(training, *sides, sample, n_codes, sample_seed)
        if control:
            found = [
                *privacy.membership(*sides, leak[0], n_codes, sample_seed, fraction),
                *privacy.copy_share(training, leak[1], n_codes, sample_seed),
            ]
            figures += [
                one._replace(metric=f"{one.metric}_control", higher_is_better=None)
                for one in found
                if one.metric in ("membership_auc", "copy_share")
            ]
    save_figures(records, figures, run, seed, mode)


if __name__ == "__main__":
    main(evaluate_privacy, globals().get("snakemake"))
