#!/usr/bin/env bash
# Snakemake itself as a job, for clusters that allow no long processes on the login node. Run it in the folder where
# results/ is to be written, with the environment active:
#
#   sbatch PATH/profiles/slurm/submit.sh --configfile PATH/config/mimic3.yaml --config raw_dir=/data/mimic-iii-1.4
#
# Options are Snakemake's own. It takes a core and little memory; when its time runs out, submit it again.
#SBATCH --job-name=cohortloom-snakemake
#SBATCH --dependency=singleton
#SBATCH --time=7-00:00:00
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --output=snakemake-%j.log
set -euo pipefail

# sbatch runs a copy of this script; the original's place is in its command line.
here=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=\([^ ]*\).*/\1/p')
workflow=$(cd "$(dirname "$here")/../.." && pwd)
run=(snakemake --snakefile "$workflow/Snakefile" --workflow-profile "$workflow/profiles/default" --profile "$workflow/profiles/slurm")

# `singleton` lets one of these run at a time, so a lock was left by one that was killed. Its trainings may still run:
# they hold their checkpoints, and a second training waits.
"${run[@]}" --unlock "$@"
exec "${run[@]}" "$@"
