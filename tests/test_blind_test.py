"""The blind test: pairs of equal age and sex, nothing that tells which is which, scores of known answers."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from blind_test import blind_test
from cohortloom.base.errors import UserError
from cohortloom.data.validity import Rules
from cohortloom.data.visits import write_visits
from cohortloom.release import blind_scores
from cohortloom.release import blind_test as library
from conftest import REPOSITORY
from grammar import whole_visits
from score_blind_test import score_blind_test

RESOURCES = REPOSITORY / "resources"


def renamed(visits: pa.Table, word: str) -> pa.Table:
    """The visits with ids synthetic-p0 and the like."""
    ids = pa.array([f"{word}-{name}" for name in visits["patient_id"].to_pylist()])
    return visits.set_column(0, "patient_id", ids)


def made(folder: Path, real: pa.Table, synthetic: pa.Table, **options) -> tuple[str, dict]:
    """The page and the key."""
    write_visits(real, folder / "test.parquet", {})
    write_visits(synthetic, folder / "synthetic.parquet", {})
    settings = {"experiment": "mine", "run": "multitask", "source": "mimic3", "visits": 100, **options}
    blind_test(
        synthetic=folder / "synthetic.parquet",
        test=folder / "test.parquet",
        titles=[RESOURCES / "titles" / name for name in ("ICD9CM.csv", "ICD9Proc.csv")],
        rules=[RESOURCES / "validity" / "ICD9CM.csv"],
        template=RESOURCES / "blind_test.html.j2",
        page=folder / "blind_test" / "page.html",
        key=folder / "blind_test" / "key.json",
        **settings,
    )
    page = (folder / "blind_test" / "page.html").read_text(encoding="utf-8")
    return page, json.loads((folder / "blind_test" / "key.json").read_text(encoding="utf-8"))


REAL, SYNTHETIC = whole_visits(900, 1), renamed(whole_visits(900, 2), "synthetic")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> tuple[str, dict]:
    return made(tmp_path_factory.mktemp("blind"), renamed(REAL, "hospital"), SYNTHETIC)


class Visits(HTMLParser):
    """Tags and attributes of each visit of a page, in order, and its text; numbers of visits as N."""

    def __init__(self, page: str):
        super().__init__()
        self.marks: list[list] = []
        self.texts: list[str] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag == "section":
            self.inside = True
            self.marks.append([])
            self.texts.append("")
        if self.inside and tag not in ("li", "ul", "h3", "span"):
            self.marks[-1].append((tag, [(k, re.sub(r"^\d+$", "N", v)) for k, v in attributes]))
        elif self.inside:
            self.texts[-1] += f"<{tag} {attributes}>"

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "section"

    def handle_data(self, data):
        if self.inside:
            self.texts[-1] += re.sub(r"Visit \d+ of \d+", "", data)


def tells(page: str, visits: list[pa.Table]) -> list[str]:
    """What could tell real from synthetic on a page, other than the visits themselves."""
    parsed = Visits(page)
    found = [f"marks of visit {n}" for n, marks in enumerate(parsed.marks, 1) if marks != parsed.marks[0]]
    ids = {name for table in visits for name in table["patient_id"].to_pylist()}
    found += [f"id {name}" for name in sorted(ids & set(re.findall(r"[\w-]+", page)))]
    return found + [word for word in ("broken", "does not fit", "pair", "computer") if word in page]


def test_the_page_shows_the_visits_of_the_key_and_nothing_that_tells(drawn):
    page, key = drawn
    assert tells(page, [renamed(REAL, "hospital"), SYNTHETIC]) == []
    texts = Visits(page).texts
    assert len(texts) == len(key["visits"]) == 100
    rows = {
        (row["patient_id"], row["visit"]): row
        for table in (renamed(REAL, "hospital"), SYNTHETIC)
        for row in table.to_pylist()
    }
    for entry, text in zip(key["visits"], texts, strict=True):
        row = rows[entry["patient_id"], entry["patient_visit"]]
        assert entry["patient_id"].startswith("synthetic") == (entry["source"] == "synthetic")
        assert {"F": "Female", "M": "Male"}[row["sex"]] in text
        assert ("first visit of" in text) == (row["visit"] == 0)
        shown = re.findall(r"'code'\)\]>([^<\s]+)", text)
        coded = [code.split(":")[1] for name in ("diagnoses", "procedures") for code in row[name]]
        assert [code.replace(".", "") for code in shown] == coded  # all of them, in their order
        assert all(drug.split(":")[1].lower() in text for drug in row["medications"])


def test_a_mark_or_an_id_is_detected(drawn):
    page, key = drawn
    tables = [renamed(REAL, "hospital"), SYNTHETIC]
    marked = page.replace('data-visit="3"', 'data-visit="3" class="x"')
    assert tells(marked, tables) == ["marks of visit 3"]
    name = key["visits"][0]["patient_id"]
    assert tells(page.replace("<h1>", f"<h1>{name} "), tables) == [f"id {name}"]


def test_a_visit_reads_alike_whichever_side_it_is_on():
    """One visit on both sides: the two texts are equal."""
    one, other = REAL.slice(0, 1), SYNTHETIC.slice(0, 1)
    same = one.set_column(0, "patient_id", other["patient_id"])
    pairs = library.draw_pairs(one, same, 1, 0)
    shown, hidden = library.visits_in_words(one, same, pairs, {}, Rules({}), 0)
    assert shown[0] == shown[1] and {entry["source"] for entry in hidden} == {"real", "synthetic"}


def test_pairs_have_age_sex_and_place_in_common_and_a_patient_comes_once():
    pairs = library.draw_pairs(REAL, SYNTHETIC, 200, 0)
    assert len(pairs.ages) == 200
    a, b = REAL.take(pa.array(pairs.real)), SYNTHETIC.take(pa.array(pairs.synthetic))
    assert a["sex"].to_pylist() == b["sex"].to_pylist()
    assert ((a["visit"].to_numpy() == 0) == (b["visit"].to_numpy() == 0)).all()
    same = a["age"].to_numpy() == b["age"].to_numpy()
    by_band = [shown.startswith("age ") for shown in pairs.ages]
    assert (~same).tolist() == by_band and 0 < sum(by_band) == pairs.by_band < 50
    assert len(set(a["patient_id"].to_pylist())) == len(set(b["patient_id"].to_pylist())) == 200
    again, others = (library.draw_pairs(REAL, SYNTHETIC, 200, seed) for seed in (0, 1))
    assert (again.real == pairs.real).all() and not (others.real == pairs.real).all()


def test_the_order_is_random():
    """The first visit is real about half of the time, and real visits do not come first."""
    pairs = library.draw_pairs(REAL, SYNTHETIC, 5, 0)
    orders = [library.visits_in_words(REAL, SYNTHETIC, pairs, {}, Rules({}), seed)[1] for seed in range(30)]
    real = np.array([[entry["source"] == "real" for entry in order] for order in orders])
    assert 6 <= real[:, 0].sum() <= 24
    assert abs(real[:, :5].mean() - 0.5) < 0.15 and real.sum(axis=1).tolist() == [5] * 30


def test_fewer_patients_give_a_smaller_page_and_a_warning(tmp_path, caplog):
    page, key = made(tmp_path, REAL.slice(0, 30), SYNTHETIC)
    assert 20 < len(key["visits"]) < 60 and f"Of the {len(key['visits'])} visits" in page
    assert f"only {len(key['visits']) // 2} of 50 pairs could be drawn" in caplog.text
    assert "too few visits are left" in caplog.text and "computer" not in key["visits"][0]


def test_patients_without_a_match_are_refused(tmp_path):
    women, men = (
        table.filter(pa.array([sex == wanted for sex in table["sex"].to_pylist()]))
        for table, wanted in ((REAL, "F"), (SYNTHETIC, "M"))
    )
    with pytest.raises(UserError, match="no visit has the age band, the sex"):
        made(tmp_path, women, men)
    assert not (tmp_path / "blind_test").exists()


def test_the_page_says_what_it_holds(drawn, tmp_path):
    assert "holds records of real patients" in drawn[0]
    page, _ = made(tmp_path, REAL, SYNTHETIC, source="simulated", visits=10)
    assert "holds records of real patients" not in page and "simulated hospital" in page


def test_the_computer_tells_a_fault_and_not_equal_visits(drawn):
    """The classifier is trained without the page's patients; another code in all synthetic visits is seen."""

    def right(synthetic: pa.Table) -> float:
        pairs = library.draw_pairs(REAL, synthetic, 50, 0)
        of_real, of_synthetic = library.computer_probabilities(REAL, synthetic, pairs, 0)
        return float(np.mean([p < 0.5 for p in of_real] + [p > 0.5 for p in of_synthetic]))

    drugs = pa.array([["Drug:STATIN"]] * SYNTHETIC.num_rows, SYNTHETIC["medications"].type)
    assert right(SYNTHETIC.set_column(SYNTHETIC.column_names.index("medications"), "medications", drugs)) == 1
    assert 0.35 < right(SYNTHETIC) < 0.65


# ---- scores


def sheet(key: dict, answer, reader: str = "A", **changes) -> dict:
    """A file of answers; `answer` gives that to an entry of the key."""
    answers = [
        {"visit": e["visit"], "answer": answer(e), "seconds": 1.0, "remark": ""} for e in key["visits"]
    ]
    return {"page": key["page"], "reader": reader, "answers": answers, **changes}


def scored(folder: Path, key: dict, *sheets: dict | str) -> dict[tuple[str, str], dict]:
    (folder / "key.json").write_text(json.dumps(key))
    paths = [folder / f"{number}.json" for number in range(len(sheets))]
    for path, content in zip(paths, sheets, strict=True):
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    score_blind_test(key=folder / "key.json", answers=paths, scores_file=folder / "scores.json")
    found = json.loads((folder / "scores.json").read_text())
    return {(score["who"], score["ages"]): score for score in found["scores"]}


def other(entry: dict) -> str:
    return {"real": "synthetic", "synthetic": "real"}[entry["source"]]


@pytest.mark.parametrize(
    ("answer", "share", "said"),
    [
        (lambda e: e["source"], 1.0, "distinguished\n"),
        (other, 0.0, "taken for each other"),
        (lambda e: "cannot tell", 0.5, "not distinguished beyond chance"),
        (lambda e: "real", 0.5, "not distinguished beyond chance"),
    ],
    ids=["right", "wrong", "cannot tell", "always real"],
)
def test_answers_of_known_quality(drawn, tmp_path, capsys, answer, share, said):
    found = scored(tmp_path, drawn[1], sheet(drawn[1], answer))["A", "all ages"]
    assert (found["share"], found["visits"]) == (share, 100)
    assert found["low"] <= share <= found["high"] and found["high"] - found["low"] < 0.21
    assert said in capsys.readouterr().out


def test_guessing_is_about_half_and_the_interval_covers_it():
    rng = np.random.default_rng(0)
    key = {n: {"source": "real" if n % 2 else "synthetic", "age_band": "age 18-44"} for n in range(1, 101)}
    covered = 0
    for _ in range(200):
        answers = {n: ("real", "synthetic")[rng.integers(2)] for n in key}
        found = blind_scores.scores(key, [blind_scores.Sheet("A", answers, {})])[0]
        covered += found.low <= 0.5 <= found.high
    assert 185 <= covered <= 200


def test_readers_bands_and_the_computer_are_scored_apart(drawn, tmp_path, capsys):
    key = drawn[1]
    young = sheet(key, lambda e: e["source"] if e["age_band"] == "age under 1" else other(e), "B")
    young["answers"][0]["remark"] = "a  boy\nof 40"
    few = sheet(key, lambda e: e["source"] if e["visit"] <= 10 else None, "C")
    found = scored(tmp_path, key, young, few)
    newborns = sum(e["age_band"] == "age under 1" for e in key["visits"])
    assert found["B", "age under 1"]["share"] == 1 and found["B", "age under 1"]["visits"] == newborns
    assert found["B", "age 45-64"]["share"] == 0
    assert found["C", "all ages"]["visits"] == 10
    # 10 visits have two readers: a visit counts once, with the mean of both
    both = [e for e in key["visits"] if e["visit"] <= 10 and e["age_band"] != "age under 1"]
    assert found["all readers", "all ages"]["visits"] == 100
    assert found["all readers", "all ages"]["share"] == pytest.approx((newborns + 0.5 * len(both)) / 100)
    right = [(e["computer"] > 0.5) == (e["source"] == "synthetic") for e in key["visits"]]
    assert found["computer", "all ages"]["share"] == pytest.approx(np.mean(right), abs=0.011)
    said = capsys.readouterr().out
    assert "C left 90 of 100 visits without an answer" in said
    assert f"visit 1, {key['visits'][0]['source']}, B: a boy of 40" in said


MISTAKES = {
    "no JSON": (lambda key: "hello", r"0\.json: not a file of answers \("),
    "a list": (lambda key: "[]", r"0\.json: not a file of answers: page is missing"),
    "the key": (lambda key: key, r"0\.json: not a file of answers: reader is missing"),
    "another page": (lambda key: sheet(key, other, page="x"), r"answers to the page 'x', but the key is of"),
    "no name": (lambda key: sheet(key, other, " "), r"reader: ' ' is no name"),
    "no entries": (lambda key: sheet(key, other, answers=3), r"entry 1: visit None is not on the page"),
    "unknown visit": (lambda key: sheet(key, other, answers=[{"visit": 101}]), r"visit 101 is not on the"),
    "twice": (
        lambda key: sheet(key, other, answers=[{"visit": 1, "answer": "real"}] * 2),
        r"entry 2: visit 1 is not on the page or given twice",
    ),
    "unknown answer": (lambda key: sheet(key, lambda e: "maybe"), r"visit 1: 'maybe' is no answer"),
    "nothing answered": (lambda key: sheet(key, lambda e: None), r"no visit is answered"),
    "a taken name": (lambda key: sheet(key, other, "computer"), r"the name 'computer' is taken"),
}


@pytest.mark.parametrize(("content", "message"), MISTAKES.values(), ids=MISTAKES)
def test_faulty_answers_are_refused_in_one_line(drawn, tmp_path, content, message):
    with pytest.raises(UserError, match=message) as caught:
        scored(tmp_path, drawn[1], content(drawn[1]))
    assert "\n" not in str(caught.value) and not (tmp_path / "scores.json").exists()


def test_two_files_of_one_reader_and_a_wrong_key_are_refused(drawn, tmp_path):
    key = drawn[1]
    with pytest.raises(UserError, match="the name 'A' is taken"):
        scored(tmp_path, key, sheet(key, other), sheet(key, other))
    with pytest.raises(UserError, match=r"key\.json: not a key of a blind test: visits is missing"):
        scored(tmp_path, {"page": "x"}, sheet(key, other))
