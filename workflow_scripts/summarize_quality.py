"""Join the evaluations of several generation seeds into the table of targets, with verdicts."""

import csv
import json
from pathlib import Path

from cohortloom.base.errors import UserError
from cohortloom.base.files import write_json, write_text
from cohortloom.base.step import log, main
from cohortloom.reporting import provenance, quality
from cohortloom.reporting.scorecard import read_metrics, read_records


def summarize_quality(
    *,
    records: list[Path],
    targets: Path,
    metrics: Path,
    table: Path,
    table_md: Path,
    experiment: str,
    cohort: str,
    patients: int,
    large: int,
    constrained: str,
    samples: str,
    timings: Path,
) -> None:
    """Write the table of targets as JSON (one row for each figure and run) and as Markdown.

    `records` are the evaluations of all samples, of held-out visits and of the runs' reconstruction.
    `samples` is JSON, for each sample [name, run or method, generation seed, whether it is the large one];
    those of the main run come first. `patients` and `large` are the requested numbers of patients. `timings`
    is the folder of the jobs' times, which may be missing. Raises UserError for a metric without a row in
    `metrics`.
    """
    sample_list = [quality.Sample(*entry) for entry in json.loads(samples)]
    target_lines, meanings = quality.read_targets(targets), read_metrics(metrics)
    if unknown := sorted({line["metric"] for line in target_lines} - set(meanings)):
        raise UserError(
            f"{targets}: column metric: {unknown[0]} is not in {metrics}; say there what it means"
        )
    rows = quality.table(read_records(records), sample_list, target_lines, cohort)
    content = {
        "experiment": experiment,
        "run": sample_list[0].source,
        "cohort": cohort,
        "seeds": sorted({sample.seed for sample in sample_list if not sample.large}),
        "patients": patients,
        "large": large,
        "demographics": "test",
        "constrained": constrained,
        "generation_seconds": {sample.name: seconds(timings, sample.name) for sample in sample_list},
        "git": provenance.git(provenance.WORKFLOW),
        "hardware": provenance.hardware(),
        "rows": rows,
    }
    write_text(table_md, quality.page(content, meanings))
    write_json(table, content)
    for line in quality.verdict_sentences(rows, sample_list[0].source, meanings):
        log.info("%s", line)


def seconds(timings: Path, name: str) -> float | None:
    """Seconds of the jobs that generated a sample, summed over shards; None without a timing."""
    times = []
    for path in sorted(timings.glob(f"generate*.{name}.synthesize*.tsv")):
        with open(path, newline="", encoding="utf-8") as file:
            times += [float(row["s"]) for row in csv.DictReader(file, delimiter="\t")]
    return round(sum(times), 1) if times else None


if __name__ == "__main__":
    main(summarize_quality, globals().get("snakemake"))
