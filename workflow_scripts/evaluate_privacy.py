"""Records of what a released set of visits reveals about the training patients."""

from pathlib import Path

from cohortloom.base.step import log, main
from cohortloom.data.absent import has_demographics
from cohortloom.data.coded import encode, sample_patients, sample_size
from cohortloom.data.visits import patient_starts, read_visits
from cohortloom.evaluation import privacy
from cohortloom.evaluation.records import SCORED, Figure, of_column, save_figures

# Share of training patients among the control's patients: the figures of a known leak at this size.
PLANTED_SHARE = 0.1


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
    """Attack patients of `train` and as many held-out ones of `test` by the release `synthetic`.

    At most `visits` visits of each side, in whole patients. No more of the release is used than in
    `held_out`, the reference set of real visits; without it, copies are searched in the whole release.
    `sampling_fraction`: share of training patients among the people that an attacker asks about; by default
    that of this cohort, from the sizes of the three splits. With `control`, a release with PLANTED_SHARE of
    its patients replaced by training patients is scored too: the figures of a known leak. `seed` is the
    run's; it is only recorded. `sample_seed` draws samples and the groups of the intervals.
    """
    training, others, release = (read_visits(path) for path in (train, test, synthetic))
    release = sample_patients(release, sample_size(release.num_rows, held_out), sample_seed)
    sizes = [len(patient_starts(part)) for part in (training, others, read_visits(val))]
    fraction = sampling_fraction or sizes[0] / sum(sizes)
    size = min(visits, training.num_rows, others.num_rows)
    attacked = [sample_patients(part, size, sample_seed) for part in (training, others)]
    # Another seed: the release of `copy` and the members are drawn from the same table.
    parts = [training, *attacked, sample_patients(release, visits, sample_seed + 1), release]
    if control:
        planted = privacy.with_planted_patients(release, training, PLANTED_SHARE, sample_seed)
        parts += [sample_patients(planted, visits, sample_seed + 1), planted]
    log.info("%s: %d training patients and %d others attacked", run, *map(len, map(patient_starts, attacked)))
    figures: list[Figure] = []
    for column in SCORED:
        (train_visits, members, non_members, sample, whole, *leaking), names = encode(parts, column)
        sides, n_codes = (members, non_members), len(names)
        of_codes = [
            *privacy.membership(*sides, sample, n_codes, sample_seed, fraction),
            *privacy.adversarial_accuracy(*sides, sample, n_codes, sample_seed),
            *privacy.copy_share(train_visits, whole, n_codes, sample_seed),
        ]
        if has_demographics(synthetic):
            of_codes += privacy.attribute_inference(train_visits, *sides, sample, n_codes, sample_seed)
        if control:
            leaks = [
                *privacy.membership(*sides, leaking[0], n_codes, sample_seed, fraction),
                *privacy.copy_share(train_visits, leaking[1], n_codes, sample_seed),
            ]
            of_codes += [
                leak._replace(metric=f"{leak.metric}_control", higher_is_better=None)
                for leak in leaks
                if leak.metric in ("membership_auc", "copy_share")
            ]
        figures += of_column(column, of_codes)
    save_figures(records, figures, run, seed, mode)


if __name__ == "__main__":
    main(evaluate_privacy, globals().get("snakemake"))
