"""Score what a released set of visits says about the training patients, as records."""

from pathlib import Path

from cohortloom.base.files import write_json
from cohortloom.base.step import log, main
from cohortloom.data.absent import absent
from cohortloom.data.coded import encode, sample_patients
from cohortloom.data.visits import CODE_COLUMNS, patient_starts, read_visits
from cohortloom.evaluation import privacy
from cohortloom.evaluation.records import record

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
    """Attack training patients of `train` beside as many held-out ones of `test` with the release
    `synthetic`.

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
    # Seeds of their own: `copy` is drawn from the very table that the members are drawn from.
    members, others = sample_patients(known, size, sample_seed), sample_patients(held_out, size, sample_seed)
    parts = [known, members, others, sample_patients(release, visits, sample_seed + 1), release]
    if control:
        leaking = privacy.plant(release, known, PLANTED, sample_seed)
        parts += [sample_patients(leaking, visits, sample_seed + 1), leaking]
    found = []
    for column in CODE_COLUMNS:
        coded, names = encode(parts, column)
        figures = _figures(
            *coded[:5], len(names), fraction, sample_seed, not {"age", "sex"} & absent(synthetic)
        )
        if control:
            figures += _control(*coded[:3], *coded[5:], len(names), fraction, sample_seed)
        for metric, subset, part, n_reference, better in figures:
            ends = (part.value, part.low, part.high, part.n)
            found.append(record(run, seed, mode, metric, subset, *ends, n_reference, better))
    write_json(records, found)
    log.info(
        "%s: %d training patients and %d others attacked", run, *(len(patient_starts(p)) for p in parts[1:3])
    )
    for row in found:
        log.info("%s: %s %s (%s to %s)", run, row["metric"], row["value"], row["ci_low"], row["ci_high"])


def _figures(train, members, others, sample, release, n_codes, fraction, seed, demographics) -> list:
    found = [
        *privacy.membership(members, others, sample, n_codes, seed, fraction),
        *privacy.adversarial_accuracy(members, others, sample, n_codes, seed),
        *privacy.copy_share(train, release, n_codes, seed),
    ]
    if demographics:
        found += privacy.attribute_inference(train, members, others, sample, n_codes, seed)
    return found


def _control(train, members, others, sample, release, n_codes, fraction, seed) -> list:
    """The same figures of a release with planted training patients, under names of their own."""
    found = [
        *privacy.membership(members, others, sample, n_codes, seed, fraction),
        *privacy.copy_share(train, release, n_codes, seed),
    ]
    return [
        (f"{metric}_control", subset, part, n_reference, None)
        for metric, subset, part, n_reference, _ in found
        if metric in ("membership_auc", "copy_share")
    ]


if __name__ == "__main__":
    main(evaluate_privacy, globals().get("snakemake"))
