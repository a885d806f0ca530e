#!/usr/bin/env bash
# Everything that a machine with an NVIDIA GPU can tell, in one call; one table at the end, whatever
# fails or is interrupted before.
#
#   tests/gpu/run.sh            tests, compute-sanitizer, benchmark (about ten minutes)
#   tests/gpu/run.sh --quick    the tests and a small benchmark
#
# PYTHON chooses the interpreter; its environment has the extra "cuda" and pytest, and, to be quick,
# pytest-xdist: most of the tests' time is compilation.  The NumPy there must be one that its Numba
# knows (numba 0.68: below 2.5); an older one may stand before it on PYTHONPATH.
# SANITIZER names compute-sanitizer, which a CUDA toolkit has, where it is not found by itself.
# GPU_RESULTS is where logs and cuda.json go (default: a temporary folder, which is named).
# STEP_SECONDS is what each step may take (default 900); one that takes longer has failed.
# Exit codes: 0 all that was run passed, 1 something failed or there is no GPU, 2 wrong usage.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
unset NUMBA_ENABLE_CUDASIM

quick=no
case "${1:-}" in
    "") ;;
    --quick) quick=yes ;;
    *) echo "usage: tests/gpu/run.sh [--quick]" >&2; exit 2 ;;
esac
python="${PYTHON:-python3}"
results="${GPU_RESULTS:-$(mktemp -d)}"
limit="${STEP_SECONDS:-900}"
mkdir -p "$results"
rm -f "$results/cuda.json"
: >"$results/outcomes"
jobs=()

note() { printf '%s\t%s\t%s\n' "$1" "$2" "$3" >>"$results/outcomes"; }

outcome() { # exit code, log
    local last
    last="$(grep -v '^\s*$' "$2" | tail -n 1 | tr -d '\t' | cut -c1-100)"
    case "$1" in
        0) echo "passed: $last" ;;
        124) echo "FAILED: not over after $limit s" ;;
        *) echo "FAILED ($1): $last" ;;
    esac
}

finish() {
    local code=$?
    trap - EXIT INT TERM
    ((${#jobs[@]})) && kill -- "${jobs[@]}" 2>/dev/null
    printf '\n'
    "$python" tests/gpu/table.py "$results/outcomes" "$results/cuda.json" || cat "$results/outcomes"
    echo "logs: $results"
    grep -q $'\tFAILED' "$results/outcomes" && code=1
    exit "$code"
}
trap finish EXIT
trap 'note "interrupted" "FAILED: by a signal" "$SECONDS"; exit 1' INT TERM

run() { # name, command ...
    local name="$1" begin=$SECONDS code=0 log
    shift
    log="$results/${name// /-}.log"
    printf '\n== %s\n' "$name"
    timeout -k 10 "$limit" "$@" </dev/null 2>&1 | tee "$log" | tail -n 25
    code="${PIPESTATUS[0]}"
    note "$name" "$(outcome "$code" "$log")" "$((SECONDS - begin))"
}

run "doctor" "$python" -m sparse_embed doctor
if ! "$python" -c 'from sparse_embed.device import check_cuda; check_cuda(0)' \
    >"$results/check.log" 2>&1; then
    note "GPU" "FAILED: $(tail -n 1 "$results/check.log" | cut -c1-160)" 0
    exit 1
fi
# pytest-benchmark warns when it meets xdist, and warnings are errors here.
pytest=("$python" -m pytest -q -p no:benchmark)
workers=()
"$python" -c 'import xdist' 2>/dev/null && workers=(-n "$(nproc)")
run "tests" "${pytest[@]}" "${workers[@]}" -m cuda tests/gpu
run "ptx" "${pytest[@]}" "${workers[@]}" tests/gpu/test_ptx.py

# Before the sanitizer: what its jobs leave behind slows the host, and short calls with it.
sizes=()
[[ "$quick" == yes ]] && sizes=(--quick)
run "benchmark" "$python" -m benchmarks run "${sizes[@]}" --json "$results/cuda.json" cuda

find_sanitizer() {
    local found
    if [[ -n "${SANITIZER:-}" ]]; then echo "$SANITIZER"; return; fi
    command -v compute-sanitizer && return
    for found in /usr/local/cuda*/bin/compute-sanitizer /opt/cuda*/bin/compute-sanitizer \
        "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"/nvidia/*/bin/compute-sanitizer; do
        if [[ -x "$found" ]]; then echo "$found"; return; fi
    done
}
sanitizer="$(find_sanitizer)"
if [[ "$quick" == yes ]]; then
    note "sanitizer" "not run: --quick" 0
elif [[ -z "$sanitizer" ]]; then
    note "sanitizer" "not run: no compute-sanitizer on this machine" 0
else
    # A part that launches every kernel: the whole would take hours under its instruments.  The
    # kernels are compiled by now; every tool has every file to itself, as many at a time as there
    # are processors.
    printf '\n== sanitizer\n'
    export limit results sanitizer
    export command="${pytest[*]}"
    export some="not hot_rows and not zipf and not random_rows and not everywhere"
    sanitize() { # tool, file
        local begin=$SECONDS code=0 log="$results/sanitizer-$1-$2.log"
        # racecheck loses launches that two threads make, and does not end (CUDA 13.0).
        [[ "$1" == racecheck ]] && some+=" and not two_threads"
        timeout -k 10 "$limit" "$sanitizer" --tool "$1" --error-exitcode 9 $command -x \
            -m "cuda and not slow" -k "$some" "tests/gpu/test_$2.py" </dev/null >"$log" 2>&1 &
        trap "kill $!" TERM
        wait $! || code=$?
        echo "$code $((SECONDS - begin))" >"${log%.log}.code"
    }
    export -f sanitize
    tools=(memcheck racecheck initcheck synccheck)
    files=(operations narrow_operations device_recommend device_cache device_collection)
    for file in "${files[@]}"; do printf "%s $file\n" "${tools[@]}"; done |
        setsid xargs -P "$(nproc)" -n 2 bash -c 'sanitize "$0" "$1"' &
    jobs+=("-$!")
    wait "$!"
    jobs=()
    for tool in "${tools[@]}"; do
        for file in "${files[@]}"; do
            log="$results/sanitizer-$tool-$file.log"
            read -r code took <"${log%.log}.code" || code=1 took=0
            note "sanitizer $tool $file" "$(outcome "$code" "$log")" "$took"
        done
    done
fi
exit 0
