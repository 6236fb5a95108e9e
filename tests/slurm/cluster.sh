#!/usr/bin/env bash
# A Slurm of one node on this machine, for tests, beside any other that runs here: own ports, own folder.
#
#   cluster.sh install        install Slurm and munge with apt (as root), if they are not there
#   cluster.sh start FOLDER   start it; then `export SLURM_CONF=FOLDER/slurm.conf` and use sbatch, squeue, ...
#   cluster.sh stop FOLDER    stop what `start` has started, jobs and all, and nothing else
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"
ctld_port=26817
d_port=26818

install() {
    command -v slurmctld slurmd munged sbatch >/dev/null && return
    export DEBIAN_FRONTEND=noninteractive
    # The packages would start their own services, which the test does without.
    apt-get update >/dev/null
    RUNLEVEL=1 apt-get install --yes --no-install-recommends slurm-wlm munge >/dev/null
}

start() {
    local folder="$1"
    mkdir -p "$folder"/{spool,state}
    chmod 755 "$folder"
    (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
    cat >"$folder/slurm.conf" <<END
ClusterName=test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
SlurmctldPort=$ctld_port
SlurmdPort=$d_port
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=5,bf_interval=5
KillWait=10
Licenses=sps:100
GresTypes=gpu
NodeName=localhost NodeAddr=127.0.0.1 CPUs=8 RealMemory=200000 Gres=gpu:v100:4 State=UNKNOWN
PartitionName=gpu Nodes=localhost Default=YES MaxTime=INFINITE State=UP
PartitionName=htc Nodes=localhost MaxTime=INFINITE State=UP
END
    # GPUs in name only: the job scripts ask for them, and the training takes the CPU.
    touch "$folder"/gpu{0,1,2,3}
    echo "NodeName=localhost Name=gpu Type=v100 File=$folder/gpu[0-3]" >"$folder/gres.conf"
    export SLURM_CONF="$folder/slurm.conf"
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munged.log" --seed-file="$folder/munged.seed"
    slurmctld -f "$SLURM_CONF"
    slurmd -N localhost -f "$SLURM_CONF"
    for _ in $(seq 60); do
        [ "$(sinfo --noheader --partition=gpu --format=%T 2>/dev/null)" = idle ] && return
        sleep 1
    done
    tail -n 20 "$folder"/*.log >&2
    echo "error: $folder: Slurm has not started" >&2
    return 1
}

stop() {
    local folder="$1" name pid
    export SLURM_CONF="$folder/slurm.conf"
    squeue --noheader --format=%i 2>/dev/null | xargs --no-run-if-empty scancel || true
    for _ in $(seq 20); do
        [ -n "$(squeue --noheader 2>/dev/null)" ] || break
        sleep 1
    done
    for name in slurmd slurmctld munged; do
        [ -s "$folder/$name.pid" ] || continue
        pid="$(cat "$folder/$name.pid")"
        # The number may be another process's by now.
        [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$name" ] || continue
        kill "$pid"
        for _ in $(seq 20); do
            [ -d "/proc/$pid" ] || break
            sleep 0.5
        done
    done
}

"$@"
