"""Draw seconds by size of all stages measured: python benchmarks/figure.py LINES.jsonl FIGURE.svg"""

import json
import sys

from matplotlib.figure import Figure

PANELS = {
    "preprocess and dataset": ("preprocess, mimic3", "build_dataset, mimic3"),
    "generation": ("generate",),
    "evaluation": None,
}


def draw(lines: list[dict], path: str) -> None:
    """One panel a stage, both axes logarithmic; a dotted line grows in proportion."""
    figure = Figure((11, 3.6), layout="constrained")
    sized = [line for line in lines if line["size"] and line["seconds"]]
    for axes, (title, names) in zip(figure.subplots(1, 3), PANELS.items(), strict=True):
        names = names or tuple(dict.fromkeys(x["stage"] for x in sized if x["stage"].startswith("evalu")))
        panel = [line for line in sized if line["stage"] in names]
        for name in names:
            own = [line for line in panel if line["stage"] == name]
            if not own:
                continue
            sizes, seconds = [line["size"] for line in own], [line["seconds"] for line in own]
            drawn = axes.loglog(sizes, seconds, "o-", label=name.removeprefix("evaluate_").split(",")[0])
        if panel:  # in proportion to the last line drawn
            straight = [seconds[-1] * size / sizes[-1] for size in sizes]
            axes.loglog(sizes, straight, ":", color=drawn[0].get_color(), label="in proportion")
            axes.legend(fontsize=7, frameon=False)
        axes.set(title=title, xlabel=panel[0]["unit"] if panel else "not measured", ylabel="seconds")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        draw([json.loads(line) for line in file], sys.argv[2])
