"""Join the evaluations of foreign visits with those of real data and naive methods into a scorecard."""

from pathlib import Path

from cohortloom.base.errors import UserError
from cohortloom.base.files import write_csv, write_json
from cohortloom.base.step import log, main
from cohortloom.evaluation.records import FIELDS, is_headline
from cohortloom.reporting import scorecard as scorecards
from cohortloom.reporting.sentences import record_cells

LOGGED = ("js_distance", "bigram_r2", "classifier_auc", "any_per_100k_visits", "prediction_auc", "copy_share")


def summarize_external(
    *,
    records: list[Path],
    metrics: Path,
    scorecard: Path,
    scorecard_csv: Path,
    experiment: str,
    names: list[str],
) -> None:
    """Write the records of the foreign sets `names` with the figures of real, copy and naive, and verdicts.

    `records` are all evaluation/<name>/*.json of the foreign sets, the naive methods and `real`. The six
    criteria are not among them, because they need a model of this workflow.
    """
    if not names:
        raise UserError("config: evaluate.external: no file is named; give NAME: PATH of the visits to score")
    meanings = scorecards.read_metrics(metrics)
    joined = scorecards.join(scorecards.read_records(records), meanings)
    write_json(scorecard, {"experiment": experiment, "external": list(names), "records": joined})
    write_csv(scorecard_csv, FIELDS, joined)
    for record in joined:
        if record["run"] in names and record["metric"] in LOGGED and is_headline(record):
            row = record_cells(record, meanings[record["metric"]])
            text = "{run}: {metric} {value} (real {real}): {verdict}"
            if row["reason"]:
                text = "{run}: {metric} has no value: {reason}"
            log.info(text.format(run=record["run"], **row))


if __name__ == "__main__":
    main(summarize_external, globals().get("snakemake"))
