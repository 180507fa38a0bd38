"""What the records say in plain sentences, for a physician and for a data steward.

A sentence stands only where its record has a value. It gives real's beside the model's and the verdict of the
record; nothing here judges anew.
"""

import math
from typing import Any

from cohortloom.reporting import wording
from cohortloom.reporting.scorecard import REAL, Record

# metric -> sentence; {value} and {real} come with their unit, {low} to {high} is the 95% interval
PHYSICIAN = {
    "any_per_100k_visits": (
        "Of 100,000 synthetic visits, {value} hold a diagnosis that does not fit the patient's age or sex "
        "({low} to {high}). Of 100,000 real ones: {real}."
    ),
    "hard_per_100k_visits": (
        "What cannot be, such as a man in labour or a birth code in an adult, stands in {value} of 100,000 "
        "synthetic visits ({low} to {high}) and in {real} of 100,000 real ones."
    ),
    "newborn_chronic_rate": (
        "Of the newborns, {value} also have an adult's chronic disease, which no rule of the editor "
        "catches; of real newborns {real}."
    ),
    "restricted_share": (
        "Diagnoses that belong to one sex or to an age make up {value} of all synthetic ones and {real} of "
        "real ones. A much smaller share would mean that mistakes were avoided by leaving them out."
    ),
    "mean_codes_per_visit": ("A synthetic visit has {value} diagnoses on average, a real one {real}."),
    "carried_codes": (
        "When a patient comes back, {value} of the earlier visit's diagnoses are coded again; in real "
        "patients {real}. Chronic diseases should stay."
    ),
    "cooccurrence_ratio": (
        "Diagnoses that stand together do so as habitually as {value} times what real ones do (real "
        "held-out patients: {real}); above 1 they are clichés, below 1 they keep strange company."
    ),
    "probe_age_error_years": (
        "Read off the diagnoses alone, the age of a synthetic patient is missed by {value} years on "
        "average, that of a real one by {real}."
    ),
    "classifier_auc": (
        "A computer that is shown one synthetic and one real visit picks the synthetic one with a "
        "probability of {value}; 0.5 is a coin toss (real beside real: {real})."
    ),
}
STEWARD = {
    "copy_share": (
        "Of the synthetic visits with five diagnoses or more, {value} have exactly the diagnoses of a "
        "training visit ({low} to {high}). Among real patients who were never trained on it is {real}."
    ),
    "membership_auc": (
        "Whoever holds the synthetic patients and compares one training patient with one who is not picks "
        "the right one with a probability of {value} ({low} to {high}); 0.5 is guessing, real held-out "
        "patients in place of synthetic ones give {real}."
    ),
    "membership_tpr_1fpr": (
        "Accusing 1% of the innocent, that attacker finds {value} of the training patients; 1% is guessing "
        "(real: {real})."
    ),
    "likelihood_auc": (
        "Whoever holds the model itself picks the training patient with a probability of {value} ({low} to "
        "{high}); 0.5 is guessing. Handing out the model gives away at least this much."
    ),
    "likelihood_gain": (
        "Naming as many people as were trained on, the holder of the model gains {value} of the way from "
        "blind guessing to certainty ({low} to {high}); with people who were not trained on {real}."
    ),
    "attribute_risk": (
        "Who knows a training patient's age, sex and common diagnoses infers the others {value} of the way "
        "better than for people who were not trained on ({low} to {high}; real: {real})."
    ),
    "adversarial_risk": (
        "The synthetic visits lie nearer to training patients than to others by {value} of an accuracy that"
        " runs from 0 to 1 ({low} to {high}; real: {real})."
    ),
}
CONTROLS = {
    "copy_share_control": (
        "If a planted share of the released patients were training patients, {value} of the visits would be"
        " found copied ({low} to {high}): the test sees such a leak."
    ),
    "membership_auc_control": (
        "The same leak would give the attack by distance a probability of {value} ({low} to {high}): as "
        "long as that is within what real data give, this attack says nothing about a leak of that size."
    ),
}
# what an experiment writes -> who may have it, why
SHARING = (
    (
        "report.html, scorecard.*, external.*",
        "may be shown",
        "rates, counts and synthetic patients; no row of a real one",
    ),
    (
        "synthetic/<run>/synthesize.parquet",
        "ask first",
        "no real row, and no proof that none is repeated: those responsible decide by the figures above",
    ),
    (
        "models/<run>/",
        "keep like the data",
        "a model gives away more than its patients do; trained on MIMIC-III it falls under its agreement",
    ),
    ("synthetic/<run>/reconstruct.parquet", "never", "holds the real codes of test patients"),
    ("synthetic/copy/", "never", "training patients, copied"),
    (
        "cohort/, dataset/, checkpoints/, raw tables",
        "never",
        "the patients' records, or what was learnt half-way",
    ),
)


def sentences(records: list[Record], run: str, wanted: dict[str, str], metrics: dict) -> list[dict[str, Any]]:
    """Sentences of a run's whole figures in the order of `wanted`, each with its verdict in words."""
    found = {}
    for record in records:
        if record["run"] == run and not record["subset"] and record["mode"] != "reconstruct":
            found[record["metric"]] = record
    made = []
    for metric, text in wanted.items():
        record = found.get(metric)
        if record is None or record["value"] is None:
            continue
        unit = metrics[metric]["unit"]
        words = {name: wording.number(record[key], unit) for name, key in _WORDS}
        made.append(
            {"text": text.format(**words), "verdict": wording.verdict(record["pass"]), "metric": metric}
        )
    return made


def planted_patients(records: list[Record], metrics: dict) -> dict[str, Any] | None:
    """What each number of plantings gave away, of the first run that canaries were planted into; else None.

    run: its id; rows: one a number of repeats, with every figure in words and the verdict on the AUC.
    """
    found: dict[str, dict[str, Record]] = {}
    runs = [r["run"] for r in records if r["metric"] == "canary_auc" and r["run"] != REAL]
    for record in records:
        if runs and record["run"] == runs[0] and str(record["subset"]).startswith("repeats "):
            found.setdefault(str(record["subset"]), {})[str(record["metric"])] = record
    if not found:
        return None
    rows = []
    for subset, figures in sorted(found.items(), key=lambda item: int(item[0].split()[1])):
        attack = figures["canary_auc"]
        row = {
            metric: wording.number(record["value"], metrics[metric]["unit"])
            for metric, record in figures.items()
        }
        row |= {"times": subset.split()[1], "n": wording.number(attack["n"], "count")}
        row |= {"interval": wording.interval(attack, ""), "real": wording.number(attack["real"], "")}
        rows.append(row | {"verdict": wording.verdict(attack["pass"])})
    held_out = next(iter(found.values()))["canary_auc"]["n_reference"]
    return {
        "run": runs[0],
        "rows": rows,
        "held_out": wording.number(held_out, "count"),
        "ceiling": wording.number(math.log2(held_out + 1), ""),
    }


_WORDS = (("value", "value"), ("real", "real"), ("low", "ci_low"), ("high", "ci_high"))


def removed_columns(records: list[Record], run: str, metrics: dict) -> list[dict[str, str]]:
    """The audit of race, a row a group: how well it is told, the share that looks like it, its distance."""
    found = {(r["run"], r["metric"], r["subset"]): r for r in records}
    groups = list(
        dict.fromkeys(r["subset"] for r in records if r["metric"] == "race_auc" and r["run"] == REAL)
    )

    def cell(name: str, metric: str, group: str) -> str:
        record = found.get((name, metric, group))
        return wording.number(record["value"], metrics[metric]["unit"]) if record else wording.NONE

    def told(group: str) -> str:
        return f"{cell(REAL, 'race_auc', group)} ({wording.interval(found[REAL, 'race_auc', group], '')})"

    return [
        {
            "group": group,
            "told": told(group),
            "share": cell(run, "race_predicted_share", group),
            "real_share": cell(REAL, "race_predicted_share", group),
            "distance": cell(run, "race_js_distance", group),
            "real_distance": cell(REAL, "race_js_distance", group),
            "n": wording.number(found[run, "race_js_distance", group]["n"], "count")
            if (run, "race_js_distance", group) in found
            else wording.NONE,
        }
        for group in groups
    ]


def seeds_table(spread: list[dict[str, Any]], metrics: dict) -> list[dict[str, Any]]:
    """Whole figures of each run over its trainings, in the order of metrics.csv."""
    order = {name: number for number, name in enumerate(metrics)}
    rows = []
    for entry in sorted((e for e in spread if not e["subset"]), key=lambda e: (order[e["metric"]], e["run"])):
        metric = metrics[entry["metric"]]
        cells = {n: wording.number(entry[n], metric["unit"]) for n in ("mean", "sd", "min", "max", "real")}
        passed = "" if entry["passed"] is None else f"{entry['passed']} of {entry['seeds']}"
        mode = "half revealed" if entry["mode"] == "reconstruct" and metric["group"] == "generation" else ""
        rows.append({"title": metric["title"], "run": entry["run"], "mode": mode, **cells, "passed": passed})
    return rows


def void_remarks(voided: list[tuple[str, str, float | None]], metrics: dict) -> list[str]:
    """Why a measure is not judged on these data."""
    return [
        f"{metrics[metric]['title']} is not judged: its control, the method markov, scores"
        f" {wording.number(value, '') if value is not None else 'nothing'} where at least 0.70 is asked for."
        " At this size the classifier cannot even tell that method from real data."
        for _, metric, value in voided
    ]
