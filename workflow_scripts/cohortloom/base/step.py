"""One adapter for every step: Snakemake, the command line and pytest call the same function.

A step is a typed function from files and keywords to files. Its parameter names are its command-line options
and the names of the rule's inputs, outputs and params. The keys of UNTRACKED are read from the config: no
rule passes them, because they must not cause a rerun. A parameter that is given nowhere keeps its default.
"""

import inspect
import logging
import os
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cohortloom.base.errors import Interrupted, UserError
from cohortloom.base.files import disk_error
from cohortloom.base.ranges import check_ranges

log = logging.getLogger("cohortloom")

# Config section -> keys that do not change the results. They are not params of a rule, so changing one reruns
# nothing.
UNTRACKED = {
    "cohort": ("memory_mb",),
    "train": ("device", "devices", "nodes", "checkpoint_every_minutes"),
    "generate": ("device",),
}


def main(function: Callable[..., None], snakemake: Any = None, untracked: str | None = None) -> None:
    """Run `function` from a rule's `script:` if `snakemake` is given, else from the command line.

    Exit status 1 and one line for a user's mistake; 2 for a wrong option; 143 after a signal. A process
    started by torchrun (RANK is set) writes its lines to standard output, which the step that started it
    logs.
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal without UTF-8 shows ? for other characters
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    rank = os.environ.get("RANK")
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr if rank is None else sys.stdout)]
    if snakemake is not None and snakemake.log:
        handlers.append(logging.FileHandler(snakemake.log[0], mode="w", encoding="utf-8"))
    logging.basicConfig(
        level=logging.INFO if rank in (None, "0") else logging.ERROR,
        format="%(asctime)s %(message)s" if rank is None else "%(message)s",
        datefmt="%H:%M:%S",
        handlers=handlers,
    )
    try:
        if snakemake is None:
            command_line(function)
        else:
            log.info(" ".join([snakemake.rule, *map(str, snakemake.wildcards)]))
            function(**arguments(function, snakemake, untracked))
    except UserError as error:
        log.error("error: %s", error)
        sys.exit(1)
    except Interrupted as error:
        log.error("stopped: %s", error)
        sys.exit(143)
    except Exception as error:
        if (reason := disk_error(error)) is None:
            raise
        place = getattr(error, "filename", None) or "disk"
        log.error("error: %s: %s; free the disk or choose another folder", place, reason)
        sys.exit(1)


def command_line(function: Callable[..., None]) -> None:
    """Run `function` with every parameter as an option of its own name (--raw-dir for raw_dir).

    Raises UserError for a number out of its range.
    """
    import typer

    signature = inspect.signature(function)
    options = [
        parameter.replace(
            default=typer.Option(... if parameter.default is parameter.empty else parameter.default)
        )
        for parameter in signature.parameters.values()
    ]

    def command(**keywords: Any) -> None:
        check_ranges(keywords)
        function(**keywords)

    command.__signature__ = signature.replace(parameters=options)
    command.__annotations__ = function.__annotations__
    command.__doc__ = function.__doc__
    application = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    application.command()(command)
    application()


def arguments(function: Callable[..., None], snakemake: Any, untracked: str | None = None) -> dict[str, Any]:
    """Keywords for `function`: a rule's inputs, outputs and params, and UNTRACKED[untracked] of the config.

    The param `settings` is a dict of params (`named` in rules/common.smk), `script` the name of the script.
    An input that the signature lacks is only a dependency; an optional input without a file keeps its
    default. A param that the signature lacks is an error.
    """
    names = inspect.signature(function).parameters
    keywords: dict[str, Any] = {}
    if untracked:
        section = snakemake.config[untracked]
        keywords = {key: section[key] for key in UNTRACKED[untracked] if key in names and key in section}
    for files in (snakemake.input, snakemake.output):
        for key, value in files.items():
            if key in names and (value or names[key].default is inspect.Parameter.empty):
                keywords[key] = Path(value) if isinstance(value, str) else [Path(item) for item in value]
    params = dict(snakemake.params.items())
    params.pop("script", None)
    for key, value in (params.pop("settings", {}) | params).items():
        if key not in names:
            raise TypeError(
                f"rule {snakemake.rule} passes the param {key}, which {function.__name__} does not take"
            )
        keywords[key] = as_annotated(value, names[key].annotation)
    if "threads" in names:
        keywords.setdefault("threads", snakemake.threads)
    return keywords


def as_annotated(value: Any, annotation: Any) -> Any:
    """The value as a Path if the annotation is one: folders are params, which Snakemake keeps as strings."""
    kinds = (annotation, *typing.get_args(annotation))
    if isinstance(value, str) and Path in kinds and str not in kinds:
        return Path(value)
    if isinstance(value, (list, tuple)) and annotation == list[Path]:
        return [Path(item) for item in value]
    return value


def quiet_libraries() -> None:
    """Silence messages of libraries that hide those of the step; call before importing transformers."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
