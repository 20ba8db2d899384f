#!/usr/bin/env bash
# Runs Snakemake's jobs as jobs of Kubernetes; config.yaml beside it calls it, from the project's folder.
#   job.sh submit NAME THREADS MEM_MB MINUTES GPUS SCRIPT    prints the job's id
#   job.sh status ID                                         prints running, success or failed
#   job.sh run SCRIPT                                        what the pod does
#   job.sh ID...                                             cancels
# VOXPRIOR_POD_IMAGE and VOXPRIOR_CLAIM are asked for; VOXPRIOR_MOUNT (/shared), VOXPRIOR_NAMESPACE (default) may be set.
set -euo pipefail
kubectl=(${KUBECTL:-kubectl} --namespace "${VOXPRIOR_NAMESPACE:-default}")

submit() {
    local name=$1 threads=$2 mem_mb=$3 minutes=$4 gpus=$5 script=$6 limits
    local image=${VOXPRIOR_POD_IMAGE:?names the image that holds voxprior} claim=${VOXPRIOR_CLAIM:?names the volume claim}
    local mount=${VOXPRIOR_MOUNT:-/shared} here
    here=$(pwd -P)
    if [[ $here/ != "$mount"/* ]]; then
        echo "job.sh: $here is not below $mount: start Snakemake on the volume, jobs resume from its work/" >&2
        exit 2
    fi
    limits="cpu: \"$threads\", memory: ${mem_mb}M"
    if [ "$gpus" -gt 0 ]; then limits+=", nvidia.com/gpu: \"$gpus\""; fi
    "${kubectl[@]}" create -f - -o 'jsonpath={.metadata.name}' <<YAML
apiVersion: batch/v1
kind: Job
metadata:
  generateName: voxprior-$(tr A-Z_ a-z- <<<"$name")-
  labels: {app: voxprior}
spec:
  backoffLimit: 0 # Snakemake tries again, with more memory
  template:
    spec:
      restartPolicy: Never
      activeDeadlineSeconds: $((minutes * 60))
      terminationGracePeriodSeconds: 120
      securityContext: {runAsUser: $(id -u), runAsGroup: $(id -g)} # whose files the volume holds
      containers:
      - name: job
        image: "$image"
        workingDir: "$here"
        command: [bash, "$(cd "$(dirname "$0")" && pwd -P)/job.sh", run, "$script"]
        env:
        - {name: HOME, value: /tmp}
        - {name: NUMBA_CACHE_DIR, value: "$here/work/numba"} # else each pod compiles for seconds what the last one did
        resources: {limits: {$limits}}
        volumeMounts:
        - {name: shared, mountPath: "$mount"}
      volumes:
      - {name: shared, persistentVolumeClaim: {claimName: "$claim"}}
YAML
}

status() {
    local told
    # No answer says nothing about the job; an answer without a name says that it is gone.
    told=$("${kubectl[@]}" get job "$1" --ignore-not-found \
        -o 'jsonpath={.metadata.name}/{.status.succeeded}/{.status.failed}') || { echo running; return; }
    case $told in
    */1/*) echo success ;;
    "" | */1) echo failed ;;
    *) echo running ;;
    esac
}

run() {
    # A pod that has to end gets SIGTERM here and nowhere else. It is handed on as the warning that trainings save on;
    # shells and Snakemake, which are not to die of it, inherit that it is ignored.
    trap '' USR1
    set -m # a process group of its own for the job
    bash "$1" &
    local job=$!
    trap 'kill -USR1 -- "-$job"' TERM
    while kill -0 "$job" 2>/dev/null; do wait "$job" || true; done # the signal interrupts it
    wait "$job"
}

case $1 in
submit | status | run) "$@" ;;
*) "${kubectl[@]}" delete job --wait=false "$@" ;;
esac
