#!/usr/bin/env bash
# node.sh up DIR [CPUS] [MEM_MB] [GPUS] | down DIR: a Slurm of one node, for tests. Needs root, slurmctld and slurmd.
# No munge, no accounting database, no cgroups; its GPUs are null devices. What it cannot show stands in docs/cluster.md.
set -euo pipefail

conf=/etc/slurm # fixed: the executor drops SLURM_CONF from the environment of jobs, and they look here

down() {
    local daemon pid
    if [ -e "$1/slurmctld.pid" ]; then
        timeout 10 scancel --user="$(id -un)" 2>/dev/null || true
        for _ in $(seq 100); do [ -n "$(timeout 2 squeue --noheader 2>/dev/null)" ] || break; sleep 0.1; done
    fi
    for daemon in slurmd slurmctld; do
        pid=$(cat "$1/$daemon.pid" 2>/dev/null) || continue
        kill "$pid" 2>/dev/null || continue
        for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    done
    local file
    for file in slurm.conf gres.conf; do
        if [ "$(readlink "$conf/$file")" = "$1/$file" ]; then rm "$conf/$file"; fi
    done
}

up() {
    local dir=$1 cpus=${2:-8} mem=${3:-8000} gpus=${4:-2} host gpu
    host=$(hostname -s)
    # Links of a node that was killed and not taken down.
    local before
    before=$(dirname "$(readlink "$conf/slurm.conf" || true)")
    if [ -L "$conf/slurm.conf" ] && ! kill -0 "$(cat "$before/slurmctld.pid" 2>/dev/null)" 2>/dev/null; then
        rm -f "$conf/slurm.conf" "$conf/gres.conf"
    fi
    if [ -e "$conf/slurm.conf" ]; then echo "$conf/slurm.conf exists: this machine has a Slurm" >&2; exit 3; fi
    mkdir -p "$dir"/{state,spool,log,dev} "$conf"
    for gpu in $(seq 0 $((gpus - 1))); do [ -e "$dir/dev/gpu$gpu" ] || mknod "$dir/dev/gpu$gpu" c 1 3; done
    cat >"$dir/slurm.conf" <<CONF
ClusterName=toy
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
MinJobAge=3600
KillWait=5
GresTypes=gpu
AccountingStorageType=accounting_storage/none
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$mem Gres=gpu:toy:$gpus State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=1-00:00:00 DefMemPerCPU=500 State=UP
CONF
    if [ "$gpus" -gt 1 ]; then gpu="[0-$((gpus - 1))]"; else gpu=0; fi
    echo "NodeName=$host Name=gpu Type=toy File=$dir/dev/gpu$gpu" >"$dir/gres.conf"
    ln -s "$dir/slurm.conf" "$dir/gres.conf" "$conf/"
    slurmctld -i
    slurmd
    for _ in $(seq 20); do [ -s "$dir/slurmctld.pid" ] && break || sleep 0.05; done
    for _ in $(seq 200); do
        if [ "$(timeout 2 sinfo --noheader --format %T 2>/dev/null)" = idle ]; then return; fi
        kill -0 "$(cat "$dir/slurmctld.pid")" 2>/dev/null || break
        sleep 0.05
    done
    tail "$dir"/log/*.log >&2
    down "$dir"
    exit 1
}

mkdir -p "$2"
dir=$(cd "$2" && pwd)
case $1 in
up) up "$dir" "${@:3}" ;;
down) down "$dir" ;;
*) sed -n 2,3p "$0" >&2 && exit 2 ;;
esac
