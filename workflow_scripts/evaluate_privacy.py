"""Score what a released set of visits says about the training patients, as records."""

from pathlib import Path

from cohortloom.base.step import log, main
from cohortloom.data.absent import has_demographics
from cohortloom.data.coded import encode, sample_patients, sample_size
from cohortloom.data.visits import MODELLED_COLUMNS, patient_starts, read_visits
from cohortloom.evaluation import privacy
from cohortloom.evaluation.records import Figure, of_column, save_figures

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
    held_out: Path | None = None,
    visits: int = 20000,
    sampling_fraction: float | None = None,
    control: bool = False,
    sample_seed: int = 0,
) -> None:
    """Attack patients of `train` and as many held-out ones of `test` with the release `synthetic`.

    `visits`: at most so many of each side, in whole patients. No more of the release are looked at than
    `held_out` has, the real visits that are looked at beside; without it copies are looked for in all.
    `sampling_fraction`: share of the people whom an attacker wonders about that are training patients; by
    default that of this cohort, from the sizes of the three splits. With `control` a share PLANTED of the
    release's patients is replaced by training patients and scored again: what such a leak looks like. `seed`
    is the run's own and only written down; `sample_seed` draws samples and the groups of the intervals.
    """
    known, others, release = (read_visits(path) for path in (train, test, synthetic))
    release = sample_patients(release, sample_size(release.num_rows, held_out), sample_seed)
    sizes = [len(patient_starts(part)) for part in (known, others, read_visits(val))]
    fraction = sampling_fraction or sizes[0] / sum(sizes)
    size = min(visits, known.num_rows, others.num_rows)
    attacked = [sample_patients(part, size, sample_seed) for part in (known, others)]
    # A seed of its own: `copy` is drawn from the very table that the members are drawn from.
    parts = [known, *attacked, sample_patients(release, visits, sample_seed + 1), release]
    if control:
        planted = privacy.plant(release, known, PLANTED, sample_seed)
        parts += [sample_patients(planted, visits, sample_seed + 1), planted]
    log.info("%s: %d training patients and %d others attacked", run, *map(len, map(patient_starts, attacked)))
    figures: list[Figure] = []
    for column in MODELLED_COLUMNS:
        (training, members, outside, sample, whole, *leaking), names = encode(parts, column)
        sides, n_codes = (members, outside), len(names)
        found = [
            *privacy.membership(*sides, sample, n_codes, sample_seed, fraction),
            *privacy.adversarial_accuracy(*sides, sample, n_codes, sample_seed),
            *privacy.copy_share(training, whole, n_codes, sample_seed),
        ]
        if has_demographics(synthetic):
            found += privacy.attribute_inference(training, *sides, sample, n_codes, sample_seed)
        if control:
            leak = [
                *privacy.membership(*sides, leaking[0], n_codes, sample_seed, fraction),
                *privacy.copy_share(training, leaking[1], n_codes, sample_seed),
            ]
            found += [
                one._replace(metric=f"{one.metric}_control", higher_is_better=None)
                for one in leak
                if one.metric in ("membership_auc", "copy_share")
            ]
        figures += of_column(column, found)
    save_figures(records, figures, run, seed, mode)


if __name__ == "__main__":
    main(evaluate_privacy, globals().get("snakemake"))
