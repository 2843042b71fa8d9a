"""Measure TenSEAL on this machine, and print JSON.

    python -m tools.bench [--rounds N] [CONTEXT …]

Each context is measured in a process of its own, so that its peak of memory is its own. Times are
medians, in seconds of CPU time of the process, with one thread. `*_wall` is by the clock on the wall.

What is measured, for each context:

- `context`: making TenSEAL's context, with a secret key;
- `keys`: making the Galois keys that the context needs, and what else it has;
- `all_galois_keys`: making SEAL's default set instead, which is what TenSEAL makes by itself;
- `serialise_keys`: writing evaluation keys as bytes, with TenSEAL's own compression;
- `encrypt`: encoding and encrypting one vector, and writing its bytes;
- `decrypt`: reading the bytes of a result at the last level, decrypting and decoding it;
- `reparse`: the client pattern of MOAI, which reads its context from bytes for every encryption: that
  context has the secret key, so TenSEAL makes evaluation keys anew each time;
- bytes of evaluation keys with the needed and with the default set, of an input and of a result;
- peak of resident memory, in bytes, before and after keys were made and written.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import tenseal as ts

from moai_tenseal.contexts import Context
from tests.robot import Robot

MATMUL = (-8, -4, -2, -1, 1, 2, 4, 8, 16, 32)
MATMUL_64 = (-32, -16, *MATMUL, 64)
CONTEXTS = {
    # The contexts of the models that are served.
    "failure-linear": Context(4096, (33, 28, 45), 268369921.0, False, False, (1, 2, 4, 8, 16)),
    "grasp-linear": Context(4096, (37, 32, 37), 4294828033.0, True, False, MATMUL),
    "grasp-mlp": Context(8192, (50, 35, 35, 35, 50), 2.0**35, True, True, MATMUL),
    # MOAI's profiles, with the keys of a linear model of 64 inputs.
    "standard": Context(8192, (60, 40, 40, 60), 2.0**40, True, False, MATMUL_64),
    "high": Context(16384, (60, 40, 40, 40, 40, 60), 2.0**40, True, True, MATMUL_64),
}
VALUES = 24


def measured(rounds: int, operation: Callable[[], object]) -> dict[str, float]:
    """Return median CPU and wall seconds of an operation, after one run to warm up."""
    operation()
    cpu, wall = [], []
    for _ in range(rounds):
        start, begin = time.perf_counter(), time.process_time()
        operation()
        cpu.append(time.process_time() - begin)
        wall.append(time.perf_counter() - start)
    return {"cpu": statistics.median(cpu), "wall": statistics.median(wall)}


def peak() -> int:
    """Return the peak of resident memory so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def new_context(context: Context) -> ts.Context:
    """Make a private context as TenSEAL's users do."""
    kinds = ts.ENCRYPTION_TYPE
    made = ts.context(
        ts.SCHEME_TYPE.CKKS,
        context.poly_modulus_degree,
        coeff_mod_bit_sizes=list(context.coeff_mod_bit_sizes),
        encryption_type=kinds.ASYMMETRIC if context.public_key else kinds.SYMMETRIC,
        n_threads=1,
    )
    made.global_scale = context.global_scale
    return made


def last_level(robot: Robot) -> bytes:
    """Return a vector at the last level: every product drops a prime."""
    vector = ts.ckks_vector(robot.private, [0.5] * VALUES)
    for _ in range(robot.context.data_primes - 1):
        vector = vector * 1.0
    return bytes(vector.serialize())


def measure(context: Context, rounds: int) -> dict[str, object]:
    """Measure one context."""
    few = max(2, rounds // 5)
    robot = Robot(context, new_context(context))
    values = [0.01 * index for index in range(VALUES)]
    empty = peak()
    figures: dict[str, object] = {
        "context": measured(few, lambda: new_context(context)),
        "encrypt": measured(
            rounds, lambda: ts.ckks_vector(robot.private, values).serialize()
        ),
    }
    result = last_level(robot)
    figures["decrypt"] = measured(
        rounds, lambda: ts.ckks_vector_from(robot.private, result).decrypt()
    )
    sizes = {
        "input_bytes": len(ts.ckks_vector(robot.private, values).serialize()),
        "result_bytes": len(result),
        "key_bytes": len(robot.evaluation_keys()),
        "peak_before_keys": empty,
        "peak_after_needed_keys": peak(),
    }
    figures["keys"] = measured(few, robot.generate_keys)
    figures["all_galois_keys"] = measured(few, robot.private.generate_galois_keys)
    if context.relinearisation_keys:
        robot.private.generate_relin_keys()
    written: list[int] = []
    figures["serialise_keys"] = measured(few, lambda: written.append(_whole(robot)))
    sizes |= {"all_key_bytes": written[-1], "peak_after_all_keys": peak()}

    private = robot.private.serialize(save_secret_key=True)

    def reparse() -> object:
        return ts.ckks_vector(ts.context_from(private, n_threads=1), values).serialize()

    figures["reparse"] = measured(few, reparse)
    return {"parameters": context.fields(), **figures, **sizes}


def _whole(robot: Robot) -> int:
    """Return the length of the public context with TenSEAL's own set of keys."""
    return len(
        robot.private.serialize(
            save_public_key=robot.context.public_key,
            save_secret_key=False,
            save_galois_keys=True,
            save_relin_keys=robot.context.relinearisation_keys,
        )
    )


def processor() -> str:
    """Name the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def main() -> None:
    """Measure each context in a process of its own, or be that process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("contexts", nargs="*", choices=[[], *CONTEXTS], metavar="CONTEXT")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--only", choices=list(CONTEXTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(CONTEXTS[arguments.only], arguments.rounds)))
        return
    found = {}
    for name in arguments.contexts or CONTEXTS:
        command = [sys.executable, "-m", "tools.bench", "--only", name]
        command += ["--rounds", str(arguments.rounds)]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        found[name] = json.loads(run.stdout)
    report = {"tenseal": version("tenseal"), "processor": processor(), "contexts": found}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
