"""Generate patients with the published model, without training and without data."""

import tempfile
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from cohortloom.base.errors import UserError
from cohortloom.base.files import check_own_folder, read_json, write_json
from cohortloom.base.step import log, main
from cohortloom.data.titles import titles_of
from cohortloom.data.validity import load_rules
from cohortloom.data.visits import (
    check_ending,
    code_lists,
    patient_starts,
    read_visits,
    used_columns,
    write_visits_csv,
)
from cohortloom.generation.requests import draw_patients, write_demographics
from cohortloom.release.layout import EXPORTED, omop_files
from cohortloom.reporting.examples import patient_in_words
from export_meds import export_meds
from export_mimic3 import export_mimic3
from export_mimic4 import export_mimic4
from export_omop import export_omop
from generate import generate

REPOSITORY = Path(__file__).resolve().parents[1]
PUBLISHED = REPOSITORY / "published" / "nhds2010"
RESOURCES = REPOSITORY / "resources"
PATIENTS = 1000
ENDINGS = (".parquet", ".csv.gz", ".csv")
EXPORTS = {"meds": export_meds, "omop": export_omop, "mimic4": export_mimic4, "mimic3": export_mimic3}
FILES = EXPORTED | {"omop": omop_files("csv", athena=False)}
DECODING = ("temperature", "no_repeat_ngram_size")


def generate_patients(
    *,
    synthetic: Path | None = None,
    format: Literal["meds", "omop", "mimic4", "mimic3"] | None = None,
    patients: int | None = None,
    seed: int = 0,
    demographics: Path | None = None,
    show: int = 0,
    model: Path = PUBLISHED / "model",
    cohort: Path = PUBLISHED / "cohort" / "visits.parquet",
    constrained: Literal["none", "hard", "full"] = "none",
    batch_size: int = 512,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Generate new patients with the published model; counts of faults go to a .json file of that name.

    The suffix of `synthetic` (results/patients/visits.parquet) sets the kind of file: .parquet, .csv or
    .csv.gz. With `format` it is a folder (results/patients/<format>) in the form of MEDS, OMOP, MIMIC-IV or
    MIMIC-III, as the target export writes it. Ages and sexes come from
    `demographics`, a CSV with the columns age and sex, one line a patient, which `patients` resamples as in
    `generate`. Without it, `patients` (1,000) are drawn from the published `cohort`. All random draws depend
    on `seed`. `show` prints that many patients with the titles of their codes. `constrained` forbids the
    codes that the hard or the full edits forbid at the patient's age and sex. Raises UserError where the
    model or the cohort is missing, and for ages and sexes outside those of the cohort.
    """
    for path in (model / "model.safetensors", cohort):
        if not path.is_file():
            raise UserError(
                f"{path}: no such file; name a published model and its cohort (--model, --cohort), "
                "or make them: snakemake publish"
            )
    target = synthetic or Path("results/patients") / (format or "visits.parquet")
    if format:
        check_own_folder(target, FILES[format])
    ending = "" if format else check_ending(target, ENDINGS)
    decoding = read_json(model / "generation_config.json")
    with tempfile.TemporaryDirectory() as folder:
        visits = target if ending == ".parquet" else Path(folder) / "visits.parquet"
        counts = visits.with_suffix(".json")
        requested = demographics or Path(folder) / "requested.csv"
        if demographics is None:
            write_demographics(requested, *draw_patients(read_visits(cohort), patients or PATIENTS, seed))
        generate(
            model_dir=model,
            train=cohort,
            test=cohort,
            synthetic=visits,
            counts=counts,
            seed=seed,
            batch_size=batch_size,
            demographics=str(requested),
            patients=patients,
            constrained=constrained,
            rules=[RESOURCES / "validity"],
            device=device,
            **{key: decoding[key] for key in DECODING},
        )
        table = read_visits(visits)
        if format:
            export(visits, target, format, seed, model)
        elif visits != target:
            write_visits_csv(table, target)
        if visits != target:
            write_json(target.with_name(target.name.removesuffix(ending) + ".json"), read_json(counts))
    print_patients(table, show)
    log.info("%s", target)


def export(visits: Path, folder: Path, format: str, seed: int, model: Path) -> None:
    """Write generated visits into a folder in one of the formats of EXPORTS."""
    tables = {"cdm": RESOURCES / "omop_cdm54.csv"} if format == "omop" else {}
    EXPORTS[format](
        synthetic=visits,
        folder=folder,
        titles=[RESOURCES / "titles"],
        terms=RESOURCES / "publication.yaml",
        readme=RESOURCES / "export.md.j2",
        experiment=model.parent.name,
        run="published model",
        source=PUBLISHED.name if model == PUBLISHED / "model" else "unknown",
        seed=seed,
        **tables,
    )


def print_patients(visits: pa.Table, show: int) -> None:
    """Print the first `show` patients of a table of visits, each code with its title and violated edits."""
    starts = [*patient_starts(visits).tolist(), visits.num_rows]
    shown = visits.slice(0, starts[: show + 1][-1])
    codes = [
        code for column in used_columns(shown) for code in pc.unique(code_lists(shown, column)[0]).to_pylist()
    ]
    titles, rules = titles_of(codes, RESOURCES / "titles"), load_rules(RESOURCES / "validity")
    for begin, end in list(zip(starts[:-1], starts[1:], strict=True))[:show]:
        patient = patient_in_words(visits.slice(begin, end - begin), titles, rules)
        print(f"\n{patient['id']}: {patient['who']}")
        for visit in patient["visits"]:
            print(f"  {visit['when']}, {visit['age']}")
            for column, codes in visit["columns"].items():
                print(f"   {column}")
                for code in codes:
                    remark = f"  [{code['broken']}]" if code["broken"] else ""
                    print(f"    {code['code']:<7} {code['title']}{remark}")
        if patient["more"]:
            print(f"  and {patient['more']} more visits")


if __name__ == "__main__":
    main(generate_patients)
