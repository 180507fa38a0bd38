"""summarize: join all evaluations of an experiment into scorecard, report and provenance."""

import json
from pathlib import Path

from cohortloom import provenance as provenances
from cohortloom import report as reports
from cohortloom import scorecard as scorecards
from cohortloom.files import atomic, read_json, write_json
from cohortloom.step import main


def summarize(
    *,
    records: list[Path],
    histories: list[Path],
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
) -> None:
    """Join all evaluations into the scorecard, and write the report and the provenance beside it.

    Inputs: `records` are all evaluation/<run>/*.json (models, naive methods, `real`); `histories`
    models/<run>/history.csv of all models; `synthetic` the main run's synthesize.parquet (with several
    seeds that of the first); `naive` the synthesize.parquet of the naive methods; `train`, `test` of the
    dataset; `titles`, `validity`, `metrics`, `template` are resources/icd9_titles.csv,
    icd9_validity.csv, metrics.csv and report.html.j2. Outputs: `scorecard` to `provenance`.
    Params: `runs` are the run ids of the models; `config` is the resolved config as JSON text, without
    the keys that must not cause a rerun (devices, workers, log intervals).
    """
    settings = json.loads(config)
    table = scorecards.read_metrics(metrics)
    main_id = scorecards.main_run_id(main_run, list(runs))
    card = scorecards.build(experiment, scorecards.read_records(records), main_id, table)
    history = provenances.collect(settings, read_json(audit))
    page = reports.render(
        card=card,
        metrics=table,
        main_id=main_id,
        runs=list(runs),
        histories=list(histories),
        audit=read_json(audit),
        synthetic=synthetic,
        naive=list(naive),
        train=train,
        test=test,
        titles=titles,
        validity=validity,
        template=template,
        provenance=history,
    )
    write_json(scorecard, card)
    with atomic(scorecard_csv) as temporary:
        scorecards.write_csv(temporary, card["records"])
    with atomic(report) as temporary:
        temporary.write_text(page, encoding="utf-8")
    write_json(provenance, history)


if __name__ == "__main__":
    main(summarize, globals().get("snakemake"))
