"""The whole workflow on Slurm with the profile and nothing else, and what Slurm itself says of its jobs."""

import hashlib
import re
import subprocess
import sys

import pytest
import yaml
import yte

from conftest import REPOSITORY
from slurm_cluster import wait_until

PROFILE = REPOSITORY / "profiles/slurm/config.yaml"
SMALL = {"runs": {"canaries": None}, "naive": ["prevalence"]}
SYNTHETIC = [
    f"results/tiny/synthetic/multitask/{mode}.{ending}"
    for mode in ("synthesize", "reconstruct")
    for ending in ("parquet", "json")
]


def command(folder, overlay, *arguments):
    """snakemake as a researcher calls it; `overlay` leaves runs and methods out."""
    return [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(folder / "Snakefile")),
        *("--profile", str(folder / "profiles/slurm")),
        *("--configfile", str(folder / "tests/config_tiny.yaml"), str(overlay), *arguments),
    ]


def watched(slurm, words, directory, seconds):
    """Run snakemake, looking at Slurm's jobs meanwhile; it must succeed. Returns what it said."""
    said = directory / "snakemake.txt"  # a pipe that is not read would block it after 64 kB
    with open(said, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            words, cwd=directory, env=slurm.environment, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        wait_until(lambda: (slurm.look(), process.poll() is not None)[1], seconds)
    finally:
        process.kill()
    assert process.wait() == 0, said.read_text()
    slurm.look()
    return said.read_text()


@pytest.fixture(scope="module")
def finished(slurm, prepared, tmp_path_factory):
    """The directory of a finished run of the whole workflow, and Slurm's records of its jobs."""
    base = tmp_path_factory.mktemp("slurm")
    overlay = base / "small.yaml"
    overlay.write_text(yaml.safe_dump(SMALL))
    slurm.forget()
    lines = watched(slurm, command(prepared.folder, overlay), base, 1800)
    return base, overlay, dict(slurm.records), lines


def requested(records, rule):
    """TimeLimit, memory, CPUs and GPUs of the jobs of a rule, which must be alike."""
    jobs = [job for job in records.values() if job["Comment"].startswith(f"rule_{rule}")]
    found = {
        (job["TimeLimit"], job["MinMemoryNode"], job["NumCPUs"], job.get("TresPerJob", "no GPU"))
        for job in jobs
    }
    assert len(found) == 1, (rule, found)
    return found.pop()


def test_the_whole_workflow_runs(finished):
    base, _, records, _ = finished
    assert (base / "results/tiny/report.html").stat().st_size > 0
    assert {job["JobState"] for job in records.values()} == {"COMPLETED"}


def test_the_resources_of_train_reach_slurm(finished):
    assert requested(finished[2], "train") == ("2-00:00:00", "62.50G", "8", "gres:gpu:1")


def test_the_resources_of_other_rules_reach_slurm(finished):
    assert requested(finished[2], "generate_wild") == ("01:00:00", "32000M", "8", "gres:gpu:1")
    # DuckDB's limit of 2,000 MB, and what the step holds beside it
    assert requested(finished[2], "preprocess") == ("02:00:00", "3500M", "1", "no GPU")
    for rule in ("evaluate_fidelity", "summarize"):
        assert requested(finished[2], rule) == ("01:00:00", "8000M", "1", "no GPU")


def test_every_rule_with_shared_cores_requests_cpus():
    """Else sbatch asks for one number of CPUs and srun in the job for another, which ends the job."""
    text = "\n".join(path.read_text() for path in sorted((REPOSITORY / "rules").glob("*.smk")))
    rules = dict(re.findall(r"^rule (\w+):\n(.*?)(?=^(?:use )?rule |\Z)", text, re.MULTILINE | re.DOTALL))
    for source, name in re.findall(r"^use rule (\w+) as (\w+) with:", text, re.MULTILINE):
        rules[name] = rules[source]
    profile = yte.process_yaml(PROFILE.read_text(), require_use_yte=True)
    sharing = {name for name, body in rules.items() if "threads: share_of_cores(" in body}
    asking = {name for name, block in profile["set-resources"].items() if "cpus_per_task" in block}
    assert {"train", "generate", "evaluate_conditioning"} <= sharing <= asking


def test_jobs_and_logs_bear_the_names_of_rules_and_wildcards(finished):
    base, _, records, _ = finished
    comments = {job["Comment"] for job in records.values()}
    assert {"rule_train_wildcards_multitask", "rule_summarize"} <= comments
    assert all(job["JobName"].startswith("cohortloom_") for job in records.values())
    number = next(key for key, job in records.items() if job["Comment"] == "rule_train_wildcards_multitask")
    assert "tokens" in (base / f"slurm_logs/rule_train/multitask/{number}.log").read_text()


def test_nothing_is_left_to_do_without_slurm_too(finished, prepared):
    base, overlay, _, _ = finished
    done = subprocess.run(
        command(prepared.folder, overlay, "--dry-run"),
        cwd=base,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Nothing to be done" in done.stdout + done.stderr


def digests(base):
    return [hashlib.sha256((base / name).read_bytes()).hexdigest() for name in SYNTHETIC]


@pytest.mark.drill
def test_four_shards_on_slurm_make_what_one_makes(finished, slurm, prepared):
    """Batches small enough that every shard holds some, generated again by four jobs a mode."""
    base, overlay, _, _ = finished
    made = {}
    for shards in (1, 4):
        content = {**SMALL, "generate": {"batch_size": 8, "shards": shards}}
        overlay.write_text(yaml.safe_dump(content))
        slurm.forget()
        watched(slurm, command(prepared.folder, overlay, "--", *SYNTHETIC), base, 400)
        made[shards] = digests(base)
        assert len(slurm.of_rule("generate")) == 2 * shards
    assert made[1] == made[4]
    assert not list(base.glob("results/tiny/synthetic/multitask/shards/*"))


def test_a_limit_beyond_the_partition_is_reported_at_once(slurm, finished, prepared, tmp_path):
    """EnforcePartLimits makes sbatch refuse; Snakemake passes its line on."""
    _, overlay, _, _ = finished
    done = subprocess.run(
        command(
            prepared.folder,
            overlay,
            *("--set-resources", "simulate_raw:runtime=99999", "--retries", "0"),
            *("--", "results/tiny/cohort/visits.parquet"),
        ),
        cwd=tmp_path,
        env=slurm.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "Requested time limit is invalid" in done.stdout + done.stderr


@pytest.mark.drill
def test_snakemake_itself_runs_as_a_job(slurm, prepared, tmp_path):
    """Its job of a core submits the others; a lock left by a killed one does not stop it."""
    script = prepared.folder / "profiles/slurm/submit.sh"
    tiny = str(prepared.folder / "tests/config_tiny.yaml")
    slurm.forget()
    done = subprocess.run(
        ["sbatch", "--parsable", str(script), "--configfile", tiny, "--until", "preprocess"],
        cwd=tmp_path,
        env=slurm.environment,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 0, done.stderr
    job = int(done.stdout)
    ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
    wait_until(lambda: slurm.look().get(job, {}).get("JobState") in ended, 200)
    text = (tmp_path / f"snakemake-{job}.log").read_text()
    assert slurm.records[job]["JobState"] == "COMPLETED", text
    assert (tmp_path / "results/tiny/cohort/visits.parquet").exists()
    assert [made["JobState"] for made in slurm.of_rule("preprocess")] == ["COMPLETED"]


def test_the_profile_has_one_place_for_the_site():
    """Account, partitions, GPUs and nodes are set once, above the rules, and all rules follow."""
    text = PROFILE.read_text()
    plain = yte.process_yaml(text, require_use_yte=True)
    assert plain["set-resources"]["train"] == {
        "runtime": 2880,
        "mem_mb": 64000,
        "cpus_per_task": 8,
        "slurm_extra": "'--signal=TERM@120'",
        "gpu": 1,
    }
    changed = text.replace('account: ""', "account: my-lab", 1).replace(
        'gpu_partition: ""', "gpu_partition: a100"
    )
    changed = changed.replace("  nodes: 1", "  nodes: 2").replace("  gpus: 1", "  gpus: 4")
    site = yte.process_yaml(changed, require_use_yte=True)
    assert site["default-resources"]["slurm_account"] == "'my-lab'"
    train = site["set-resources"]["train"]
    assert (train["nodes"], train["gres"], train["slurm_partition"]) == (2, "'gpu:4'", "'a100'")
    assert "gpu" not in train and site["set-resources"]["generate"]["slurm_partition"] == "'a100'"
