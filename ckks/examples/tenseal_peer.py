"""TenSEAL's half of the bench: a line of JSON in, a line of JSON out.

{"operation": …, "repeats": n} answers the CPU seconds of one operation and the bytes it put out.
"""

import json
import resource
import sys
import time

import tenseal as ts

degree, sizes = json.loads(sys.argv[1]), json.loads(sys.argv[2])
inputs = [((i * 37) % 101) / 50 - 1 for i in range(24)]
matrix = [[((i * 7 + j * 13) % 41) / 20 - 1 for j in range(3)] for i in range(24)]


def made(kind):
    context = ts.context(
        ts.SCHEME_TYPE.CKKS, degree, coeff_mod_bit_sizes=sizes, encryption_type=kind, n_threads=1
    )
    context.global_scale = 2.0 ** sizes[-2]
    return context


asymmetric, symmetric = made(ts.ENCRYPTION_TYPE.ASYMMETRIC), made(ts.ENCRYPTION_TYPE.SYMMETRIC)
asymmetric.generate_galois_keys()
secret = asymmetric.serialize(save_secret_key=True)
# MOAI's client keeps everything in one string, and reads it for every window.
everything = asymmetric.serialize(
    save_public_key=True, save_secret_key=True, save_galois_keys=True, save_relin_keys=True
)
result = ts.ckks_vector(asymmetric, inputs).matmul(matrix).serialize()


def pattern():
    context = ts.context_from(everything, n_threads=1)
    return len(ts.ckks_vector(context, inputs).serialize())


def decrypt():
    ts.ckks_vector_from(asymmetric, result).decrypt()
    return len(result)


def galois():
    # A new context, whose own keys are few; all the rest is Galois keys.
    asymmetric.generate_galois_keys()
    return 0


def galois_bytes():
    asymmetric.generate_galois_keys()
    return len(
        asymmetric.serialize(
            save_public_key=False, save_secret_key=False, save_galois_keys=True, save_relin_keys=False
        )
    )


operations = {
    "galois bytes": galois_bytes,
    "encrypt asymmetric": lambda: len(ts.ckks_vector(asymmetric, inputs).serialize()),
    "encrypt symmetric": lambda: len(ts.ckks_vector(symmetric, inputs).serialize()),
    "decrypt": decrypt,
    "galois": galois,
    "pattern": pattern,
    "context": lambda: len(
        asymmetric.serialize(
            save_public_key=True, save_secret_key=False, save_galois_keys=True, save_relin_keys=True
        )
    ),
    "memory": lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
}
for line in sys.stdin:
    request = json.loads(line)
    operation, repeats = operations[request["operation"]], request["repeats"]
    start = time.process_time()
    for _ in range(repeats):
        output = operation()
    seconds = (time.process_time() - start) / repeats
    print(json.dumps({"seconds": seconds, "bytes": output}), flush=True)
