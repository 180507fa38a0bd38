"""Join the evaluations of the ablation's arms into one table and one figure, with verdicts in words."""

import json
from pathlib import Path

from cohortloom.base.errors import UserError
from cohortloom.base.files import atomic, write_csv, write_json
from cohortloom.base.step import log, main
from cohortloom.reporting import ablation
from cohortloom.reporting.figures import draw_ablation
from cohortloom.reporting.scorecard import read_metrics, read_records


def summarize_ablation(
    *,
    records: list[Path],
    metrics: Path,
    table: Path,
    table_csv: Path,
    figure: Path,
    experiment: str,
    reference: str,
    arms: str,
) -> None:
    """Write the table (JSON with sentences, and CSV) and the figure (.svg or .png by its name).

    `records` are the evaluations of all trainings and of `real`; `arms` is JSON, for each training [run, arm,
    seed, run of the training whose model it uses]. Raises UserError if the reference has no figure.
    """
    trainings = [ablation.Training(*entry) for entry in json.loads(arms)]
    titles = {metric: row["title"] for metric, row in read_metrics(metrics).items()}
    rows = ablation.table(read_records(records), trainings, reference)
    if not any(row["arm"] == reference for row in rows):
        raise UserError(
            f"ablation: no figure of the arm {reference}; run the target ablation, which makes it"
        )
    sentences = ablation.verdict_sentences(rows, titles)
    content = {"experiment": experiment, "reference": reference, "verdict": sentences, "rows": rows}
    with atomic(figure) as temporary:
        draw_ablation(rows, titles, reference, temporary, figure.suffix[1:])
    write_csv(table_csv, ablation.COLUMNS, rows)
    write_json(table, content)
    for sentence in sentences:
        log.info("%s", sentence)


if __name__ == "__main__":
    main(summarize_ablation, globals().get("snakemake"))
