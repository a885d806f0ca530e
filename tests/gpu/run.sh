#!/usr/bin/env bash
# Everything that a machine with an NVIDIA GPU can tell, in one call; one table at the end.
#
#   tests/gpu/run.sh            tests, compute-sanitizer, benchmark (about ten minutes)
#   tests/gpu/run.sh --quick    the tests and a small benchmark
#
# PYTHON chooses the interpreter; its environment has the extra "cuda" and pytest, and, to be quick,
# pytest-xdist: most of the tests' time is compilation.  The NumPy there must be one that its Numba
# knows (numba 0.68: below 2.5); an older one may stand before it on PYTHONPATH.
# GPU_RESULTS is where logs and cuda.json go (default: a temporary folder, which is named).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
unset NUMBA_ENABLE_CUDASIM

quick=()
[[ "${1:-}" == "--quick" ]] && quick=(--quick)
python="${PYTHON:-python3}"
results="${GPU_RESULTS:-$(mktemp -d)}"
mkdir -p "$results"
names=() outcomes=() seconds=() jobs=()
tools=(memcheck racecheck initcheck synccheck)

run() { # name, command ...
    local name="$1" begin=$SECONDS code=0
    shift
    printf '\n== %s\n' "$name"
    "$@" 2>&1 | tee "$results/${name// /-}.log" | tail -n 25
    code="${PIPESTATUS[0]}"
    names+=("$name")
    seconds+=($((SECONDS - begin)))
    if [[ "$code" == 0 ]]; then outcomes+=("passed"); else outcomes+=("FAILED ($code)"); fi
}

absent() { names+=("$1"); outcomes+=("not run: $2"); seconds+=(0); }

run "doctor" "$python" -m sparse_embed doctor
if ! "$python" -c 'from sparse_embed.device import check_cuda; check_cuda(0)'; then
    echo "no GPU can be used here; nothing was tested"
    exit 1
fi
# pytest-benchmark warns when it meets xdist, and warnings are errors here.
pytest=("$python" -m pytest -q -p no:benchmark)
workers=()
"$python" -c 'import xdist' 2>/dev/null && workers=(-n "$(nproc)")
run "tests" "${pytest[@]}" "${workers[@]}" -m cuda tests/gpu
run "ptx" "${pytest[@]}" "${workers[@]}" tests/gpu/test_ptx.py

sanitizer="$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | tail -1)"
if [[ -n "${quick[*]}" ]]; then
    absent "sanitizer" "--quick"
elif [[ -z "$sanitizer" ]]; then
    absent "sanitizer" "no compute-sanitizer on this machine"
else
    # A part that launches every kernel: the whole would take hours under its instruments.  The
    # kernels are compiled by now; the tools run beside each other.
    some="not hot_rows and not zipf and not random_rows"
    begin=$SECONDS
    for tool in "${tools[@]}"; do
        timeout 600 "$sanitizer" --tool "$tool" --error-exitcode 9 "${pytest[@]}" -x \
            -m "cuda and not slow" -k "$some" tests/gpu/test_operations.py \
            tests/gpu/test_device_cache.py tests/gpu/test_device_recommend.py \
            >"$results/sanitizer-$tool.log" 2>&1 &
        jobs+=($!)
    done
    for i in "${!tools[@]}"; do
        code=0
        wait "${jobs[$i]}" || code=$?
        tail -n 3 "$results/sanitizer-${tools[$i]}.log"
        names+=("sanitizer ${tools[$i]}")
        seconds+=($((SECONDS - begin)))
        if [[ "$code" == 0 ]]; then outcomes+=("passed"); else outcomes+=("FAILED ($code)"); fi
    done
fi
run "benchmark" "$python" -m benchmarks run "${quick[@]}" --json "$results/cuda.json" cuda

printf '\n%-24s %-44s %8s\n' "what" "outcome" "seconds"
failed=0
for i in "${!names[@]}"; do
    printf '%-24s %-44s %8s\n' "${names[$i]}" "${outcomes[$i]}" "${seconds[$i]}"
    [[ "${outcomes[$i]}" == FAILED* ]] && failed=1
done
echo "logs: $results"
exit "$failed"
