# Cohortloom: synthetic patient records, from raw tables to a scorecard.
#
#   raw tables -> preprocess -> build_dataset -> train -> generate -> evaluate_* -> summarize
#
# `snakemake evaluate_all` runs everything; config/README.md says what can be set.
from snakemake.utils import min_version

min_version("9.0")


# The demo. An overlay (--configfile config/mimic3.yaml) holds only what differs from it.
configfile: f"{workflow.basedir}/config/config.yaml"


include: "rules/common.smk"  # the checked config, the registry of runs
include: "rules/cohort.smk"  # raw tables -> visits, without race
include: "rules/dataset.smk"  # visits -> split, vocabulary, token ids
include: "rules/train.smk"  # token ids -> one model a run
include: "rules/generate.smk"  # models and naive methods -> synthetic visits
include: "rules/evaluate.smk"  # synthetic visits -> records, scorecard, report
include: "rules/external.smk"  # another generator's visits -> the same records, a scorecard of their own
include: "rules/ablation.smk"  # what each part of the model is worth: arms, trained and compared
include: "rules/quality.smk"  # the table of targets: several generation seeds and one large sample, judged
include: "rules/export.smk"  # synthesized visits in formats that other tools read
include: "rules/publish.smk"  # the main model and a cohort of it, for others
include: "rules/blind_test.smk"  # a page on which readers tell real from synthetic visits


# Every run in every mode, the scorecard and the report.
rule evaluate_all:
    default_target: True
    input:
        rules.summarize.output,


# The visits named under evaluate.external, against the same real data; nothing is trained.
rule evaluate_external:
    input:
        rules.summarize_external.output,


# The arms named under ablation, compared seed by seed.
rule ablation:
    input:
        rules.summarize_ablation.output,


# The main run's figures over several generation seeds, beside their targets.
rule quality:
    input:
        rules.summarize_quality.output,


# The synthesized visits of trained runs in the formats named under export.
rule export:
    input:
        exported_files,
