#!/bin/bash
# Slurm on this host alone: a cluster of one node, started in a folder of its own and stopped when standard input ends.
#
#   tests/launch/slurm_node.sh FOLDER       and in another terminal, once it says "idle":
#   SLURM_CONF=FOLDER/slurm.conf sbatch ...
#
# Needs Slurm and MUNGE (Debian: apt-get install slurm-wlm munge), no cgroups, and no right that the user lacks. All that
# it starts are children of this script; it waits for their end. TASKS says how many tasks the node takes (2), whatever
# cores it has.
set -euo pipefail

[ "$#" -eq 1 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
export PATH=$PATH:/usr/sbin:/usr/local/sbin
for program in munged slurmctld slurmd sinfo; do
  command -v "$program" >/dev/null || { echo "slurm_node: $program is not installed" >&2; exit 3; }
done

mkdir -p "$1"
folder=$(cd "$1" && pwd)
tasks=${TASKS:-2}
user=$(id -un) host=$(hostname -s)
mkdir -p "$folder"/{munge,state,spool,log}
chmod 700 "$folder/munge"
head -c 128 /dev/urandom >"$folder/munge/key"
chmod 400 "$folder/munge/key"

free_ports() {
  python3 -c 'import socket
found = [socket.socket() for _ in range(2)]
for one in found: one.bind(("", 0))
print(*(one.getsockname()[1] for one in found))'
}
read -r controller daemon < <(free_ports)

cat >"$folder/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$controller
SlurmdPort=$daemon
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=30
NodeName=localhost NodeAddr=127.0.0.1 CPUs=$tasks RealMemory=1000 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=all Nodes=localhost Default=YES DefaultTime=10 PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=urgent Nodes=localhost DefaultTime=10 PriorityTier=2 PreemptMode=OFF
CONF
export SLURM_CONF=$folder/slurm.conf

started=()
stop() {
  trap - EXIT
  scancel --quiet --signal=KILL --user="$user" 2>/dev/null || true
  scancel --quiet --user="$user" 2>/dev/null || true
  for _ in {1..80}; do
    [ -n "$(timeout 5 squeue --noheader 2>/dev/null || true)" ] || break
    sleep 0.5
  done
  for ((place = ${#started[@]} - 1; place >= 0; place--)); do
    kill "${started[place]}" 2>/dev/null || true
    wait "${started[place]}" || true
  done
}
trap stop EXIT
trap 'exit 143' TERM INT HUP

munged --foreground --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
  --pid-file="$folder/munge/pid" --log-file="$folder/log/munged.log" --seed-file="$folder/munge/seed" \
  </dev/null >"$folder/log/munged.out" 2>&1 &
started+=("$!")
for _ in {1..50}; do
  [ ! -S "$folder/munge/socket" ] || break
  sleep 0.1
done
slurmctld -D -c </dev/null >"$folder/log/slurmctld.out" 2>&1 &
started+=("$!")
slurmd -D -N localhost </dev/null >"$folder/log/slurmd.out" 2>&1 &
started+=("$!")

for _ in {1..60}; do
  state=$(timeout 5 sinfo --noheader --format=%T 2>/dev/null || true)
  for pid in "${started[@]}"; do
    kill -0 "$pid" 2>/dev/null || state="stopped"
  done
  [ "$state" != idle ] && [ "$state" != stopped ] || break
  sleep 0.5
done
if [ "$state" != idle ]; then
  echo "slurm_node: the node is not idle but ${state:-unknown}" >&2
  tail -n 5 "$folder"/log/* >&2
  exit 4
fi
echo "idle: SLURM_CONF=$SLURM_CONF"
exec 3<&0
cat <&3 >/dev/null &
started+=("$!")
wait "$!"
