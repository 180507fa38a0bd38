"""The target publish in the workflow: refused before any job, or made on the tiny experiment."""

from cohortloom.data.visits import read_visits
from conftest import REPOSITORY
from test_publish import relaxed_limits


def test_publish_refuses_mimic_before_any_job(fresh):
    """Other targets of the same config are planned as ever."""
    raw = fresh.directory / "raw"
    raw.mkdir()
    for name in ("PATIENTS", "ADMISSIONS", "DIAGNOSES_ICD"):
        (raw / f"{name}.csv").touch()
    options = ["--configfile", REPOSITORY / "config" / "mimic3.yaml", "--config", f"raw_dir={raw}"]
    text = fresh.plan("publish", *options, status=1)
    assert "Traceback" not in text and "rule preprocess" not in text
    last = text.rstrip().splitlines()[-1]
    assert last.startswith("error: publish: cohort.source mimic3: no MIMIC-derived weights may be published")
    assert "preprocess" in fresh.jobs("evaluate_all", *options)


def test_publish_runs_in_the_dag(tiny, tmp_path):
    overlay = tmp_path / "fifty.yaml"
    overlay.write_text("publish: {patients: 50}\n")
    target = ("publish", "--configfile", *tiny.options[1:], overlay)
    folder = tiny.directory / "results" / "tiny" / "published"
    assert "or hold out more patients" in tiny.run(*target, check=False).stdout
    assert not list(folder.rglob("*.*"))
    limits = tiny.folder / "resources" / "publication_limits.csv"
    strict = limits.read_text()
    try:
        relaxed_limits(limits)
        tiny.run(*target)
    finally:
        limits.write_text(strict)
    assert (read_visits(folder / "cohort" / "visits.parquet")["visit"].to_numpy() == 0).sum() == 50
    assert "| visits copied from training |" in (folder / "model" / "README.md").read_text(encoding="utf-8")
    assert tiny.jobs() == set()  # evaluate_all does not know the section
