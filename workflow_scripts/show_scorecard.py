"""Print the criteria of a finished experiment and the path of its report."""

import importlib.util
import shutil
from pathlib import Path

from cohortloom.base.errors import UserError
from cohortloom.base.files import read_json
from cohortloom.base.step import main
from cohortloom.reporting.scorecard import MEANINGFUL_VISITS, read_metrics
from cohortloom.reporting.sentences import against_naive, record_cells

METRICS = Path(__file__).resolve().parents[1] / "resources" / "metrics.csv"
HEAD = ("criterion", "value", "95% interval", "target", "verdict", "real", "naive", "n")
CELLS = ("title", "value", "interval", "target", "verdict", "real", "naive", "n")


def show_scorecard(*, results: Path = Path("results/demo")) -> None:
    """Print the table of criteria of results/<experiment> and the path of its report."""
    scorecard = results / "scorecard.json"
    if not scorecard.is_file():
        raise UserError(f"{scorecard}: no such file; run `snakemake evaluate_all` first")
    card, metrics = read_json(scorecard), read_metrics(METRICS)
    criteria = [record_cells(record, metrics[record["metric"]]) for record in card["criteria"]]
    rows = [tuple(cells[name] for name in CELLS) for cells in criteria]
    passed = sum(record["pass"] is True for record in card["criteria"])
    title = f"{card['experiment']}, run {card['criteria'][0]['run']}: {passed} of {len(rows)} criteria pass"
    print_table(title, rows)
    for cells in criteria:
        if cells["reason"]:
            print(f"{cells['title']} has no value: {cells['reason']}")
    # Jaccard is computed on every test visit; the heads leave out visits without a code of the vocabulary.
    visits = next((r["n"] for r in card["criteria"] if r["metric"] == "jaccard"), None)
    if visits is not None and visits < MEANINGFUL_VISITS:
        print(f"WARNING: only {visits:,} test visits; figures mean nothing at this size.")
    for sentence in against_naive(card["records"], card["criteria"][0]["run"], metrics):
        print(sentence)
    print(f"report: {(results / 'report.html').resolve()}")


def print_table(title: str, rows: list[tuple[str, ...]]) -> None:
    """Print the table with rich if it is installed (typer requires it), else with tabulate."""
    if importlib.util.find_spec("rich") is None:
        from tabulate import tabulate

        print(title)
        print(tabulate(rows, HEAD, disable_numparse=True))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in HEAD:
        table.add_column(name, justify="left" if name in ("criterion", "verdict") else "right")
    for cells in rows:
        color = {"pass": "green", "FAIL": "bold red"}.get(cells[4], "yellow")
        table.add_row(*cells[:4], f"[{color}]{cells[4]}[/]", *cells[5:])
    # Wide enough that no number is cut off in a narrow log.
    Console(width=max(110, shutil.get_terminal_size().columns)).print(table)


if __name__ == "__main__":
    main(show_scorecard)
