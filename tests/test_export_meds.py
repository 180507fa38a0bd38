"""MEDS exports, judged by the schemas of the package `meds` and by the rules that types do not show."""

import datetime
import json
import shutil
import subprocess

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from export_cohort import ICD10, ROWS, cohort, export_as

SPLITS = ("train", "tuning", "held_out")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    rows = [(n, 0, *ROWS[n % 2][2:]) for n in range(1, 25)]
    return export_as(
        "meds", cohort(rows + [(n + 20, *row) for n, *row in ICD10]), tmp_path_factory.mktemp("meds")
    )


def events(folder, split) -> pa.Table:
    return pq.read_table(folder / "data" / split / "0.parquet", partitioning=None)


def test_the_package_accepts_the_files(folder):
    meds = pytest.importorskip("meds")
    for split in SPLITS:
        meds.DataSchema.validate(events(folder, split))
    meds.CodeMetadataSchema.validate(pq.read_table(folder / meds.code_metadata_filepath))
    meds.SubjectSplitSchema.validate(pq.read_table(folder / meds.subject_splits_filepath))
    about = json.loads((folder / meds.dataset_metadata_filepath).read_text())
    meds.DatasetMetadataSchema.validate(about)
    assert about["meds_version"] == meds.__version__


def test_the_package_rejects_what_is_not_meds(folder):
    meds = pytest.importorskip("meds")
    table = events(folder, "train")
    large = table.set_column(2, "code", table["code"].cast(pa.large_string()))
    with pytest.raises(Exception, match="code"):
        meds.DataSchema.validate(large)


def test_what_the_types_do_not_show(folder):
    """Subjects in one file, their rows together, static rows first, then by time; each code described."""
    seen, codes = {}, set()
    for split in SPLITS:
        rows = events(folder, split).to_pylist()
        last = None
        for row in rows:
            if row["subject_id"] != last:
                assert row["subject_id"] not in seen and row["time"] is None
                seen[row["subject_id"]] = split
                previous = datetime.datetime.min
            if row["time"] is not None:
                assert row["time"] >= previous
                previous = row["time"]
            last = row["subject_id"]
            codes.add(row["code"])
        assert rows, split
    splits = pq.read_table(folder / "metadata" / "subject_splits.parquet").to_pylist()
    assert {row["subject_id"]: row["split"] for row in splits} == seen
    described = pq.read_table(folder / "metadata" / "codes.parquet").to_pylist()
    assert {row["code"] for row in described} == codes and len(described) == len(codes)
    parents = {row["code"]: row["parent_codes"] for row in described}
    assert parents["DIAGNOSIS//ICD//9//41401"] == ["ICD9CM/414.01"] and parents["MEDS_BIRTH"] == []
    assert parents["DIAGNOSIS//ICD//10//E8809"] == ["ICD10CM/E88.09"]
    assert not any("RACE" in code.upper() or "ETHNICITY" in code.upper() for code in codes)


def test_one_subject_by_hand(tmp_path):
    folder = export_as("meds", cohort(ROWS[:2]), tmp_path)
    rows = events(folder, "train").to_pylist()
    assert [row["code"] for row in rows[:8]] == [
        "GENDER//M",
        "MEDS_BIRTH",
        "HOSPITAL_ADMISSION//SYNTHETIC//SYNTHETIC",
        "PROCEDURE//ICD//9//3613",
        "PROCEDURE//ICD//9//0066",
        "MEDICATION//START//HEPARIN",
        "DIAGNOSIS//ICD//9//41401",
        "DIAGNOSIS//ICD//9//4019",
    ]
    assert [row["hadm_id"] for row in rows[:4]] == [None, None, 1, 1]
    assert (rows[11]["time"].date() - rows[2]["time"].date()).days == 3
    assert events(folder, "tuning").num_rows == 0


@pytest.mark.skipif(
    not shutil.which("meds_reader_verify"), reason="the MEDS tool meds_reader is not installed"
)
def test_a_meds_tool_reads_it(folder, tmp_path):
    """meds_reader makes its database of it and finds the same events in both."""
    subprocess.run(["meds_reader_convert", folder, tmp_path / "db"], check=True, timeout=300)
    done = subprocess.run(["meds_reader_verify", folder, tmp_path / "db"], timeout=300)
    assert done.returncode == 0 and list((tmp_path / "db").iterdir())
