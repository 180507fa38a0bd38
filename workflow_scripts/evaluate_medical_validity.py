"""Score how often a set of visits breaks the age and sex edits, as records."""

from pathlib import Path

from cohortloom.base.files import read_json, write_json
from cohortloom.base.step import log, main
from cohortloom.data.absent import absent
from cohortloom.data.validity import load_rules
from cohortloom.data.visits import read_visits
from cohortloom.evaluation.medical_validity import medical_validity
from cohortloom.evaluation.records import record


def evaluate_medical_validity(
    *,
    synthetic: Path,
    rules: Path,
    records: Path,
    counts: list[Path] | None = None,
    run: str,
    seed: int = 0,
    mode: str = "synthesize",
    group_seed: int = 0,
) -> None:
    """Score how often the visits of a file break the age and sex edits of a validity table.

    A foreign file that tells no age and sex cannot be scored: there is no record then. `seed` is the run's
    own and only written down; `group_seed` draws the groups of the intervals. `counts` (one file) are
    those of the generation: with constrained decoding they tell the probability mass that it removed.
    """
    if {"age", "sex"} & absent(synthetic):
        write_json(records, [])
        return
    table, edits = read_visits(synthetic), load_rules(rules)
    found = [
        record(run, seed, mode, metric, subset, part.value, part.low, part.high, part.n, None, better)
        for metric, subset, part, better in medical_validity(table, edits, group_seed)
    ]
    for kept in map(read_json, counts or []):
        if "removed_mass" in kept:
            share = kept["removed_mass"] / max(kept["constrained_positions"], 1)
            n = kept["constrained_positions"]
            found.append(record(run, seed, mode, "removed_mass", "", share, n=n))
    write_json(records, found)
    shown = {row["metric"]: row["value"] for row in found if not row["subset"]}
    log.info("%s %s: %d visits, %s", run, mode, table.num_rows, _line(shown))


def _line(shown: dict[str, float | None]) -> str:
    wanted = ("any_violation_rate", "hard_per_100k_visits", "restricted_share")
    return ", ".join(f"{name} {shown[name]:.4g}" for name in wanted if shown.get(name) is not None)


if __name__ == "__main__":
    main(evaluate_medical_validity, globals().get("snakemake"))
