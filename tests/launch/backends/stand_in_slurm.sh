#!/bin/sh
# A stand-in for sbatch, squeue, sacct, scancel, scontrol and srun, by the name that it is called by. $STAND_IN
# holds calls (what was called), codes (what each start of the run ends with: an exit code, `wait` for SIGTERM
# and then 75, or `deaf`), and at choice refuse-NAME (that command fails), refuse-NAME-once, remembered (what the
# controller says of a job that is over), shown (what scontrol says of the job), and signal-NAME (the caller gets
# it; from squeue once the run hears, or is pending). A queued script runs at once; job 7 is the only one.
name=${0##*/}
cd "$STAND_IN" || exit 1
echo "$name $*" >> calls
if [ -e "signal-$name" ] && { [ "$name" != squeue ] || [ -e srun ] || [ -e pending ]; }; then
  read -r number < "signal-$name"
  rm "signal-$name"
  kill -"$number" "$PPID"
fi
if [ -e "refuse-$name-once" ]; then rm "refuse-$name-once"; echo "$name: error: busy" >&2; exit 1; fi
if [ -e "refuse-$name" ]; then echo "$name: error: not today" >&2; exit 1; fi
case $name in
  sbatch)
    for script; do :; done
    log=$(sed -n 's/^#SBATCH --output=//p' "$script")
    if [ -e pending ]; then echo '7;cluster'; exit; fi
    (
      count=0
      while :; do
        rm -f requeued
        SLURM_JOB_ID=7 SLURM_RESTART_COUNT=$count bash "$script" >> "$log" 2>&1
        code=$?
        [ -e requeued ] || break
        count=$((count + 1))
      done
      echo "$code" > over
    ) < /dev/null > /dev/null 2>&1 &
    echo '7;cluster' ;;
  squeue)
    case "$*" in *--states=all*) if [ -e remembered ]; then cat remembered; fi; exit ;; esac
    if [ -e pending ]; then echo PENDING; elif [ -e over ]; then echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1; else echo RUNNING; fi ;;
  sacct) if [ -e account ]; then cat account; fi ;;
  scontrol)
    case $1 in
      requeue) touch requeued ;;
      show) if [ -e shown ]; then cat shown; else echo "JobId=7 JobState=RUNNING Restarts=${SLURM_RESTART_COUNT:-0} x"; fi ;;
    esac ;;
  scancel)
    rm -f pending
    case $1 in --signal=TERM) kill -TERM "$(cat srun)" ;; *) if [ -e srun ]; then kill -KILL "$(cat srun)"; fi ;; esac ;;
  srun)
    while [ "${1#--}" != "$1" ]; do shift; done
    printf '%s\0' "$@" > arguments
    read -r code rest < codes
    echo "$rest" > codes
    echo "run $SLURM_RESTART_COUNT of $DRO_JAX_CLUSTER 🙂"
    trap 'exit 75' TERM
    [ "$code" = deaf ] && trap '' TERM
    echo $$ > srun
    case $code in wait | deaf) while :; do sleep 0.02; done ;; esac
    exit "$code" ;;
esac
