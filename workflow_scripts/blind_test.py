"""Write the page of the blind test, real and synthetic visits in random order, and its key."""

from pathlib import Path

from cohortloom.base.errors import UserError
from cohortloom.base.files import write_json, write_text
from cohortloom.base.step import log, main
from cohortloom.data.titles import titles_of
from cohortloom.data.validity import load_rules
from cohortloom.data.visits import code_lists, read_visits, used_columns
from cohortloom.release.blind_test import (
    REAL,
    computer_probabilities,
    draw_pairs,
    page_id,
    render_page,
    visits_in_words,
)


def blind_test(
    *,
    synthetic: Path,
    test: Path,
    titles: list[Path],
    rules: list[Path],
    template: Path,
    page: Path,
    key: Path,
    experiment: str,
    run: str,
    source: str,
    visits: int = 100,
    seed: int = 0,
) -> None:
    """Draw `visits` / 2 held-out visits of `test` and as many of `synthetic`, of the same ages and sexes.

    `titles`, `rules` and `template` are resources/titles/*, validity/* and blind_test.html.j2. `seed` draws
    visits and their order, and trains the classifier whose answers are in the `key`. The page is written for
    fewer visits, with a warning, if there are not enough patients. Raises UserError if no two visits match.
    """
    real, release = read_visits(test), read_visits(synthetic)
    wanted = visits // 2
    pairs = draw_pairs(real, release, wanted, seed)
    drawn = len(pairs.ages)
    if not drawn:
        raise UserError(
            f"{synthetic}: no visit has the age band, the sex and the place in the history of a visit of "
            f"{test}; hold out or generate more patients"
        )
    if drawn < wanted:
        log.warning(
            "warning: only %d of %d pairs could be drawn, from different patients of the same age and sex; "
            "hold out or generate more patients for a larger page",
            drawn,
            wanted,
        )
    if pairs.by_band:
        log.info("%d of %d pairs have the same age band, not the same age", pairs.by_band, drawn)
    parts = [real.take(pairs.real.tolist()), release.take(pairs.synthetic.tolist())]
    codes = {
        c for part in parts for name in used_columns(part) for c in code_lists(part, name)[0].to_pylist()
    }
    shown, hidden = visits_in_words(real, release, pairs, titles_of(codes, titles), load_rules(rules), seed)
    probabilities = computer_probabilities(real, release, pairs, seed)
    if probabilities is None:
        log.warning("warning: too few visits are left beside the page to train a classifier to compare with")
    else:
        for entry in hidden:
            entry["computer"] = round(probabilities[entry["source"] != REAL][entry["pair"]], 4)
    write_json(
        key,
        {
            "page": page_id(shown),
            "experiment": experiment,
            "run": run,
            "seed": seed,
            "visits": [{"visit": number, **entry} for number, entry in enumerate(hidden, 1)],
        },
    )
    write_text(page, render_page(template, shown, experiment, source == "simulated"))
    log.info("%d visits, half of them real: give readers %s, and not %s", 2 * drawn, page, key)


if __name__ == "__main__":
    main(blind_test, globals().get("snakemake"))
