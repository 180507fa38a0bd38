"""The page of the blind test in a real browser: answers are stored and downloaded as scoring reads them."""

import html
import json
import re

import pytest

from cohortloom.release.blind_scores import read_sheet
from cohortloom.release.blind_test import page_id, render_page
from conftest import REPOSITORY
from test_report_browser import BROWSER, PHONE, console, opened

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
TITLE = "Pure hypercholesterolemia, with a long title that has to be wrapped on a narrow screen"
SHOWN = [
    {
        "sex": "Female",
        "age": f"{40 + number} years",
        "history": "first visit of this patient",
        "columns": {
            "diagnoses": [{"title": TITLE, "code": "272.0"}],
            "medications": [{"title": "<b>simvastatin</b>", "code": ""}],
        },
    }
    for number in range(4)
]
KEY = {number: {"source": "real", "age_band": "age 18-44"} for number in range(1, 5)}
# A reader's clicks; what is stored, what is offered as a file and what is shown go into the page's title.
READER = """<script>addEventListener("load", async () => {
  const press = (visit, value) => document.querySelector(
    `[data-visit="${visit}"] button[value="${value}"]`).click();
  const write = (field, text) => { field.value = text; field.dispatchEvent(new Event("input")); };
  let file = null, name = null;
  URL.createObjectURL = blob => { file = blob; return "#"; };
  HTMLAnchorElement.prototype.click = function() { name = this.download; };
  document.getElementById("download").click();
  const refused = file === null && document.getElementById("state").textContent;
  write(document.getElementById("reader"), "Dr. Ä/B");
  press(1, "real"); press(1, "synthetic");
  document.getElementById("next").click();
  press(2, "cannot tell"); write(document.querySelector('[data-visit="2"] .remark'), "odd");
  await new Promise(done => setTimeout(done, 300));
  document.getElementById("download").click();
  const shown = [...document.querySelectorAll(".visit")].filter(v => v.offsetHeight);
  const pressed = document.querySelectorAll('[aria-pressed="true"]').length;
  const state = document.getElementById("state").textContent;
  document.title = JSON.stringify({refused, name, pressed, state, shown: shown.map(v => v.dataset.visit),
    stored: localStorage.getItem(place), file: await file.text()});
})</script>"""


@pytest.fixture(scope="module")
def page() -> str:
    return render_page(REPOSITORY / "resources" / "blind_test.html.j2", SHOWN, "mine", False)


def clicked(page: str, folder) -> tuple[dict, list[str]]:
    done = opened(
        page.replace("</body>", READER + "</body>"), folder, "--dump-dom", "--virtual-time-budget=5000"
    )
    return json.loads(html.unescape(re.search(r"<title>(\{.*?\})</title>", done.stdout)[1])), console(done)


def test_a_reader_answers_and_downloads_what_scoring_reads(page, tmp_path):
    found, said = clicked(page, tmp_path)
    assert said == []
    assert found["refused"] == "Please give your name or initials"
    assert found["name"] == f"answers-Dr-Ä-B-{page_id(SHOWN)}.json"
    assert found["shown"] == ["2"] and found["pressed"] == 2 and found["state"] == "2 of 4 answered"
    assert json.loads(found["stored"]) == json.loads(found["file"])
    (tmp_path / "answers.json").write_text(found["file"], encoding="utf-8")
    sheet = read_sheet(tmp_path / "answers.json", page_id(SHOWN), KEY)
    assert sheet.reader == "Dr. Ä/B"
    assert sheet.answers == {1: "synthetic", 2: "cannot tell"} and sheet.remarks == {2: "odd"}
    seconds = [entry["seconds"] for entry in json.loads(found["file"])["answers"]]
    assert seconds[1] >= 0.3 and seconds[2:] == [0, 0]


def test_a_page_that_does_not_store_is_detected(page, tmp_path):
    found, said = clicked(page.replace("localStorage.setItem", "nothing.there"), tmp_path)
    assert found["stored"] is None and any("answers are not stored" in line for line in said)


def test_text_of_titles_is_no_markup_and_the_page_needs_no_network(page):
    assert "&lt;b&gt;simvastatin" in page and "<b>" not in page
    assert not re.search(r"https?:|src=|href=", page)
    script = page[page.index("<script>") : page.index("</script>")]
    assert len(script.splitlines()) < 80


def test_it_fits_the_width_of_a_phone(page, tmp_path):
    probe = "<script>top.document.title=[document.documentElement.scrollWidth,innerWidth].join()</script>"

    def on_a_phone(text: str) -> list[int]:
        inner = html.escape(text.replace("</body>", probe + "</body>"), quote=True)
        frame = f'<iframe style="width:{PHONE}px;height:800px;border:0" srcdoc="{inner}"></iframe>'
        done = opened(f"<html><head><title></title></head><body>{frame}", tmp_path, "--dump-dom")
        return list(map(int, re.search(r"<title>([\d,]+)</title>", done.stdout)[1].split(",")))

    wide, window = on_a_phone(page)
    assert window == PHONE and wide <= window
    assert on_a_phone(page.replace("<h1>", '<div style="width:600px">x</div><h1>'))[0] > PHONE
