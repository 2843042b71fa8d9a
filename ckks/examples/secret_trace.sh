#!/bin/sh
# Whether a branch or an address depends on a secret: runs secret_trace under valgrind's lackey with
# different secrets and compares the traces, which hold the address of every instruction, load and
# store. Equal traces mean that no secret chose where the program went or what it touched.
#
# Needs valgrind. Run in the root of the repository; takes some minutes.
set -eu
cargo build --package moai-ckks --example secret_trace
# The dynamic loader is first, and reads what the kernel drew at random for this process.
LOADER=100000
program=${CARGO_TARGET_DIR:-target}/debug/examples/secret_trace
first=
for secret in a b K z 7; do
    # The process number stands in front of valgrind's own messages, which are no trace.
    # Neither the environment nor the layout of memory may differ either.
    trace=$(env -i setarch -R valgrind --tool=lackey --trace-mem=yes --log-fd=3 \
        "$program" "$secret" 3>&1 1>/dev/null | grep -v '^==' | tail -n "+$LOADER" | sha256sum)
    echo "$secret $trace"
    [ "${first:=$trace}" = "$trace" ] || { echo "the trace depends on the secret" >&2; exit 1; }
done
echo "all traces are the same"
