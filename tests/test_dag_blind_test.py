"""The target blind_test in the workflow: what it needs, and that nothing else needs what it makes."""

import re

from cohortloom.release.layout import EXPORTED
from conftest import REPOSITORY

RULES = {path.name: path.read_text(encoding="utf-8") for path in (REPOSITORY / "rules").glob("*.smk")}


def users_of_the_page(rules: dict[str, str]) -> list[str]:
    """Rule files, other than its own, that name the blind test or all of an experiment's files."""
    own = "blind_test.smk"
    return sorted(
        name for name, text in rules.items() if name != own and re.search(r"blind|RESULTS}/?\*", text)
    )


def test_it_needs_the_main_run_and_no_evaluation(fresh):
    jobs = fresh.jobs("blind_test")
    assert {"blind_test", "generate multitask synthesize", "build_dataset"} <= jobs
    assert not any(job.startswith(("evaluate_", "summarize", "publish", "export_")) for job in jobs)


def test_report_exports_and_publication_do_without(fresh):
    jobs = fresh.jobs("evaluate_all", "export", "publish")
    assert {"summarize", "publish", "export_meds multitask"} <= jobs and "blind_test" not in jobs


def test_no_other_rule_uses_the_page():
    assert users_of_the_page(RULES) == []
    assert "report(" not in RULES["blind_test.smk"]  # not in Snakemake's own report either
    assert not [name for names in EXPORTED.values() for name in names if "blind" in name]


def test_a_rule_that_does_is_detected():
    added = {**RULES, "export.smk": RULES["export.smk"] + 'input: f"{RESULTS}/blind_test/page.html"\n'}
    assert users_of_the_page(added) == ["export.smk"]
