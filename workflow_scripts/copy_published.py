"""Copy a published model and its cohort to another folder, where it replaces an earlier one."""

import shutil
from pathlib import Path

from cohortloom.base.errors import UserError
from cohortloom.base.files import replace_own_folder
from cohortloom.base.step import log, main
from cohortloom.release.layout import PUBLISHED


def copy_published(*, published: Path, target: Path) -> None:
    """Copy the files that publish wrote to `published` into the folder `target`.

    Raises UserError if one is missing, or if `target` holds other files; `target` then does not change.
    """
    for name in PUBLISHED:
        if not (published / name).is_file():
            raise UserError(f"{published / name}: no such file; run snakemake publish, which writes it")
    with replace_own_folder(target, PUBLISHED) as folder:
        for name in PUBLISHED:
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(published / name, folder / name)
    log.info("%s: copied to %s", published, target)


if __name__ == "__main__":
    main(copy_published, globals().get("snakemake"))
