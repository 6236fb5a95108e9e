# What the job scripts share. They are sourced from the project's folder, where sbatch is called.
set -euo pipefail
export PYTHONUNBUFFERED=1
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
interrupted=75 # main_train.py ends with it when it has saved what it needs to go on
too_early=138  # or the warning came while Python was starting

# Run a command as a job step. Slurm sends its signals to the processes of job steps, not to this script.
# A command that was interrupted starts again where it was, when the job's turn comes again.
run() {
    local status=0
    echo "$(date '+%F %T') job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)): $*"
    srun --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "$@" || status=$?
    if [ "$status" = "$interrupted" ] || [ "$status" = "$too_early" ]; then
        echo "$(date '+%F %T') job $SLURM_JOB_ID interrupted, and queued again"
        scontrol requeue "$SLURM_JOB_ID"
        sleep 60 # until Slurm ends it
    fi
    return "$status"
}
