"""Publish the main model of a finished experiment: weights in bf16, a cohort that they generate, cards."""

import tempfile
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from cohortloom.base.errors import UserError
from cohortloom.base.files import read_json, replace_own_folder, sha256
from cohortloom.base.step import log, main, quiet_libraries
from cohortloom.base.version import VERSION
from cohortloom.data.codes import CODE_COLUMNS
from cohortloom.data.visits import code_lists, patient_starts, read_visits, write_visits
from cohortloom.data.vocabulary import Vocabulary
from cohortloom.generation.requests import draw_patients, write_demographics
from cohortloom.release import cards, gates
from cohortloom.release.layout import PUBLISHED
from cohortloom.release.terms import terms_of
from cohortloom.reporting.scorecard import read_metrics
from generate import generate


def publish(
    *,
    model_dir: Path,
    scorecard: Path,
    provenance: Path,
    train: Path,
    val: Path,
    test: Path,
    rules: list[Path],
    metrics: Path,
    limits: Path,
    terms: Path,
    model_card: Path,
    data_card: Path,
    published: Path,
    patients: int = 20000,
    seed: int = 0,
    site_terms: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Write published/model and published/cohort, each with its card README.md.

    `model_dir` is the model of the run that `scorecard` judges; `provenance` holds config, commit and source.
    `train`, `val`, `test` are of the dataset; `rules`, `metrics`, `limits`, `terms` are
    resources/validity/*.csv, metrics.csv, publication_limits.csv and publication.yaml; `model_card`,
    `data_card` are the templates of the cards. `site_terms` is a file of the terms of a source that `terms`
    does not list.

    The published weights generate the cohort with the sampling of the scorecard, for ages and sexes drawn
    from the training patients; `seed` draws both. Raises UserError, with nothing written, for a source whose
    models may not be published, a folder that is too large, figures of the scorecard or of the cohort above
    the limits, and a folder `published` with foreign files.
    """
    card, origin = read_json(scorecard), read_json(provenance)
    config, run = origin["config"], card["criteria"][0]["run"]
    entry = terms_of(config["cohort"]["source"], terms, site_terms)
    if model_dir.name != run:
        raise UserError(f"{model_dir}: {scorecard} judges the run {run}; give that run's folder")
    quiet_libraries()
    from cohortloom.release import publication

    meanings, limit_rows = read_metrics(metrics), gates.read_limits(limits)
    units = {name: row["unit"] for name, row in meanings.items()}
    gates.check_limits(card["records"], run, limit_rows, units, f"{scorecard}: {run}")
    splits = dict(zip(("training", "validation", "test"), map(read_visits, (train, val, test)), strict=True))
    positions = publication.reached_positions(splits["training"], model_dir)
    weights = publication.keep_positions(
        publication.round_weights(model_dir / "model.safetensors"), positions
    )
    size = publication.check_size(weights, model_dir)

    vocabulary = Vocabulary.load(model_dir / "vocabulary.json")
    decoding = config["generate"]
    sampling = {**decoding["synthesize"], "no_repeat_ngram_size": decoding["no_repeat_ngram_size"]}
    with replace_own_folder(published, PUBLISHED) as folder, tempfile.TemporaryDirectory() as scratch:
        published_model = folder / "model"
        publication.write_model(weights, model_dir, published_model, sampling)
        requested, raw, counts = (Path(scratch) / name for name in ("ages.csv", "raw.parquet", "counts.json"))
        write_demographics(requested, *draw_patients(splits["training"], patients, seed))
        generate(
            model_dir=published_model,
            train=train,
            test=test,
            synthetic=raw,
            counts=counts,
            seed=seed,
            batch_size=decoding["batch_size"],
            demographics=str(requested),
            constrained=decoding["constrained"],
            rules=rules,
            device=device,
            **sampling,
        )
        cohort = read_visits(raw)
        records = publication.cohort_records(cohort, splits["training"], splits["test"], rules, seed)
        of_visits = [limit for limit in limit_rows if limit.mode == "synthesize"]
        gates.check_limits(records, publication.COHORT, of_visits, units, publication.COHORT)
        digest = sha256(published_model / "model.safetensors")
        visits = folder / "cohort" / "visits.parquet"
        # In one chunk: each batch of the generation has its own dictionary of codes.
        facts = {"source": "model", "seed": str(seed), "inputs_sha256": digest, "tool_version": VERSION}
        write_visits(cohort.combine_chunks(), visits, facts)

        shared = {
            "terms": entry,
            "origin": origin,
            "version": VERSION,
            "digest": digest,
            "limits": limit_rows,
        }
        text = cards.model_card(
            model_card,
            card,
            meanings,
            numbers=sum(tensor.numel() for tensor in weights.values()),
            megabytes=size,
            codes=len(vocabulary.codes),
            columns=", ".join(f"{size} {column}" for column, size in vocabulary.columns),
            splits={name: sizes(part) for name, part in splits.items()},
            settings=config["train"] | config["runs"][config["main_run"]],
            losses=publication.validation_losses([model_dir, published_model], val),
            **shared,
        )
        (published_model / "README.md").write_text(text, encoding="utf-8")
        text = cards.data_card(
            data_card,
            records,
            meanings,
            publication.COHORT,
            experiment=card["experiment"],
            sizes=sizes(cohort),
            totals=read_json(counts),
            sampling=decoding,
            seed=seed,
            **shared,
        )
        (visits.parent / "README.md").write_text(text, encoding="utf-8")
    log.info("%s: %.1f MB of model, %d patients", published, size, patients)


def sizes(visits: pa.Table) -> dict[str, Any]:
    """Patients, visits, codes and distinct codes of a table, all columns together."""
    codes = pa.concat_arrays([code_lists(visits, column)[0].cast(pa.string()) for column in CODE_COLUMNS])
    return {
        "patients": len(patient_starts(visits)),
        "visits": visits.num_rows,
        "codes": len(codes),
        "distinct": len(codes.unique()),
    }


if __name__ == "__main__":
    main(publish, globals().get("snakemake"), untracked="generate")
