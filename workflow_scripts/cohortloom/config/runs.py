"""The registry of runs: every set of visits to score is a `Run`, made here from the config.

A run is a training of `runs` and `seeds`, visits of the main run at ages and sexes of training patients, an
arm of the ablation, a sample of the quality table, a naive method, visits of another generator, or held-out
real visits. Rules ask a run what to generate and what to score. Imported while Snakemake parses the workflow,
so it imports the standard library only.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cohortloom.base.errors import UserError
from cohortloom.base.methods import NAIVE, SCORING
from cohortloom.base.step import UNTRACKED

Config = Mapping[str, Any]
ARM_PREFIX, QUALITY_PREFIX = "ablation-", "quality-"  # of the names of arms and of samples
PRIVACY_PREFIX = "privacy-"  # of the name of the main run's visits at ages and sexes of training patients
# Settings of every arm. One evaluation, at the end of the training: all arms are compared after equal
# budgets. No loss on forbidden codes, whatever train says: an arm adds it, and must differ from the
# reference.
OF_EVERY_ARM = {"evaluations": 1, "forbidden_weight": 0.0}

EVALUATIONS = (
    *("heads", "duplicates", "medical_validity", "reconstruction", "curve", "fidelity", "classifier"),
    *("privacy", "likelihood", "canaries", "utility", "conditioning", "race"),
)
OF_EXTERNAL = ("medical_validity", "fidelity", "classifier", "privacy", "utility", "conditioning")
OF_A_RELEASE = (*OF_EXTERNAL, "race")
OF_AN_ARM = ("medical_validity", "fidelity")
# Evaluations that score `real` on the test visits; all others score it on the validation visits.
OF_TEST = ("medical_validity", "fidelity")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One set of visits to score. Paths are relative to the working directory."""

    name: str  # in paths and records
    results: str  # folder of the experiment's results
    kind: str  # training, privacy, arm, sample, naive, external or real
    source: str  # the name under `runs` or `arms`, a sample's run or method, the file of external visits
    modes: tuple[str, ...]
    evaluations: Mapping[str, tuple[str, ...]]  # target -> evaluations of this run that it needs
    visits: Mapping[str, int]  # evaluation -> largest number of visits that it scores

    trained_by: str | None = None  # the run whose model generates it; None without a model
    train: Mapping[str, Any] | None = None  # keywords of its training without the untracked ones
    attacked: str | None = None  # the run whose model is attacked: its own, for `real` the main run's
    planted: Mapping[str, int] | None = None  # its canaries; for `real` those of the first run with any

    seed: int = 0  # in its records: of the training, for a sample of the generation, else 0
    generation_seed: int
    patients: int | None = None  # None: one for each age and sex of `demographics`
    demographics: str  # source of ages and sexes: test, train or a CSV
    as_many_as_test: bool = False  # as many patients as the test set has, whatever `patients` says
    constrained: str  # which codes cannot be generated: none, hard or full
    large: bool = False  # the large sample of the quality table

    @property
    def exportable(self) -> bool:
        """Whether its visits may leave the experiment: those of a trained model without planted patients."""
        return self.trained_by is not None and self.planted is None

    @property
    def control(self) -> bool:
        """Whether it is the held-out real visits, for which privacy and race compute their controls."""
        return self.name == "real"

    @property
    def model(self) -> str | None:
        """Folder of the model that generates it; None without a model."""
        return f"{self.results}/models/{self.trained_by}" if self.trained_by else None

    @property
    def attacked_model(self) -> str:
        """Folder of the model that is attacked."""
        return f"{self.results}/models/{self.attacked}"

    @property
    def attacked_release(self) -> str:
        """Visits that the attacked model synthesized."""
        return f"{self.results}/synthetic/{self.attacked}/synthesize.parquet"

    @property
    def checkpoints(self) -> str:
        """Folder of its training's checkpoints."""
        return f"{self.results}/checkpoints/{self.name}"

    @property
    def synthesized(self) -> str:
        """The visits to score; for real ones the test visits."""
        if self.kind == "real":
            return f"{self.results}/dataset/test.parquet"
        return f"{self.results}/synthetic/{self.name}/synthesize.parquet"

    @property
    def release(self) -> str:
        """The visits to compare with the test visits; for real ones the validation visits."""
        return f"{self.results}/dataset/val.parquet" if self.kind == "real" else self.synthesized

    @property
    def counts(self) -> list[str]:
        """Counts of the generation; none for real visits."""
        return [] if self.kind == "real" else [f"{self.results}/synthetic/{self.name}/synthesize.json"]

    @property
    def held_out(self) -> Mapping[str, str | list[str]]:
        """Evaluation -> the visits that `real` is scored on; no more visits of this run are scored.

        Most figures depend on the number of visits. Empty for the samples of the quality table, which are
        compared at another n.
        """
        if self.kind in ("real", "sample"):
            return {name: [] for name in OF_A_RELEASE}
        dataset = f"{self.results}/dataset"
        return {name: f"{dataset}/{'test' if name in OF_TEST else 'val'}.parquet" for name in OF_A_RELEASE}

    @property
    def edits_in_training(self) -> bool:
        """Whether the training needs the validity table: for a term of the loss, or to invent canaries."""
        return bool(self.train and (self.train["forbidden_weight"] or self.train["canaries"]))

    @property
    def edits_in_generation(self) -> bool:
        """Whether the generation needs the validity table."""
        return self.constrained != "none"

    @property
    def demographics_file(self) -> list[str]:
        """The CSV of requested patients, if there is one."""
        return [] if self.demographics in ("test", "train") else [self.demographics]

    @property
    def source_files(self) -> list[str]:
        """The file of external visits, or the files of its folder and of the folders in it."""
        path = Path(self.source)
        return (
            sorted(str(file) for file in path.rglob("*") if file.is_file()) if path.is_dir() else [str(path)]
        )


def all_runs(config: Config, results: str) -> dict[str, Run]:
    """Name -> run, for all runs of the checked config; `results` is the folder of the experiment.

    Raises UserError for external visits with the name of another run.
    """
    generate = config["generate"]
    defaults = Run(
        name="",
        results=results,
        kind="",
        source="",
        modes=("synthesize",),
        evaluations={},
        visits=dict.fromkeys((*OF_A_RELEASE, "likelihood"), config["evaluate"]["visits"]),
        generation_seed=generate["seed"],
        patients=generate["patients"],
        demographics=generate["demographics"],
        constrained=generate["constrained"],
    )
    trainings = list(_trainings(config, defaults))
    others = (
        *_privacy(config, defaults, trainings),
        *_naive(config, defaults),
        *_real(config, defaults, trainings),
        *_arms(config, defaults),
        *_samples(config, defaults, trainings),
        *_external(config, defaults),
    )
    runs = {run.name: run for run in trainings}
    for run in others:
        if run.name in runs:
            raise UserError(f"config: evaluate.external.{run.name}: this name is taken; choose another one")
        runs[run.name] = run
    return runs


def records(runs: Iterable[Run], target: str) -> list[str]:
    """Files of the records that the summary of a target needs, evaluation by evaluation."""
    return [
        f"{run.results}/evaluation/{run.name}/{evaluation}.json"
        for evaluation in EVALUATIONS
        for run in runs
        if evaluation in run.evaluations.get(target, ())
    ]


def main_run(config: Config, runs: Iterable[Run]) -> Run:
    """The run of the criteria; with several seeds that of the first seed."""
    return next(run for run in runs if run.kind == "training" and run.source == config["main_run"])


def _trainings(config: Config, defaults: Run) -> Iterator[Run]:
    """`<run>`, or `<run>-s<seed>` with several seeds; the first seed of each is in the quality table."""
    first, count = config["train"]["seed"], config["seeds"]
    for source, own in config["runs"].items():
        for seed in range(first, first + count):
            name = f"{source}-s{seed}" if count > 1 else source
            train = _train_keywords(config, own, seed)
            planted = _planted(train)
            evaluations = ("heads", "duplicates", "reconstruction", "curve", "likelihood", *OF_A_RELEASE)
            targets = {"evaluate_all": (*evaluations, "canaries") if planted else evaluations}
            if seed == first and not planted:
                targets["quality"] = ("reconstruction",)
            yield replace(
                defaults,
                name=name,
                kind="training",
                source=source,
                modes=("reconstruct", "synthesize"),
                evaluations=targets,
                trained_by=name,
                train=train,
                attacked=name,
                planted=planted,
                seed=seed,
            )


def _privacy(config: Config, defaults: Run, trainings: list[Run]) -> Iterator[Run]:
    """`privacy-<main run>`: the main run at ages and sexes of training patients, which is attacked too.

    The visits of the main run have the ages and sexes of the test patients, who are the non-members of the
    attack, which makes the release more similar to them; a published cohort has those of training patients.
    No such run if the main run has them already.
    """
    main = main_run(config, trainings)
    if defaults.demographics == "train":
        return
    yield replace(
        defaults,
        name=f"{PRIVACY_PREFIX}{main.name}",
        kind="privacy",
        source=main.source,
        evaluations={"evaluate_all": ("privacy",)},
        trained_by=main.name,
        attacked=main.name,
        seed=main.seed,
        demographics="train",
        as_many_as_test=True,
    )


def _arms(config: Config, defaults: Run) -> Iterator[Run]:
    """`ablation-<arm>-s<seed>`; an arm with the `model` of another one is not trained."""
    ablation, first = config["ablation"], config["train"]["seed"]
    of_all = {"preset": ablation["preset"], "tokens": ablation["tokens"], **OF_EVERY_ARM}
    for source, own in ablation["arms"].items():
        model = own.get("model", source)
        for seed in range(first, first + ablation["seeds"]):
            trained_by = f"{ARM_PREFIX}{model}-s{seed}"
            train = _train_keywords(config, of_all | ablation["arms"][model], seed)
            trains = model == source
            yield replace(
                defaults,
                name=f"{ARM_PREFIX}{source}-s{seed}",
                kind="arm",
                source=source,
                evaluations={"ablation": (*OF_AN_ARM, "heads") if trains else OF_AN_ARM},
                trained_by=trained_by,
                train=train if trains else None,
                attacked=trained_by,
                planted=_planted(train),
                seed=seed,
                constrained=own.get("constrained", defaults.constrained),
            )


def _samples(config: Config, defaults: Run, trainings: list[Run]) -> Iterator[Run]:
    """`quality-<source>-g<seed>`, and with the first seed the large sample `quality-<source>-large`.

    The sources are the main run, the other runs without canaries and the naive methods. A name identifies a
    sample except for the number of patients, so one more seed adds samples and changes none. Classifier,
    privacy and utility take minutes each and score only the first seed; the classifier is void on few visits,
    so it scores the large sample too.
    """
    quality, first = config["quality"], config["generate"]["seed"]
    main = main_run(config, trainings)
    compared = [main, *(run for run in trainings if "quality" in run.evaluations and run is not main)]
    models = [run.name for run in compared]
    methods = [method for method in config["naive"] if "synthesize" in NAIVE[method]]
    parts = [(f"g{seed}", seed, quality["patients"]) for seed in range(first, first + quality["seeds"])]
    parts.append(("large", first, quality["large"]))
    more = {f"g{first}": ("classifier", "privacy", "utility"), "large": ("classifier",)}
    for source in (*models, *methods):
        for part, seed, patients in parts:
            yield replace(
                defaults,
                name=f"{QUALITY_PREFIX}{source}-{part}",
                kind="sample",
                source=source,
                evaluations={"quality": (*OF_AN_ARM, *more.get(part, ()))},
                visits=_visits_of_quality(defaults, patients),
                trained_by=source if source in models else None,
                attacked=source if source in models else None,
                seed=seed,
                generation_seed=seed,
                patients=patients,
                demographics="test",  # whatever generate says: the targets are for held-out patients
                large=part == "large",
            )


def _naive(config: Config, defaults: Run) -> Iterator[Run]:
    """The naive methods, with one patient for each test patient."""
    for method in config["naive"]:
        modes = NAIVE[method]
        released = OF_A_RELEASE if "synthesize" in modes else ()
        reconstructed = ("reconstruction",) if "reconstruct" in modes else ()
        scored = ("curve",) if method in SCORING else ()
        yield replace(
            defaults,
            name=method,
            kind="naive",
            source=method,
            modes=modes,
            evaluations={
                "evaluate_all": (*released, *reconstructed, *scored),
                "evaluate_external": OF_EXTERNAL if released else (),
                "quality": reconstructed if released or scored else (),
            },
            patients=None,
            demographics="test",
            constrained="none",
        )


def _real(config: Config, defaults: Run, trainings: list[Run]) -> Iterator[Run]:
    """`real`, and `quality-real`, which is scored on as many visits as the samples of the quality table."""
    planted = next((run.planted for run in trainings if run.planted), None)
    real = replace(defaults, kind="real", source="", patients=None, demographics="test", constrained="none")
    yield replace(
        real,
        name="real",
        evaluations={
            "evaluate_all": (*OF_A_RELEASE, "likelihood", *(("canaries",) if planted else ())),
            "evaluate_external": OF_EXTERNAL,
            "ablation": OF_AN_ARM,
            "quality": ("medical_validity", "classifier", "privacy"),
        },
        attacked=main_run(config, trainings).name,
        planted=planted,
    )
    yield replace(
        real,
        name=f"{QUALITY_PREFIX}real",
        evaluations={"quality": ("fidelity", "classifier", "utility")},
        visits=_visits_of_quality(defaults, config["quality"]["patients"]),
    )


def _external(config: Config, defaults: Run) -> Iterator[Run]:
    """Visits of other generators."""
    for name, path in config["evaluate"]["external"].items():
        yield replace(
            defaults, name=name, kind="external", source=path, evaluations={"evaluate_external": OF_EXTERNAL}
        )


def _train_keywords(config: Config, own: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The section train with a run's own keys, sorted, without those that must not cause a rerun."""
    keywords = {**config["train"], **own, "seed": seed}
    dropped = (
        *UNTRACKED["train"],
        "model",
        "constrained",
    )  # the last two affect generation only
    return {key: keywords[key] for key in sorted(keywords) if key not in dropped}


def _planted(train: Mapping[str, Any]) -> dict[str, int] | None:
    """The canaries of a training as keywords of evaluate_canaries; None without canaries."""
    if not train["canaries"]:
        return None
    return {
        "canaries": train["canaries"],
        "canary_repeats": train["canary_repeats"],
        "canary_seed": train["seed"],
    }


def _visits_of_quality(defaults: Run, patients: int) -> dict[str, int]:
    """Visits to score: for fidelity as many as patients, for classifier and utility at most that."""
    own = defaults.visits
    of_training = {name: min(own[name], patients) for name in ("classifier", "utility")}
    return {**own, **of_training, "fidelity": patients}
