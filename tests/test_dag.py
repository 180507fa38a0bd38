"""The workflow as a whole: it parses fast and without data, runs anywhere, and says mistakes plainly."""

import csv
import re
import resource
import subprocess
import sys

import pytest

from conftest import REPOSITORY, Workflow, copy_workflow, listed_jobs

# Not pandas: the plugin for Slurm, where it is installed, imports that whenever Snakemake starts.
HEAVY = ("torch", "transformers", "pyarrow", "duckdb", "scipy", "sklearn", "matplotlib")
RULES = {
    match.group(1): match.group(0)
    for path in sorted((REPOSITORY / "rules").glob("*.smk"))
    for match in re.finditer(
        r"^(?:rule|use rule \w+ as) (\w+)(?: with)?:\n(?:    .*\n|\n)*", path.read_text(), re.MULTILINE
    )
}


@pytest.mark.parametrize("rule", RULES)
def test_rule_script_log_and_benchmark_bear_one_name(rule):
    text = RULES[rule]
    script = (
        f'"../workflow_scripts/{rule}.py"'
        if "script:" in text and "script=" not in text
        else f'script="{rule}"'
    )
    for needed in (
        script,
        f"{{RESULTS}}/logs/{rule}.",
        f"{{RESULTS}}/timings/{rule}.",
        f'modules_of("{rule}")',
    ):
        assert needed in text, needed
    assert text.startswith("use rule") or 'conda:\n        "../environment.yml"' in text
    for part in ("input", "output"):
        names = re.search(rf"    {part}:\n((?:        .*\n)+)", text).group(1)
        assert all(re.match(r"        ( |\w+=|[\])])", line) for line in names.splitlines()), "unnamed"


def test_a_dry_run_needs_neither_data_nor_torch(fresh):
    """Imports of the heavy libraries are made to fail; the demo is planned all the same."""
    (fresh.directory / "sitecustomize.py").write_text(
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {HEAVY}:\n"
        "            raise ImportError(f'{name} is not to be imported here')\n"
        "sys.meta_path.insert(0, Refuse())\n"
    )
    fresh.environment = {"PYTHONPATH": str(fresh.directory)}
    refused = subprocess.run(
        [sys.executable, "-c", "import torch"], env=fresh.environment, capture_output=True, text=True
    )
    assert "not to be imported" in refused.stderr
    jobs = listed_jobs(fresh.run("--dry-run").stdout)
    assert {"simulate_raw", "preprocess", "train multitask", "train lm_only", "summarize"} <= jobs
    assert {"generate multitask reconstruct", "generate_naive copy synthesize"} <= jobs
    assert {"evaluate_fidelity real", "evaluate_reconstruction echo"} <= jobs
    assert {"generate_naive linear reconstruct", "evaluate_curve linear", "evaluate_curve multitask"} <= jobs
    assert not {"generate_naive copy reconstruct", "generate_naive echo synthesize"} & jobs
    assert not list(fresh.directory.glob("r*"))


@pytest.mark.slow
def test_the_plain_command_works_in_the_repository():
    command = [sys.executable, "-m", "snakemake", "evaluate_all", "--dry-run"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "profiles/default" in done.stdout + done.stderr


def test_the_tiny_experiment_ran_in_a_directory_elsewhere(tiny):
    results = tiny.directory / "results" / "tiny"
    for name in ("scorecard.json", "scorecard.csv", "report.html", "provenance.json"):
        assert (results / name).stat().st_size > 0
    others = {"blind_test", "read_external", "summarize_external", "summarize_ablation", "summarize_quality"}
    others |= {rule for rule in RULES if rule.startswith("export_")}
    for rule in set(RULES) - others - {"join_shards", "publish"}:
        for folder, ending in (("logs", "log"), ("timings", "tsv")):
            assert list((results / folder).glob(f"{rule}.*{ending}")), f"{rule} has no file in {folder}"
    assert not list(tiny.folder.glob("results")) and not list(tiny.directory.parent.glob("results"))
    assert not list(results.rglob("*.tmp"))


def test_a_run_of_canaries_reaches_scorecard_and_report(tiny):
    results = tiny.directory / "results" / "tiny"
    with open(results / "scorecard.csv", newline="") as file:
        rows = {(r["run"], r["metric"], r["subset"]): r for r in csv.DictReader(file)}
    often = rows["canaries", "canary_auc", "repeats 16"]
    control = rows["real", "canary_auc", "repeats 16"]
    assert float(often["value"]) > float(control["value"]) == float(often["real"])
    assert float(often["value"]) > 0.8 and often["pass"] == "false"
    assert ("multitask", "canary_auc", "") not in rows
    page = (results / "report.html").read_text()
    assert "Planted patients" in page and "the run <em>canaries</em>" in page
    assert "Not for release" in (results / "models" / "canaries" / "README.md").read_text()


def test_snakemake_makes_its_own_report_with_ours_in_it(tiny, tmp_path):
    tiny.run("--report", tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "report.html" in text and "Scorecard" in text and len(text) > 1_000_000


def test_a_finished_experiment_runs_nothing(tiny):
    """In processor time, which a busy machine does not stretch; it answers in 3 s on an idle one."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = tiny.run("evaluate_all")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "Nothing to be done" in done.stdout and listed_jobs(done.stdout) == set()
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5


def failing(workflow: Workflow, *arguments: str) -> str:
    """The message of a run that must fail before any job, without a traceback."""
    text = workflow.plan(*arguments, status=1)
    assert "Traceback" not in text and "rule preprocess" not in text
    messages = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1 and text.rstrip().endswith(messages[0]), text
    return messages[0]


def test_an_unknown_key_stops_before_any_job(fresh):
    assert "config: epochs: unknown key" in failing(fresh, "--config", "epochs=3")


def test_a_value_out_of_range_stops_before_any_job(fresh):
    assert "config: seeds: 0 is below 1" in failing(fresh, "--config", "seeds=0")


def test_nothing_to_score_stops_before_any_job(fresh):
    assert "config: evaluate.external: no visits are named" in failing(fresh, "evaluate_external")
    assert "preprocess" in fresh.jobs("evaluate_all")


def test_a_raw_dir_with_braces_is_named(fresh):
    place = fresh.directory / "{raw}"
    place.mkdir()
    for name in ("PATIENTS", "ADMISSIONS", "DIAGNOSES_ICD"):
        (place / f"{name}.csv").touch()
    message = failing(fresh, "--configfile", OVERLAYS["mimic3"], "--config", f"raw_dir={place}")
    assert f"{place}: Snakemake cannot read a path with braces" in message


def test_jobs_run_where_every_name_has_a_blank(tmp_path):
    """The folder of the workflow, the working directory and the interpreter."""
    (tmp_path / "my environment").symlink_to(sys.prefix)
    folder = copy_workflow(tmp_path / "my workflow")
    directory = tmp_path / "my work"
    directory.mkdir()
    command = [tmp_path / "my environment" / "bin" / "python", "-m", "snakemake", "build_dataset"]
    command += ["--snakefile", folder / "Snakefile", "--directory", directory, "--cores", "1"]
    command += ["--configfile", folder / "tests" / "config_tiny.yaml", "--max-jobs-per-timespan", "100/1s"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (directory / "results" / "tiny" / "dataset" / "train.parquet").is_file()


OVERLAYS = {name: str(REPOSITORY / "config" / f"{name}.yaml") for name in ("mimic3", "nhds2010")}


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_source_without_raw_dir_names_the_remedy(fresh, name):
    message = failing(fresh, "--configfile", OVERLAYS[name])
    assert "raw_dir=DIR" in message and "COHORTLOOM_RAW_DIR" in message


def test_a_missing_folder_and_a_missing_table_are_named(fresh):
    place = fresh.directory / "raw"
    config = ["--configfile", OVERLAYS["mimic3"], "--config", f"raw_dir={place}"]
    assert str(place) in failing(fresh, *config)
    place.mkdir()
    for name in ("patients.csv", "ADMISSIONS.csv.gz"):
        (place / name).touch()
    assert "DIAGNOSES_ICD" in failing(fresh, *config)
    (place / "DIAGNOSES_ICD.csv").touch()
    assert "preprocess" in fresh.jobs(*config)


def test_raw_dir_is_read_from_the_environment(fresh):
    place = fresh.directory / "raw"
    place.mkdir()
    (place / "NHDS10.PU.txt.bz2").touch()
    fresh.environment = {"COHORTLOOM_RAW_DIR": str(place)}
    jobs = fresh.jobs("--configfile", OVERLAYS["nhds2010"])
    assert "preprocess" in jobs and "simulate_raw" not in jobs


def test_the_imported_modules_of_a_script_are_its_inputs(fresh):
    text = fresh.plan()
    inputs = {
        block.split(":")[0]: block
        for block in re.findall(r"^rule (\w+:\n    input: .*)$", text, re.MULTILINE)
    }
    for name in ("build_dataset.py", "visits.py", "vocabulary.py", "base/__init__.py", "errors.py"):
        assert name in inputs["build_dataset"]
    assert "evaluation" not in inputs["train"] and "reporting" not in inputs["train"]
    assert "train.py" not in inputs["build_dataset"]
