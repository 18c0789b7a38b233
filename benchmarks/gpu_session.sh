#!/usr/bin/env bash
# Everything a machine with a GPU must run, in phases that stand alone and can be repeated alone:
#
#   benchmarks/gpu_session.sh [--dry-run] [--out FOLDER] PHASE…      PHASE: build test bench tune end-to-end, or all
#
#   build        the native libraries in place, for this GPU's architecture   doctor.json
#   test         every op, on every backend, on the GPU and on the CPU        tests.xml
#   bench        every op beside its peers                                    bench.jsonl
#   tune         the tuning table of this GPU                                 <gpu>.json
#   end-to-end   the pre-training step, one pass per history, decoding        end_to_end.json
#
# Each phase is stopped after 8 minutes at the latest. Nothing is downloaded. Results, session.log and summary.tsv (seven
# files) go to FOLDER, else to $OUT, else to runs/gpu_session; a short table comes last. The exit status is 1 where a
# phase failed. --dry-run rehearses all of it on the CPU with tiny sizes and leaves the built libraries alone.
# PYTHON names the interpreter (.venv's, else python3); it needs torch with CUDA, the extras [bench], [model] and pytest.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-}
if [ -z "$python" ]; then
    python=python3
    [ -x "$root/.venv/bin/python" ] && python=$root/.venv/bin/python
fi
phases=(build test bench tune end-to-end)
dry_run=false
out=${OUT:-}
wanted=()

usage() {
    sed -n '4,18p' "${BASH_SOURCE[0]}" | cut -c3- >&2
    exit 2
}

while [ $# -gt 0 ]; do
    case $1 in
        --dry-run) dry_run=true ;;
        --out) [ $# -gt 1 ] || usage; out=$2; shift ;;
        all) wanted=("${phases[@]}") ;;
        build | test | bench | tune | end-to-end) wanted+=("$1") ;;
        *) echo "gpu_session: $1 is no phase, expected one of ${phases[*]} or all" >&2; usage ;;
    esac
    shift
done
[ ${#wanted[@]} -gt 0 ] || usage

mkdir -p "${out:-$root/runs/gpu_session}"
out=$(cd "${out:-$root/runs/gpu_session}" && pwd)
log=$out/session.log
summary=$out/summary.tsv
device=cuda
limit=470
if $dry_run; then
    device=cpu
    limit=120
fi
cd "$root" || exit 1
export PYTHONUNBUFFERED=1 PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

# The GPU's own architecture alone: a third of the time that all of them take.
architecture() {
    local capability
    capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d '. ')
    case $capability in
        '') ;;
        9? | 1??) echo "${capability}a" ;;
        *) echo "$capability" ;;
    esac
}

run_build() {
    if $dry_run; then
        local folder
        folder=$(mktemp -d)
        ARGUS_CUDA=0 "$python" setup.py -q build_ext --build-lib "$folder" --build-temp "$folder/temp" || return
        find "$folder" -name '*.so' -printf '%f\n'
        rm -rf "$folder"
    else
        local chosen
        chosen=${ARGUS_CUDA_ARCHS:-$(architecture)}
        # An empty list would be taken for none asked for, which is right where the driver does not answer.
        ARGUS_CUDA=1 ARGUS_CUDA_ARCHS=$chosen "$python" setup.py -q build_ext --inplace || return
    fi
    "$python" -m argus_kernels.doctor --json "$out/doctor.json" || return
    # A library that was built and cannot be loaded is a failed build.
    "$python" - $device <<'PROGRAM'
import sys
from argus_kernels.core import native

reasons = {name: native.why_not(name) for name in native.LIBRARIES}
print("; ".join(f"{name} {reason or 'loaded'}" for name, reason in reasons.items()))
needed = native.LIBRARIES if sys.argv[1] == "cuda" else ("cpu", "host")
sys.exit(any(reasons[name] for name in needed))
PROGRAM
}

run_test() {
    local tests=(tests/test_ops.py tests/ops tests/test_core.py)
    local options=(-q -p no:cacheprovider --junitxml "$out/tests.xml")
    if $dry_run; then
        tests=(tests/test_ops.py)
        options+=(-k "test_error_rule and pairwise_loss-reference and float32")
    elif "$python" -c 'import xdist' 2>/dev/null; then
        options+=(-n 8 --dist worksteal)
    fi
    OMP_NUM_THREADS=1 "$python" -m pytest "${options[@]}" "${tests[@]}"
}

run_bench() {
    if $dry_run; then
        "$python" -m benchmarks run --suite quick --device cpu --op rowwise_adagrad_ --case rows_16384_of_100k \
            --dtype fp32 --peer eager --visits 1 --json "$out/bench.jsonl"
    else
        "$python" -m benchmarks run --suite full --device cuda --visits 1 --time-budget 400 --json "$out/bench.jsonl"
    fi
}

run_tune() {
    "$python" -m benchmarks tune --out "$out"
    local status=$?
    # 3: no kernel of this tree has configurations to choose from, or (in the rehearsal) there is no GPU.
    if [ $status -eq 3 ]; then
        return 77
    fi
    return $status
}

run_end_to_end() {
    if $dry_run; then
        "$python" -m benchmarks end-to-end --device cpu --rehearse --time-budget 4 --out "$out"
    else
        "$python" -m benchmarks end-to-end --device cuda --time-budget 360 --out "$out"
    fi
}

# timeout(1) runs programs, not functions: a phase is this script again, with the phase's name in GPU_SESSION_PHASE.
if [ -n "${GPU_SESSION_PHASE:-}" ]; then
    "run_${GPU_SESSION_PHASE//-/_}"
    exit
fi

failed=0
rows=()
for phase in "${wanted[@]}"; do
    printf '\n=== %s, %s\n' "$phase" "$(date -u +%FT%TZ)" | tee -a "$log"
    started=$SECONDS
    options=(--out "$out")
    $dry_run && options+=(--dry-run)
    GPU_SESSION_PHASE=$phase timeout --kill-after=10 "$limit" bash "${BASH_SOURCE[0]}" "${options[@]}" "$phase" 2>&1 | tee -a "$log"
    status=${PIPESTATUS[0]}
    case $status in
        0) verdict=passed ;;
        77) verdict="nothing to do" ;;
        124 | 137) verdict="stopped after $limit s"; failed=1 ;;
        *) verdict="failed ($status)"; failed=1 ;;
    esac
    last=$(grep -v '^[[:space:]]*$' "$log" | tail -n 1 | tr '\t' ' ' | cut -c1-100)
    rows+=("$phase"$'\t'"$verdict"$'\t'"$((SECONDS - started)) s"$'\t'"$last")
done

printf '%s\n' "${rows[@]}" >>"$summary"
printf '\n%-12s %-16s %6s  %s\n' phase verdict time 'last line'
printf '%s\n' "${rows[@]}" | while IFS=$'\t' read -r phase verdict time last; do
    printf '%-12s %-16s %6s  %s\n' "$phase" "$verdict" "$time" "$last"
done
echo "results in $out: $(find "$out" -maxdepth 1 -type f -printf '%f ')"
exit $failed
