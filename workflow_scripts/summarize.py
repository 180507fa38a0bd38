"""Join all evaluations of an experiment into scorecard, report and provenance."""

import json
from pathlib import Path

import pyarrow.compute as pc

from cohortloom.base.files import read_json, write_csv, write_json, write_text
from cohortloom.base.step import main
from cohortloom.data.absent import absent
from cohortloom.data.titles import titles_of
from cohortloom.data.validity import load_rules
from cohortloom.data.visits import code_lists, read_visits, used_columns
from cohortloom.evaluation.records import FIELDS
from cohortloom.reporting import curves, examples, figures
from cohortloom.reporting import provenance as provenances
from cohortloom.reporting import scorecard as scorecards
from cohortloom.reporting.report import render_report


def summarize(
    *,
    records: list[Path],
    models: list[Path],
    audit: Path,
    synthetic: Path,
    naive: list[Path],
    train: Path,
    test: Path,
    titles: list[Path],
    validity: list[Path],
    metrics: Path,
    template: Path,
    scorecard: Path,
    scorecard_csv: Path,
    report: Path,
    provenance: Path,
    experiment: str,
    main_run: str,
    runs: list[str],
    config: str,
    privacy_run: str | None = None,
) -> None:
    """Join all evaluations into the scorecard, and write the report and the provenance.

    Inputs: `records` are all evaluation/<run>/*.json (models, naive methods, `real`); `models` the folders
    models/<run>, for their history.csv; `synthetic` the main run's synthesize.parquet; `naive` the
    synthesize.parquet of the naive methods; `train`, `test` of the dataset; `titles`, `validity`, `metrics`,
    `template` are resources/titles/*, validity/*, metrics.csv and report.html.j2.

    Outputs: `scorecard`, `scorecard_csv`, `report`, `provenance`.

    Params: `main_run` and `runs` are names of runs; `config` is the resolved config as JSON, without the keys
    that must not cause a rerun; `privacy_run` is the run of the main run's visits at ages and sexes of
    training patients.
    """
    meanings = scorecards.read_metrics(metrics)
    card = scorecards.build(experiment, scorecards.read_records(records), main_run, meanings, privacy_run)
    audit_content = read_json(audit)
    provenance_content = provenances.collect(json.loads(config), audit_content)
    visits = {"training": read_visits(train), "test": read_visits(test), "synthetic": read_visits(synthetic)}
    real = [visits["training"], visits["test"]]
    methods = {path.parent.name: read_visits(path) for path in naive}
    named = {str(record["subset"]) for record in card["records"] if ":" in str(record["subset"])}
    for column in used_columns(visits["synthetic"]):
        named.update(pc.unique(code_lists(visits["synthetic"], column)[0]).to_pylist())
    title_of_code = titles_of(named, titles)
    page = render_report(
        template,
        card=card,
        metrics=meanings,
        main_id=main_run,
        runs=list(runs),
        audit=audit_content,
        provenance=provenance_content,
        visits=visits,
        figures=figures.report_figures(card["records"], main_run, list(models), visits, methods)
        | curves.hidden_code_figures(card["records"], main_run),
        examples=examples.choose_examples(
            visits["synthetic"], real, title_of_code, load_rules(validity), "days" not in absent(train)
        ),
        titles=title_of_code,
    )
    write_json(scorecard, card)
    write_csv(scorecard_csv, FIELDS, card["records"])
    write_text(report, page)
    write_json(provenance, provenance_content)


if __name__ == "__main__":
    main(summarize, globals().get("snakemake"))
