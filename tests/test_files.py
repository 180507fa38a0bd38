"""A folder is replaced only where the step itself made it; whatever else lies there is left untouched."""

import os
from pathlib import Path

import pytest

from cohortloom.base.errors import UserError
from cohortloom.base.files import check_own_folder, replace_own_folder

NAMES = ("model/weights", "model/README.md", "visits")


def fill(folder: Path, names=NAMES, text: str = "old") -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def content(folder: Path) -> dict[str, str]:
    """Text of every file below a folder, by its path in it; of a folder None."""
    return {str(p.relative_to(folder)): p.read_text() if p.is_file() else None for p in folder.rglob("*")}


def write_new(folder: Path) -> None:
    with replace_own_folder(folder, NAMES) as new:
        assert new.parent.parent == folder.parent  # one file system, so that a rename suffices
        fill(new, text="new")


def test_a_folder_of_the_step_is_replaced(tmp_path):
    folder = tmp_path / "deep" / "out"
    for prepare in (lambda: None, lambda: fill(folder)):
        prepare()
        write_new(folder)
        assert content(folder) == content(fill(tmp_path / "expected", text="new"))
        assert os.listdir(folder.parent) == ["out"]


def test_empty_folders_by_snakemake_do_not_count(tmp_path):
    (tmp_path / "out" / "model").mkdir(parents=True)
    write_new(tmp_path / "out")
    assert (tmp_path / "out" / "visits").read_text() == "new"


@pytest.mark.parametrize(
    "names, message",
    [
        ((*NAMES, "thesis.tex"), "holds thesis.tex"),
        ((*NAMES, "model/notes/a.txt"), "holds model/notes"),
        (("model/README.md",), "lacks model/weights"),  # a README of one's own
        (("diary",), "holds diary"),
    ],
)
def test_a_folder_with_anything_else_is_refused_and_left_untouched(tmp_path, names, message):
    folder = fill(tmp_path / "out", names)
    before = content(tmp_path)
    with pytest.raises(UserError, match=f"out: {message}.*name another folder") as caught:
        write_new(folder)
    assert "\n" not in str(caught.value) and content(tmp_path) == before


def test_an_empty_subfolder_of_the_users_is_refused(tmp_path):
    (tmp_path / "out" / "photos").mkdir(parents=True)
    with pytest.raises(UserError, match="holds photos"):
        write_new(tmp_path / "out")
    assert (tmp_path / "out" / "photos").is_dir()


def test_what_comes_while_the_step_works_is_left_untouched(tmp_path):
    folder = fill(tmp_path / "out")
    with pytest.raises(UserError, match="holds late"), replace_own_folder(folder, NAMES) as new:
        fill(new, text="new")
        (folder / "late").write_text("mine")
    assert (folder / "late").read_text() == "mine" and (folder / "visits").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_files_and_links_are_no_folders(tmp_path):
    fill(tmp_path / "mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    (tmp_path / "file").write_text("mine")
    for name in ("link", "file"):
        with pytest.raises(UserError, match=f"{name}: is a file or a link"):
            check_own_folder(tmp_path / name, NAMES)
    with pytest.raises(UserError, match="cannot be made"):
        write_new(tmp_path / "file" / "out")
    inside = fill(tmp_path / "out")
    (inside / "visits").unlink()
    (inside / "visits").symlink_to(tmp_path / "file")  # a link to a file is a file
    write_new(inside)
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "out" / "model" / "README.md").unlink()
    (tmp_path / "out" / "model" / "README.md").symlink_to(tmp_path / "mine")  # a link to a folder as well
    write_new(inside)
    assert content(tmp_path / "mine") == content(fill(tmp_path / "expected"))


def test_an_error_leaves_the_folder_as_it_was(tmp_path):
    folder = fill(tmp_path / "out")
    with pytest.raises(KeyError), replace_own_folder(folder, NAMES) as new:
        (new / "visits").write_text("half")
        raise KeyError
    with pytest.raises(ValueError, match="model/weights"), replace_own_folder(folder, NAMES) as new:
        (new / "visits").write_text("too few")
    assert (folder / "visits").read_text() == "old" and os.listdir(tmp_path) == ["out"]
