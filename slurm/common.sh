# What the job scripts share. They are sourced from the project's folder, where sbatch is called.
set -euo pipefail
export PYTHONUNBUFFERED=1
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
max_starts="${MAX_STARTS:-50}" # a job that has started so often makes no progress, and is not queued again
interrupted=75 # main_train.py ends with it when it has saved what it needs to go on
too_early=138  # or the warning came while Python was starting

# Run a command as a job step. Slurm sends its signals to the processes of job steps, not to this script.
# A command that was interrupted starts again where it was, when the job's turn comes again.
run() {
    local status=0
    echo "$(date '+%F %T') job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)): $*"
    srun --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "$@" || status=$?
    if [ "$status" = "$interrupted" ] || [ "$status" = "$too_early" ]; then
        if [ "$((${SLURM_RESTART_COUNT:-0} + 1))" -ge "$max_starts" ]; then
            echo "error: job $SLURM_JOB_ID has started $max_starts times: give it more --time" >&2
            return "$status"
        fi
        echo "$(date '+%F %T') job $SLURM_JOB_ID interrupted, and queued again"
        # One task of an array has the number of the whole array, which names them all.
        if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then
            scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
        else
            scontrol requeue "$SLURM_JOB_ID"
        fi
        sleep 60 # until Slurm ends it
    fi
    return "$status"
}
