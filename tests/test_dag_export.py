"""The target export in the workflow: which runs, which formats, and what reruns."""


def test_export_asks_for_trained_runs_alone(fresh):
    jobs = fresh.jobs("export")
    exported = {job for job in jobs if job.startswith("export_")}
    assert exported == {
        f"export_{format} {run}" for format in ("meds", "omop", "mimic4") for run in ("multitask", "lm_only")
    }
    assert not any(job.startswith(("evaluate_", "generate_naive", "summarize")) for job in jobs)


def test_a_run_that_may_not_be_exported_has_no_rule(fresh):
    for run in ("copy", "real", "prevalence"):
        text = fresh.plan(f"results/demo/exports/meds/{run}/README.md", status=1)
        assert "MissingRuleException" in text


def test_a_model_with_planted_patients_is_not_exported(fresh, tmp_path):
    overlay = tmp_path / "planted.yaml"
    overlay.write_text("runs: {lm_only: {canaries: 20}}\n")
    jobs = fresh.jobs("export", "--configfile", overlay)
    assert "export_meds multitask" in jobs and "export_meds lm_only" not in jobs


def test_a_folder_of_vocabularies_must_hold_some(fresh, tmp_path):
    text = fresh.plan("export", "--config", f"export={{athena: {tmp_path}}}", status=1)
    assert f"error: config: export.athena: {tmp_path}: holds no .csv" in text
    assert "train multitask" in fresh.jobs("evaluate_all", "--config", f"export={{athena: {tmp_path}}}")


def test_faulty_terms_end_an_export_before_any_job(fresh, tmp_path):
    (tmp_path / "terms.yaml").write_text("source: omop\n")
    text = fresh.plan("export", "--config", f"publish={{terms: {tmp_path}/terms.yaml}}", status=1)
    assert f"error: publish.terms: {tmp_path}/terms.yaml: the terms of simulated are in" in text
    assert "train multitask" in fresh.jobs(
        "evaluate_all", "--config", f"publish={{terms: {tmp_path}/terms.yaml}}"
    )


def test_the_exports_of_the_tiny_experiment(tiny):
    """All formats run; a setting of omop reruns omop alone."""
    formats = "export={formats: [meds, omop, mimic4, mimic3]}"
    tiny.run("export", "--config", formats)
    folder = tiny.directory / "results" / "tiny" / "exports"
    for format in ("meds", "omop", "mimic4", "mimic3"):
        assert "Nobody here exists" in (folder / format / "multitask" / "README.md").read_text(
            encoding="utf-8"
        )
        assert not (folder / format / "canaries").exists()
        assert (
            tiny.directory / "results" / "tiny" / "logs" / f"export_{format}.multitask.log"
        ).stat().st_size > 0
    again = ("export", "--config", formats.replace("]}", "], unmapped: source}"))
    assert {job for job in tiny.jobs(*again) if job != "export"} == {"export_omop multitask"}
    tiny.run(*again)
    assert ",2000000" in (folder / "omop" / "multitask" / "condition_occurrence.csv").read_text()
