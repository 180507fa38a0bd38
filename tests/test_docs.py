"""Pages of documentation: links resolve, pages stay short, and the commands they show exist."""

import re
from pathlib import Path

import pytest

from conftest import REPOSITORY

MOST_LINES = 150
MOST_BYTES = 10_000  # of the README
WIDTH = 120  # of prose; tables and commands cannot be wrapped
# Lists that grow: nobody reads them from top to bottom.
LONG = {"CHANGELOG.md", "docs/trials.md"}
PAGES = sorted(
    str(page.relative_to(REPOSITORY))
    for pattern in ("*.md", "docs/*.md", "config/*.md")
    for page in REPOSITORY.glob(pattern)
)


def prose(text: str) -> list[str]:
    """Lines outside fenced blocks; a fence's content is no Markdown."""
    lines, fenced = [], False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced:
            lines.append(line)
    return lines


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = [line for line in prose(page.read_text(encoding="utf-8")) if re.match("#+ ", line)]
    return {re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in headings}


def faults(root: Path, name: str) -> list[str]:
    """What is wrong with a page, a line each: dead links, too many lines, lines that are too long."""
    page = root / name
    text = page.read_text(encoding="utf-8")
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", "\n".join(prose(text))):
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        file = (page.parent / target).resolve() if target else page
        if not file.exists():
            found.append(f"{name}: no file {link}")
        elif anchor and anchor not in anchors(file):
            found.append(f"{name}: no heading {link}")
    lines = text.splitlines()
    if name not in LONG and len(lines) > MOST_LINES:
        found.append(f"{name}: {len(lines)} lines, more than {MOST_LINES}")
    if name != "CHANGELOG.md":
        found += [
            f"{name}:{number}: {len(line)} characters, more than {WIDTH}"
            for number, line in enumerate(lines, 1)
            if len(line) > WIDTH and not line.startswith(("|", "    "))
        ]
    return found


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_sound(name):
    assert faults(REPOSITORY, name) == []


def test_the_readme_is_short():
    assert (REPOSITORY / "README.md").stat().st_size <= MOST_BYTES


def test_the_index_names_every_page():
    index = (REPOSITORY / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (REPOSITORY / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name


# a page -> the fault that must be found
WRONG = {
    "no file": ("see [that](missing.md)\n", "docs/page.md: no file missing.md"),
    "no heading": ("# A page\n\n[below](#nothing)\n", "docs/page.md: no heading #nothing"),
    "no heading there": ("[there](other.md#nothing)\n", "docs/page.md: no heading other.md#nothing"),
    "too long": ("x\n" * 151, "docs/page.md: 151 lines, more than 150"),
    "too wide": ("x " * 61 + "\n", "docs/page.md:1: 122 characters, more than 120"),
}


@pytest.mark.parametrize("text, fault", WRONG.values(), ids=WRONG)
def test_a_wrong_page_is_rejected(tmp_path, text, fault):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "other.md").write_text("# Some heading: with (marks)\n", encoding="utf-8")
    (tmp_path / "docs" / "page.md").write_text(text, encoding="utf-8")
    assert faults(tmp_path, "docs/page.md") == [fault]


def test_a_sound_page_is_not(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "other.md").write_text("# Some heading: with (marks)\n", encoding="utf-8")
    text = (
        "[a](other.md#some-heading-with-marks) [b](https://example.org/x)\n| "
        + "x" * 200
        + "\n```\n[c](no)\n```\n"
    )
    (tmp_path / "docs" / "page.md").write_text(text + "x\n" * 140, encoding="utf-8")
    assert faults(tmp_path, "docs/page.md") == []


def unknown_commands(text: str) -> list[str]:
    """Make targets, rules and scripts that a page tells the reader to run and that do not exist."""
    targets = re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    known = {f"make {name}" for name in targets}
    for file in (REPOSITORY / "Snakefile", *(REPOSITORY / "rules").glob("*.smk")):
        rules = re.findall(r"^rule (\w+):", file.read_text(encoding="utf-8"), re.MULTILINE)
        known |= {f"snakemake {name}" for name in rules}
    for folder in ("workflow_scripts", "benchmarks"):
        known |= {f"python {folder}/{file.name}" for file in (REPOSITORY / folder).glob("*.py")}
    shown = re.findall(r"(?:^    |`)((?:make|snakemake) [a-z_]+)\b", text, re.MULTILINE)
    shown += re.findall(r"\bpython (?:workflow_scripts|benchmarks)/\w+\.py", text)
    return sorted(set(shown) - known)


@pytest.mark.parametrize("name", [page for page in PAGES if page not in LONG])
def test_commands_exist(name):
    assert unknown_commands((REPOSITORY / name).read_text(encoding="utf-8")) == []


def test_unknown_commands_are_detected():
    text = "    make demo N=1\n    make tea\n`snakemake quality`, `snakemake tea`\n"
    text += "`python workflow_scripts/train.py`, `python workflow_scripts/tea.py`\n"
    assert unknown_commands(text) == ["make tea", "python workflow_scripts/tea.py", "snakemake tea"]
