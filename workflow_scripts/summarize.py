"""summarize: join all evaluations of an experiment into scorecard, report and provenance."""

import json
from pathlib import Path

from cohortloom.base.files import read_json, write_csv, write_json, write_text
from cohortloom.base.step import main
from cohortloom.data.validity import load_rules
from cohortloom.data.visits import read_visits
from cohortloom.evaluation.records import FIELDS
from cohortloom.reporting import curves, examples, figures
from cohortloom.reporting import provenance as provenances
from cohortloom.reporting import scorecard as scorecards
from cohortloom.reporting.report import render


def summarize(
    *,
    records: list[Path],
    models: list[Path],
    audit: Path,
    synthetic: Path,
    naive: list[Path],
    train: Path,
    test: Path,
    titles: Path,
    validity: Path,
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

    Inputs: `records` are all evaluation/<run>/*.json (models, naive methods, `real`); `models` the
    folders models/<run>, for their history.csv; `synthetic` the main run's synthesize.parquet; `naive`
    the synthesize.parquet of the naive methods; `train`, `test` of the dataset; `titles`, `validity`,
    `metrics`, `template` are resources/icd9_titles.csv, icd9_validity.csv, metrics.csv and
    report.html.j2. Outputs: `scorecard` to `provenance`. Params: `main_run` and `runs` are run ids
    (with several seeds the main run's first); `config` is the resolved config as JSON text, less the
    keys that must not cause a rerun; `privacy_run` is the id of the main run's visits at ages and sexes of
    training patients.
    """
    table = scorecards.read_metrics(metrics)
    card = scorecards.build(experiment, scorecards.read_records(records), main_run, table, privacy_run)
    account = read_json(audit)
    origin = provenances.collect(json.loads(config), account)
    visits = {"training": read_visits(train), "test": read_visits(test), "synthetic": read_visits(synthetic)}
    real = [visits["training"], visits["test"]]
    methods = {path.parent.name: read_visits(path) for path in naive}
    names = examples.read_titles(titles)
    page = render(
        template,
        card=card,
        metrics=table,
        main_id=main_run,
        runs=list(runs),
        audit=account,
        provenance=origin,
        visits=visits,
        figures=figures.of_experiment(card["records"], main_run, list(models), visits, methods)
        | curves.of_hidden_codes(card["records"], main_run),
        examples=examples.choose(visits["synthetic"], real, names, load_rules(validity)),
        titles=names,
    )
    write_json(scorecard, card)
    write_csv(scorecard_csv, FIELDS, card["records"])
    write_text(report, page)
    write_json(provenance, origin)


if __name__ == "__main__":
    main(summarize, globals().get("snakemake"))
