"""The whole workflow, with the tiny model, on the public demos of every source: make demos."""

import json

import pytest
import yaml

from conftest import REPOSITORY, Workflow
from raw_cohort import SHARED

DEMOS = {
    "mimic3": "mimic3_demo",
    "mimic4": "mimic4_demo",
    "eicu": "eicu_demo",
    "omop": "omop_mimic4_demo",
    "meds": "meds_mimic4_demo",
}
# What is left of the tiny experiment: one run and one naive method.
LEAN = {"runs": {"canaries": None}, "naive": ["markov"]}


@pytest.mark.demos
@pytest.mark.parametrize("source", DEMOS)
def test_a_demo_runs_to_the_report(tmp_path, source):
    raw = SHARED / DEMOS[source]
    if not raw.is_dir():
        pytest.skip(f"the demo {raw.name} is not beside the repository")
    if source == "omop":  # a table of concepts stands in for Athena's
        folder = tmp_path / "raw"
        folder.mkdir()
        for path in raw.glob("*.csv"):
            (folder / path.name.replace("concept_icd_derived", "concept")).symlink_to(path)
        raw = folder
    (tmp_path / "lean.yaml").write_text(yaml.safe_dump(LEAN))
    (tmp_path / "work").mkdir()
    config = REPOSITORY / "config"
    files = (config / f"{source}.yaml", REPOSITORY / "tests" / "config_tiny.yaml", tmp_path / "lean.yaml")
    options = ["--configfile", *map(str, files), "--config", f"raw_dir={raw}", f"experiment={source}"]
    workflow = Workflow(REPOSITORY, tmp_path / "work", options)
    workflow.run("evaluate_all")
    results = tmp_path / "work" / "results" / source
    card = json.loads((results / "scorecard.json").read_text())
    assert (results / "report.html").exists() and len(card["criteria"]) == 6
    gaps = [r for r in card["records"] if r["metric"] == "ks_gap_days"]
    assert gaps == [] if source == "eicu" else gaps  # eICU has no dates
    assert not list((results / "cohort").glob(".preprocess-spill-*"))
