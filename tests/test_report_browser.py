"""The report in a real browser: nothing fails, figures are drawn, it fits a phone and prints."""

import html
import re
import shutil
import subprocess

import pytest

from summarize import summarize
from summarize_inputs import write_inputs

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
    inputs = write_inputs(tmp_path_factory.mktemp("browser"))
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


def console(done: subprocess.CompletedProcess) -> list[str]:
    return [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def probed(text: str, folder, *options: str) -> tuple[list[int], list[str]]:
    done = opened(text.replace("</body>", PROBE + "</body>"), folder, "--dump-dom", *options)
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
        inner = html.escape(text.replace("</body>", PROBE + "</body>"), quote=True)
        frame = f'<iframe style="width:{PHONE}px;height:800px;border:0" srcdoc="{inner}"></iframe>'
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
