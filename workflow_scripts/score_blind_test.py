"""Print how well readers of the blind test told real from synthetic visits, beside a classifier."""

from dataclasses import asdict
from pathlib import Path

from cohortloom.base.files import write_json
from cohortloom.base.step import main
from cohortloom.release.blind_scores import ALL_AGES, read_key, read_sheet, scores, verdict


def score_blind_test(*, key: Path, answers: list[Path], scores_file: Path | None = None) -> None:
    """Score the files of `answers`, one a reader, by the `key` (results/<experiment>/blind_test/key.json).

    Give --answers once for each file. `scores_file` also gets the scores and the remarks, as JSON. Raises
    UserError for another file, answers to another page and a reader with two files.
    """
    page, entries = read_key(key)
    sheets = [read_sheet(path, page, entries) for path in answers]
    found = scores(entries, sheets)
    width = max(len(score.who) for score in found)
    print(f"{'':{width}}  {'':15}  right   95% interval  visits  cannot tell")
    for score in found:
        share = f"{score.share:6.1%}  {score.low:6.1%} to {score.high:6.1%}"
        said = f"  {verdict(score)}" if score.ages == ALL_AGES else ""
        print(
            f"{score.who:{width}}  {score.ages:15}  {share}  {score.visits:6}  {score.cannot_tell:11}{said}"
        )
    for sheet in sheets:
        if missing := len(entries) - len(sheet.answers):
            print(f"{sheet.reader} left {missing} of {len(entries)} visits without an answer; not scored")
        for number, remark in sheet.remarks.items():
            print(f"visit {number}, {entries[number]['source']}, {sheet.reader}: {remark}")
    if scores_file:
        remarks = [
            {"reader": sheet.reader, "visit": number, "source": entries[number]["source"], "remark": remark}
            for sheet in sheets
            for number, remark in sheet.remarks.items()
        ]
        write_json(scores_file, {"page": page, "scores": [asdict(s) for s in found], "remarks": remarks})


if __name__ == "__main__":
    main(score_blind_test, globals().get("snakemake"))
