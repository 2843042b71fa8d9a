"""Write golden vectors of the TenSEAL that runs this: what it made, and what that says.

    python -m tools.golden DIRECTORY [--without-keys]

writes `DIRECTORY/VERSION/`; `ckks/tests/golden/README.md` says what the files hold. Keys and
noise are random: every run writes other bytes that say the same.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import tenseal as ts

from moai_tenseal.contexts import Context
from tests.robot import Robot

# Small, for files that are committed; room for values below 16. The scale is the second prime,
# so rescaling is exact. One rotation sums two values.
CONTEXT = Context(4096, (33, 28, 45), 268369921.0, False, False, (1,))
VALUES = [1.5, -2.25]
WEIGHTS = [0.5, 1.25]
BIAS = 0.125
# Noise of this scale stays far below.
TOLERANCE = 0.0005


def write(directory: Path, with_keys: bool) -> None:
    """Write the files."""
    robot = Robot(CONTEXT)
    keys = robot.evaluation_keys()
    vector = ts.ckks_vector(robot.private, VALUES)
    loaded = ts.ckks_vector_from(ts.context_from(keys), vector.serialize())
    result = loaded.dot(WEIGHTS) + [BIAS]
    exact = sum(v * w for v, w in zip(VALUES, WEIGHTS, strict=True)) + BIAS
    again = ts.ckks_vector_from(robot.private, result.serialize()).decrypt()
    if abs(again[0] - exact) > TOLERANCE:
        raise ValueError(f"{again[0]} instead of {exact}")
    moduli = robot.private.seal_context().data.key_context_data().parms().coeff_modulus()
    facts = {
        "tenseal": version("tenseal"),
        **CONTEXT.fields(),
        "primes": [modulus.value() for modulus in moduli],
        "values": VALUES,
        "weights": WEIGHTS,
        "bias": BIAS,
        "result": exact,
        "decrypted_by_tenseal": again[0],
        "tolerance": TOLERANCE,
    }
    directory.mkdir(parents=True, exist_ok=True)
    secret = robot.private.serialize(
        save_public_key=False, save_secret_key=True, save_galois_keys=False, save_relin_keys=False
    )
    files = {
        "facts.json": json.dumps(facts, indent=2).encode() + b"\n",
        "secret-context.bin": secret,
        "input.bin": vector.serialize(),
        "result.bin": result.serialize(),
    }
    if with_keys:
        files["evaluation-keys.bin"] = keys
    for name, data in files.items():
        (directory / name).write_bytes(data)
        print(f"{directory / name}: {len(data)} bytes")


if __name__ == "__main__":
    write(Path(sys.argv[1]) / version("tenseal"), "--without-keys" not in sys.argv)
