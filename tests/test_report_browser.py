"""The report in a real browser: nothing fails, figures are drawn, it fits a phone and prints.

The table of all measures is searched and sorted, and is complete where no script runs.
"""

import html
import json
import re
import shutil
import subprocess

import pytest

from summarize import summarize
from summarize_inputs import figure, write_inputs

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
PROBE = (
    "<script>addEventListener('load',()=>{const i=[...document.images];"
    "top.document.title=[document.documentElement.scrollWidth,innerWidth,i.length,"
    "i.filter(x=>x.naturalWidth>0&&x.getBoundingClientRect().height>50).length,"
    "document.querySelectorAll('section').length].join()})</script>"
)
PHONE = 360  # CSS pixels


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("browser")
    inputs = write_inputs(folder)
    empty = figure("multitask", "carried_codes", None)  # a row without a value
    extra = [{**figure("multitask", "unigram_r2", 0.9), "column": "procedures"}, empty]
    inputs["records"].append(folder / "extra.json")
    inputs["records"][-1].write_text(json.dumps(extra), encoding="utf-8")
    summarize(**inputs)
    return inputs["report"].read_text(encoding="utf-8")


def opened(text: str, folder, *options: str) -> subprocess.CompletedProcess:
    """The browser's answer to a page; its console comes on stderr."""
    path = folder / "page.html"
    path.write_text(text, encoding="utf-8")
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--enable-logging=stderr",
    ]
    flags += [f"--user-data-dir={folder / 'profile'}", "--disable-dev-shm-usage", *options]
    return subprocess.run([BROWSER, *flags, f"file://{path}"], capture_output=True, text=True, timeout=180)


def framed(text: str, options: str = "") -> str:
    """A page in a frame as wide as a phone."""
    inner = html.escape(text, quote=True)
    return f'<iframe {options} style="width:{PHONE}px;height:800px;border:0" srcdoc="{inner}"></iframe>'


def console(done: subprocess.CompletedProcess) -> list[str]:
    return [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def with_probe(text: str) -> str:
    """The page with PROBE, which its policy would forbid."""
    permitted = re.sub(r"script-src 'sha256-[^']*'", "script-src 'unsafe-inline'", text)
    return permitted.replace("</body>", PROBE + "</body>")


def probed(text: str, folder, *options: str) -> tuple[list[int], list[str]]:
    done = opened(with_probe(text), folder, "--dump-dom", *options)
    return answer(done), console(done)


def answer(done: subprocess.CompletedProcess) -> list[int]:
    """What PROBE wrote into the title of the page: its width, the window's, figures, figures drawn, parts."""
    return list(map(int, re.search(r"<title>([\d,]+)</title>", done.stdout)[1].split(",")))


def test_it_opens_without_a_fault_and_draws_every_figure(page, tmp_path):
    (wide, window, images, drawn, sections), said = probed(page, tmp_path, "--window-size=1280,900")
    assert wide <= window and images == drawn >= 6 and sections == 3
    assert said == []


def test_a_broken_image_or_script_is_detected(page, tmp_path):
    broken = page.replace("</body>", "<script>nothing.there()</script></body>")
    broken = re.sub(r'src="data:image/svg[^"]{30}', 'src="data:image/svg', broken, count=1)
    (_, _, images, drawn, _), said = probed(broken, tmp_path, "--window-size=1280,900")
    assert drawn == images - 1
    assert any("nothing is not defined" in line for line in said)


def test_it_fits_the_width_of_a_phone(page, tmp_path):
    def on_a_phone(text: str) -> list[int]:
        frame = framed(with_probe(text))
        return answer(opened(f"<html><head><title></title></head><body>{frame}", tmp_path, "--dump-dom"))

    wide, window, images, drawn, _ = on_a_phone(page)
    assert window == PHONE and wide <= window and images == drawn
    too_wide = page.replace("<h1>", '<div style="width:600px">x</div><h1>')
    assert on_a_phone(too_wide)[0] > PHONE


def test_it_prints(page, tmp_path):
    done = opened(page, tmp_path, f"--print-to-pdf={tmp_path / 'page.pdf'}")
    content = (tmp_path / "page.pdf").read_bytes()
    assert (
        content.startswith(b"%PDF") and content.count(b"/Type /Page\n") + content.count(b"/Type /Page ") >= 2
    )
    assert console(done) == []


# Sorts by value and searches in the table of each frame, and writes into the title what is then to be seen.
READER = """<script>addEventListener('load', () => {
  const seen = (item) => item !== null && item.getClientRects().length > 0;
  const use = (page) => {
    const rows = () => [...page.querySelectorAll('#measures tbody tr')].filter(seen).map(
      (row) => [row.querySelector('a').textContent, row.cells[4].dataset.number]);
    const header = page.querySelectorAll('#measures th')[4];
    const clicked = () => { header.querySelector('button')?.click(); return [header.ariaSort, rows()]; };
    const field = page.querySelector('#search input');
    const found = (words) => {
      field.value = words;
      field.dispatchEvent(new Event('input'));
      return [rows().map((row) => row[0]), page.querySelector('#search output').textContent];
    };
    return {
      page: rows(), ascending: clicked(), descending: clicked(), again: clicked(),
      buttons: page.querySelectorAll('#measures button').length, field: seen(field), title: page.title,
      one: found('SINGLE procedures'), judged: found('pass at least'), none: found('no such row'),
      all: found(''),
    };
  };
  const frames = [...document.querySelectorAll('iframe')];
  document.title = JSON.stringify(frames.map((frame) => use(frame.contentDocument)));
})</script>"""


@pytest.fixture(scope="module")
def read(page, tmp_path_factory) -> dict[str, dict]:
    """What a reader sees who uses the table: on the page, without scripts, and on pages that are wrong."""
    cut = re.sub("<script>.*?</script>", "", page, flags=re.DOTALL)
    foreign = page.replace("</body>", "<script>document.title = 'foreign'</script></body>")
    frames = {
        "page": framed(page),
        "no scripts": framed(page, 'sandbox="allow-same-origin"'),
        "cut": framed(cut),
        "foreign": framed(foreign),
        "changed": framed(page.replace('"use strict"', "'use strict'")),
        "permitted": framed(with_probe(foreign).replace(PROBE, "")),
    }
    text = f"<html><head><title></title></head><body>{READER}{''.join(frames.values())}</body></html>"
    done = opened(text, tmp_path_factory.mktemp("reader"), "--dump-dom")
    answers = json.loads(html.unescape(re.search("<title>(.*?)</title>", done.stdout, re.DOTALL)[1]))
    return dict(zip(frames, answers, strict=True))


def test_a_click_sorts_by_value_and_rows_without_one_come_last(read):
    seen = read["page"]
    assert len(seen["page"]) == 10 and ["carry-forward rate of codes", ""] in seen["page"]
    for way, sign in (("ascending", 1), ("descending", -1)):
        state, rows = seen[way]
        numbers = [float(value) for _, value in rows[:-1]]
        assert state == way and rows[-1] == ["carry-forward rate of codes", ""]
        assert numbers == sorted(numbers, key=lambda value: sign * value) and len(set(numbers)) >= 7
        assert sorted(rows) == sorted(seen["page"]) and rows != seen["page"]
    assert seen["again"] == ["none", seen["page"]]
    assert seen["buttons"] == 10


def test_a_search_leaves_the_rows_with_all_words(read):
    seen = read["page"]
    assert seen["field"]
    assert seen["one"] == [["R² of single codes"], "1 of 10 rows"]
    assert seen["judged"] == [["Jaccard, half revealed"], "1 of 10 rows"]
    assert seen["none"] == [[], "0 of 10 rows"]
    assert seen["all"] == [[title for title, _ in seen["page"]], "10 of 10 rows"]


@pytest.mark.parametrize("how", ["no scripts", "cut", "changed"])
def test_without_its_script_the_page_is_complete_and_does_not_sort(read, how):
    """Without scripts, and with a script that is cut out or differs from the one permitted."""
    seen, whole = read[how], read["page"]
    assert seen["page"] == whole["page"] and seen["ascending"] == [None, whole["page"]]
    assert not seen["field"] and seen["buttons"] == 0 and seen["none"][0] == whole["all"][0]


def test_a_foreign_script_is_refused(read):
    assert read["foreign"]["title"] == read["page"]["title"] != "foreign"
    assert read["permitted"]["title"] == "foreign"  # by a policy that permits any
    assert read["foreign"]["buttons"] == 10
