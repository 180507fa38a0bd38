"""A published model: what is written, that it generates, and that each refusal can happen."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file

import publish as script
from build_dataset import build_dataset
from cohortloom.base.errors import UserError
from cohortloom.config.check import check_config
from cohortloom.data.visits import SCHEMA, code_lists, read_visits, with_empty_columns, write_visits
from cohortloom.data.vocabulary import NOW, START
from cohortloom.model.prompt_bart import PromptBartWithDemographicPrediction
from cohortloom.release import publication
from cohortloom.release.cards import COLUMNS
from cohortloom.release.layout import PUBLISHED
from cohortloom.release.terms import terms_of
from cohortloom.reporting.scorecard import build, read_metrics
from conftest import REPOSITORY
from copy_published import copy_published
from generate_patients import generate_patients
from preprocess import preprocess
from publish import publish
from simulate_raw import simulate_raw
from summarize_inputs import FIGURES, figure
from test_config import SCHEMA as CONFIG_SCHEMA
from test_config import demo
from test_training import run_train

MIMIC3 = ("PATIENTS", "ADMISSIONS", "DIAGNOSES_ICD", "PROCEDURES_ICD", "PRESCRIPTIONS")

pytestmark = pytest.mark.slow  # they need a trained model

RESOURCES = REPOSITORY / "resources"
PATIENTS = 300


def relaxed_limits(path: Path) -> None:
    """Limits under which so few patients as the tests have may be published."""
    lines = (RESOURCES / "publication_limits.csv").read_text().splitlines()
    path.write_text(
        "\n".join([lines[0], *(re.sub(r",0\.\d+,", ",0.99,", line, count=1) for line in lines[1:])])
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> dict:
    """A small finished experiment, its figures made up: the keywords of publish, less where to write."""
    folder = tmp_path_factory.mktemp("finished")
    raw, dataset = folder / "raw", folder / "dataset"
    tables = [raw / f"{name}.csv.gz" for name in MIMIC3]
    simulate_raw(
        counts=sorted(RESOURCES.glob("simulation_*.csv")),
        rules=RESOURCES / "validity",
        patients_table=tables[0],
        admissions_table=tables[1],
        diagnoses_table=tables[2],
        procedures_table=tables[3],
        prescriptions_table=tables[4],
        patients=400,
        seed=0,
    )
    preprocess(raw_dir=raw, source="simulated", visits=folder / "visits.parquet", audit=folder / "audit.json")
    files = {name: dataset / f"{name}.parquet" for name in ("train", "val", "test")}
    vocabulary = dataset / "vocabulary.json"
    build_dataset(visits=folder / "visits.parquet", vocabulary=vocabulary, min_patients_per_code=3, **files)
    model = folder / "models" / "multitask"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cohortloom.training.trainer.SELECTION_PATIENTS", 20)
        run_train(files | {"vocabulary": vocabulary}, model, tokens=4000)

    records = [
        figure(run, metric, value, mode=mode, better=better)
        for metric, mode, better, values in FIGURES
        for run, value in values.items()
    ]
    records += [
        figure("multitask", "copy_share", 0.004, half=0.001),
        figure("real", "copy_share", 0.006, half=0.001),
        figure("multitask", "membership_auc", 0.505),
        figure("multitask", "likelihood_auc", 0.55, mode="teacher_forced"),
        figure("multitask", "attribute_risk", 0.001),
    ]
    relaxed_limits(folder / "limits.csv")
    (folder / "scorecard.json").write_text(
        json.dumps(build("tiny", records, "multitask", read_metrics(RESOURCES / "metrics.csv")))
    )
    config = check_config(demo(experiment="tiny"), CONFIG_SCHEMA)
    origin = {
        "config": config,
        "seeds": {"train.seed": 0},
        "inputs_sha256": {"PATIENTS.csv.gz": "ab" * 32},
        "git": {"commit": "c0ffee" * 6 + "c0ff", "modified": True},
        "versions": {"python": "3.11", "torch": "2", "transformers": "5"},
    }
    (folder / "provenance.json").write_text(json.dumps(origin))
    return {
        "model_dir": model,
        "scorecard": folder / "scorecard.json",
        "provenance": folder / "provenance.json",
        **files,
        "rules": RESOURCES / "validity",
        "metrics": RESOURCES / "metrics.csv",
        "limits": folder / "limits.csv",
        "terms": RESOURCES / "publication.yaml",
        "model_card": RESOURCES / "model_card.md.j2",
        "data_card": RESOURCES / "data_card.md.j2",
        "patients": PATIENTS,
        "device": "cpu",
    }


@pytest.fixture(scope="module")
def published(finished, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "published"
    publish(**finished, published=folder)
    return folder


def changed(finished: dict, tmp_path: Path, name: str, change) -> dict:
    """The keywords of publish with a JSON file among them changed."""
    content = json.loads(finished[name].read_text())
    change(content)
    (tmp_path / "changed.json").write_text(json.dumps(content))
    return {**finished, name: tmp_path / "changed.json"}


def refused(keywords: dict, tmp_path: Path, message: str) -> None:
    """publish refuses in one line and writes nothing."""
    target = tmp_path / "out" / "published"
    with pytest.raises(UserError, match=message) as caught:
        publish(**keywords, published=target)
    assert "\n" not in str(caught.value)
    assert not target.exists() and not list(tmp_path.glob("out/*")) and not list(tmp_path.glob("out/.*"))


def test_all_that_was_promised_is_there_and_nothing_else(published):
    files = {str(path.relative_to(published)) for path in published.rglob("*") if path.is_file()}
    assert files == set(PUBLISHED)
    assert {path.name for path in published.parent.iterdir()} == {"published"}


def test_a_folder_of_the_users_own_is_neither_replaced_nor_emptied(finished, published, tmp_path):
    """By the step and by the copy of make publish alike; what they made themselves they replace."""
    mine = tmp_path / "mine"
    (mine / "cohort").mkdir(parents=True)
    (mine / "cohort" / "README.md").write_text("my own study")
    for write in (
        lambda folder: publish(**finished, published=folder),
        lambda folder: copy_published(published=published, target=folder),
    ):
        with pytest.raises(UserError, match="mine: lacks cohort/visits.parquet.*; name another folder"):
            write(mine)
        assert [str(p.relative_to(mine)) for p in mine.rglob("*.*")] == ["cohort/README.md"]
    copy = tmp_path / "copy"
    for _ in range(2):
        copy_published(published=published, target=copy)
        assert all((copy / name).read_bytes() == (published / name).read_bytes() for name in PUBLISHED)
        (copy / "model" / "README.md").write_text("an older release")
    with pytest.raises(UserError, match="model.safetensors: no such file; run snakemake publish"):
        copy_published(published=mine, target=copy)
    assert "rm -rf published" not in (REPOSITORY / "Makefile").read_text()


def test_the_weights_are_rounded_and_no_more(finished, published):
    before = load_file(finished["model_dir"] / "model.safetensors")
    after = load_file(published / "model" / "model.safetensors")
    assert set(before) == set(after)
    for name, tensor in after.items():
        is_rounded = before[name].is_floating_point() and tensor.ndim > 1
        assert tensor.dtype == (torch.bfloat16 if is_rounded else before[name].dtype), name
        assert torch.equal(tensor, before[name][: len(tensor)].to(tensor.dtype))
    sizes = [
        (folder / "model.safetensors").stat().st_size
        for folder in (finished["model_dir"], published / "model")
    ]
    assert sizes[1] < 0.6 * sizes[0]


def test_only_positions_that_no_training_patient_reaches_are_left_out(finished, tmp_path):
    """512 positions fit two short visits; a record of 600 codes needs them all."""
    room = json.loads((finished["model_dir"] / "generation_config.json").read_text())["max_new_tokens"] + 8
    train = with_empty_columns(
        pa.table({"patient_id": ["a", "a", "b"], "diagnoses": [["1"] * 3, ["2"] * 2, ["3"]]})
    )
    assert publication.reached_positions(train, finished["model_dir"]) == 3 + 1 + 2 + 1 + room < 512
    long = with_empty_columns(pa.table({"patient_id": ["a"], "diagnoses": [["1"] * 600]}))
    assert publication.reached_positions(long, finished["model_dir"]) == 512
    weights = publication.round_weights(finished["model_dir"] / "model.safetensors")
    fewer = publication.keep_positions(weights, 50)
    assert {name for name in weights if len(weights[name]) != len(fewer[name])} == {
        f"model.{part}.embed_positions.weight" for part in ("encoder", "decoder")
    }
    publication.write_model(fewer, finished["model_dir"], tmp_path / "m", {})
    publication.write_model(weights, finished["model_dir"], tmp_path / "all", {})
    assert torch.equal(logits(tmp_path / "m"), logits(tmp_path / "all"))


def logits(folder: Path, **options) -> torch.Tensor:
    """Log probabilities of a visit's next codes for an elderly man and a newborn girl."""
    model = PromptBartWithDemographicPrediction.from_pretrained(folder, **options).eval()
    first = model.config.first_code_id
    with torch.inference_mode():
        output = model(
            input_ids=torch.tensor([[START, START, NOW]] * 2),
            decoder_input_ids=torch.tensor(
                [[START] * 3 + [first, first + 9], [START] * 3 + [first + 5, first + 3]]
            ),
            x_num=torch.tensor([[81.0], [0.0]]),
            x_cat=torch.tensor([[1], [0]]),
        )
    return output.logits.float().log_softmax(-1)


def test_logits_of_bf16_and_float32_are_close(finished, published):
    """The project's own way to load computes in float32; whoever asks for bf16 gets it, less exactly."""
    exact, rounded = logits(finished["model_dir"]), logits(published / "model")
    coarse = logits(published / "model", dtype=torch.bfloat16)
    assert not torch.equal(exact, rounded)
    for other, bound in ((rounded, 0.001), (coarse, 0.02)):
        divergence = (exact.exp() * (exact - other)).sum(-1)
        assert divergence.max() < bound
    flipped = logits(published / "model").flip(0)  # the negative control: another patient is not close
    assert (exact.exp() * (exact - flipped)).sum(-1).max() > 0.02


def test_the_cohort_is_a_table_of_visits_without_repeated_codes(finished, published):
    path = published / "cohort" / "visits.parquet"
    table = read_visits(path)  # checks the schema, and refuses a repeated code in a visit
    assert pq.read_schema(path).remove_metadata().equals(SCHEMA)
    first = table.filter(table["visit"].to_numpy() == 0)
    assert first.num_rows == PATIENTS and pq.read_metadata(path).num_row_groups == 1
    real = read_visits(finished["train"])
    people = set(zip(real["age"].to_pylist(), real["sex"].to_pylist(), strict=True))
    assert set(zip(first["age"].to_pylist(), first["sex"].to_pylist(), strict=True)) <= people
    assert not set(table["patient_id"].to_pylist()) & set(real["patient_id"].to_pylist())
    metadata = pq.read_schema(path).metadata
    assert metadata[b"source"] == b"model" and metadata[b"seed"] == b"0"


def test_the_same_seed_gives_the_same_files_and_another_one_others(finished, published, tmp_path):
    again, other = tmp_path / "again", tmp_path / "other"
    publish(**finished, published=again)
    publish(**finished | {"seed": 1}, published=other)
    for path in sorted(published.rglob("*.*")):
        name = path.relative_to(published)
        assert path.read_bytes() == (again / name).read_bytes(), name
    visits = Path("cohort", "visits.parquet")
    assert (other / visits).read_bytes() != (published / visits).read_bytes()
    assert not read_visits(other / visits).equals(read_visits(published / visits))


def front(card: Path) -> dict:
    """The YAML front of a card."""
    return yaml.safe_load(
        re.match(r"---\n(.*?)\n---\n", card.read_text(encoding="utf-8"), re.DOTALL).group(1)
    )


def test_the_cards_say_what_they_must(published):
    about = {
        name: (published / name / "README.md").read_text(encoding="utf-8") for name in ("model", "cohort")
    }
    assert front(published / "model" / "README.md")["library_name"] == "transformers"
    assert front(published / "cohort" / "README.md")["size_categories"] == ["n<1K"]
    for text in about.values():
        assert "Simulated hospital of Cohortloom" in text and "mean nothing at this size" in text
        assert "c0ffee" in text and "{{" not in text and "None" not in text
    for words in (
        "| Jaccard, half revealed | 0.520 | 0.510 to 0.530 | 100 |",
        "copied from training",
        "0.400%",
    ):
        assert words in about["model"]
    for words in (
        "Split by patient",
        "Intended use",
        "Privacy",
        "make patients",
        "with local changes",
        "train.seed",
    ):
        assert words in about["model"]
    assert "summary.group_bias" in about["model"] and "one patient's code can be read" in about["model"]
    assert about["model"].count("| 0.990 |") == 3 and about["cohort"].count("| 0.990 |") == 2  # the limits
    for words in ("impossible code, per 100,000", "0 codes twice in a visit", *COLUMNS):
        assert words in about["cohort"]
    assert set(COLUMNS) == set(SCHEMA.names)


def test_no_real_patient_is_in_a_card(finished, published):
    """Neither an id nor a visit, written in whatever way: no line holds two codes of the vocabulary."""
    words = json.loads((published / "model" / "vocabulary.json").read_text())
    names = {row["code"].rpartition(":")[2] for row in words["codes"]}
    codes = {name for name in names if not name.isdigit() or len(name) > 4}
    assert codes
    real = {
        name
        for part in ("train", "val", "test")
        for name in read_visits(finished[part])["patient_id"].to_pylist()
    }
    for card in published.rglob("README.md"):
        for line in card.read_text(encoding="utf-8").splitlines():
            found = set(re.findall(r"[A-Z0-9]+", line))
            assert len(found & codes) < 2, line
            assert not {name for name in found & real if len(name) > 4}, line


@pytest.mark.parametrize(
    "source, reason", [("mimic3", "no MIMIC-derived weights"), ("mine", "not known here")]
)
def test_a_source_that_may_not_be_published_is_refused(finished, tmp_path, source, reason):
    keywords = changed(
        finished, tmp_path, "provenance", lambda o: o["config"]["cohort"].update(source=source)
    )
    refused(keywords, tmp_path, f"cohort.source {source}: .*{reason}.*: simulated, nhds2010")


def test_only_two_sources_may_be_published():
    table = yaml.safe_load((RESOURCES / "publication.yaml").read_text())
    assert {name for name, entry in table.items() if entry["publish"] is True} == {"simulated", "nhds2010"}
    assert "308(d)" in terms_of("nhds2010", RESOURCES / "publication.yaml")["terms"]


def test_a_model_that_is_too_large_is_refused(finished, tmp_path, monkeypatch):
    weights = publication.round_weights(finished["model_dir"] / "model.safetensors")
    positions = publication.reached_positions(read_visits(finished["train"]), finished["model_dir"])
    weights = publication.keep_positions(weights, positions)
    size = publication.check_size(weights, finished["model_dir"])
    monkeypatch.setattr(publication, "MAX_MEGABYTES", 0.99 * size)
    refused(finished, tmp_path, r"MB in bf16, more than the .* MB that are published at most")


def test_figures_of_the_scorecard_above_a_limit_are_refused(finished, tmp_path):
    """The held-out visits' own limits, with nothing relaxed."""

    def change(card: dict) -> None:
        for record in card["records"]:
            if (record["run"], record["metric"]) == ("multitask", "likelihood_auc"):
                record |= {"value": 0.61, "ci_high": 0.62}

    keywords = changed(finished, tmp_path, "scorecard", change)
    strict = {"limits": RESOURCES / "publication_limits.csv"}
    refused(keywords | strict, tmp_path, "multitask: likelihood_auc: 0.610, by its 95% interval up to 0.620")


def test_a_small_test_set_closes_the_gate(finished, tmp_path):
    """The figures of the scorecard would pass; what 40 test patients say of the cohort proves nothing."""
    strict = {"limits": RESOURCES / "publication_limits.csv"}
    refused(finished | strict, tmp_path, "published cohort: .*; train less .*, or hold out more patients")


def test_a_cohort_of_training_patients_is_refused(finished, tmp_path, monkeypatch):
    """Whatever the scorecard says, the published visits themselves are looked at."""

    def copying(*, train, synthetic, counts, **_):
        table = read_visits(train)
        ids = np.char.add("synthetic-", np.array(table["patient_id"].to_pylist()))
        write_visits(table.set_column(0, "patient_id", [ids.tolist()]), synthetic, {})
        counts.write_text("{}")

    monkeypatch.setattr(script, "generate", copying)
    strict = {"limits": RESOURCES / "publication_limits.csv"}
    refused(finished | strict, tmp_path, "published cohort: copy_share: 100%, .*; train less")


def test_another_runs_folder_is_refused(finished, tmp_path):
    refused(finished | {"model_dir": tmp_path / "lm_only"}, tmp_path, "judges the run multitask")


def test_patients_are_generated_from_what_is_published(published, tmp_path, capsys):
    given = {"model": published / "model", "cohort": published / "cohort" / "visits.parquet", "device": "cpu"}
    made = tmp_path / "new" / "visits.parquet"
    generate_patients(synthetic=made, patients=20, seed=3, show=2, **given)
    table = read_visits(made)
    assert (table["visit"].to_numpy() == 0).sum() == 20
    assert json.loads(made.with_suffix(".json").read_text())["duplicates"] == 0
    printed = capsys.readouterr().out
    assert "synthetic-0000002: " in printed and "synthetic-0000003" not in printed
    values, _ = code_lists(table)
    assert (
        re.search(r"^    [V\dE.]{3,7} +[A-Z]\w+ \w+", printed, re.MULTILINE)
        and values[0].as_py().partition(":")[2][:3] in printed
    )

    requested = tmp_path / "requested.csv"
    requested.write_text("age,sex\n60,F\n61,M\n")
    generate_patients(synthetic=made, demographics=requested, constrained="full", **given)
    first = read_visits(made)
    first = first.filter(first["visit"].to_numpy() == 0)
    assert first["age"].to_pylist() == [60, 61] and first["sex"].to_pylist() == ["F", "M"]


def test_how_the_cohort_was_sampled_goes_with_the_model(finished, tmp_path):
    """A scorecard of visits drawn at another temperature needs a model that samples at it."""
    weights = publication.round_weights(finished["model_dir"] / "model.safetensors")
    sampling = {"temperature": 0.9, "no_repeat_ngram_size": 1}
    publication.write_model(weights, finished["model_dir"], tmp_path / "m", sampling)
    decoding = json.loads((tmp_path / "m" / "generation_config.json").read_text())
    assert decoding["temperature"] == 0.9 and decoding["do_sample"] is True
    assert json.loads((finished["model_dir"] / "generation_config.json").read_text())["temperature"] == 1.0
