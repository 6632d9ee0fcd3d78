#!/usr/bin/env bash
# A sweep as one Slurm job: Ray's head and the driver on the first node, Ray workers on all of them.
#
#   sbatch [options of sbatch] study/cluster/slurm.sh --space NAME --storage DIR --data-dir DIR [options of study.run]
#
# in an activated environment that all nodes can access. Options on sbatch's command line override those below; ask for
# 8 CPUs per GPU, since up to 8 trials share one. Shortly before the time limit the driver is stopped and the job is
# requeued; it continues from the epoch checkpoints.
#SBATCH --job-name=sparse-symmetry
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --signal=B:USR1@180
set -euo pipefail

job=${SLURM_JOB_ID:?submit this with sbatch} nodes=$SLURM_JOB_NUM_NODES
address=${HEAD_ADDRESS:-$({ getent ahostsv4 "$(hostname)"; hostname -I | tr ' ' '\n'; } |
  awk '$1 !~ /^127[.]/ && !found++ { print $1 }')} # the address at which other nodes reach this one
cluster=$address:$((20000 + job % 10000))
directory=/tmp/ray-$job

export RAY_AUTH_MODE=token RAY_AUTH_TOKEN # the network is shared: only holders of the token can run code in your name
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_memory_monitor_refresh_ms=0 RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1 RAY_USAGE_STATS_ENABLED=0
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not inherit it from sbatch

driver='' requeue=''
# shellcheck disable=SC2329 # called by traps
stop() {
  [ -n "$driver" ] || exit 1
  kill -TERM "$driver" || true
}
# shellcheck disable=SC2329
tear_down() { # ends only this job's processes; `ray stop` would also end the user's other clusters on these nodes
  local running
  running=$(jobs -p)
  # shellcheck disable=SC2086 # one word per process
  [ -z "$running" ] || kill -TERM $running 2>/dev/null || true
  wait
  srun --nodes="$nodes" --ntasks="$nodes" rm -rf "$directory" || true
  [ -z "$requeue" ] || scontrol requeue "$job"
}
trap tear_down EXIT
trap stop TERM
trap 'requeue=yes; stop' USR1

# Other Ray clusters may run on these nodes: the system picks the worker ports, and the directory is this job's own.
ray_start=(ray start --block --num-cpus="$SRUN_CPUS_PER_TASK" --min-worker-port=0 --max-worker-port=0)
srun --nodes=1 --ntasks=1 --relative=0 "${ray_start[@]}" --head --node-ip-address="$address" --port="${cluster#*:}" \
  --temp-dir="$directory" --include-dashboard=false &
head=$!
until ray health-check --address "$cluster" 2>/dev/null; do
  kill -0 "$head" || exit 1
  sleep 1
done
if ((nodes > 1)); then
  srun --nodes=$((nodes - 1)) --ntasks=$((nodes - 1)) --relative=1 --no-kill --kill-on-bad-exit=0 \
    "${ray_start[@]}" --address="$cluster" &
fi

python -m study.run --address "$cluster" "$@" &
driver=$!
while kill -0 "$driver" 2>/dev/null; do # a signal ends `wait` but not the driver
  wait "$driver" || true
done
wait "$driver" # its exit status becomes the job's
