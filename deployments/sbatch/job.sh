# A flow inside a SLURM job: what analyze.sbatch and train.sbatch have in common.
#
# By the environment of sbatch:
#   AUTO3DSEG_HOME       folder of the project (default: where the job was submitted)
#   AUTO3DSEG_SETUP      shell lines that give the job its Python, such as 'module load cuda;
#                        conda activate auto3dseg' (default: the project's .venv)
#   AUTO3DSEG_SCRATCH    node-local folder for temporary files (default: TMPDIR, or else /tmp)
#   AUTO3DSEG_RESTARTS   how often the job starts again by itself (default: as long as it gets on;
#                        three starts in a row that saved nothing end it)
#   PREFECT_API_URL      a Prefect server that the node can reach (default: one inside the job)
#
# shellcheck shell=bash

# Pass a signal on to the flow and all its processes; trainings save and end.
tell() {
    told=$1
    [ -z "$flow_pid" ] || kill -s "$2" -- "-$flow_pid" 2>/dev/null
}

# What the flow finds: a Python, and folders that no other job has.
prepare() {
    if [ -n "${AUTO3DSEG_SETUP:-}" ]; then
        eval "$AUTO3DSEG_SETUP"
    elif [ -x "$project/.venv/bin/python" ]; then
        PATH=$project/.venv/bin:$PATH
    fi
    scratch=$(mktemp -d "${AUTO3DSEG_SCRATCH:-${TMPDIR:-/tmp}}/auto3dseg-$SLURM_JOB_ID.XXXXXX") || exit 1
    trap clean_up EXIT
    # The flow makes this file once it has noted its start (cellmap_core/cluster/starts.py).
    export TMPDIR=$scratch AUTO3DSEG_BEGUN=$scratch/begun
    # This job is the whole run: it starts no others, which its own server would not answer.
    unset AUTO3DSEG_SITE
    # SQLite, which the job's own server uses, wants a local disk.
    [ -n "${PREFECT_API_URL:-}" ] || export PREFECT_HOME=$scratch/prefect
}

clean_up() { rm -rf -- "$scratch"; }

# The flow's exit code, and the end of all its processes when it was told to end.
follow() {
    local seen
    while :; do
        seen=$told
        wait "$flow_pid"
        code=$?
        # A signal ends the wait, not the flow.
        [ "$told" != "$seen" ] || break
    done
    # A training may still be writing its checkpoint.
    while [ -n "$told" ] && kill -0 -- "-$flow_pid" 2>/dev/null; do sleep 1; done
}

# Start this job anew, as long as that may still help.
go_on() {
    local done=${SLURM_RESTART_COUNT:-0} most=${AUTO3DSEG_RESTARTS:-}
    if [ ! -e "$AUTO3DSEG_BEGUN" ]; then
        echo "The wall time is over before the flow has begun: submit the job again, with more of it (sbatch --time=...)."
        return
    fi
    if [ -z "$most" ] || [ "$done" -lt "$most" ]; then
        echo "The wall time is nearly over: job $SLURM_JOB_ID starts again (restart $((done + 1))${most:+ of $most})."
        clean_up # SLURM kills this script before it has ended.
        scontrol requeue "$SLURM_JOB_ID" && return
    fi
    echo "The wall time is nearly over: submit the job again, with the same options; it goes on."
}

run_flow() {
    local flow=$1 told="" flow_pid="" code
    shift
    # SLURM warns of the wall time by USR1 (--signal above), which is Ctrl-C to the flow. TERM comes
    # when the job is cancelled, or driven out by another: SLURM decides whether it starts again.
    trap 'tell wall INT' USR1
    trap 'tell end TERM' TERM
    prepare
    echo "$(date '+%F %T') job $SLURM_JOB_ID on $(hostname): flows/$flow.py $*"
    set -m # the flow gets a process group of its own, which can be told as a whole
    python "$project/flows/$flow.py" "$@" &
    flow_pid=$!
    [ -z "$told" ] || tell "$told" INT
    follow
    [ "$told" != wall ] || [ "$code" -eq 0 ] || go_on
    exit "$code"
}
