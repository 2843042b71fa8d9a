"""A TenSEAL peer for one computation: peer.py DIRECTORY OPERATION [ARGUMENTS as JSON].

Reads `context` and `input` (a CKKSVector, or a bare Ciphertext for `rotate`), computes, writes
`result`.
"""

import json
import pathlib
import sys

import tenseal as ts
import tenseal.sealapi as seal

directory = pathlib.Path(sys.argv[1])
operation = sys.argv[2]
arguments = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}


def read(name):
    return (directory / name).read_bytes()


def by_protobuf():
    context = ts.context_from(read("context"), n_threads=1)
    vector = ts.ckks_vector_from(context, read("input"))
    if operation == "echo":
        return vector + [0.0] * vector.size()
    if operation == "dot":
        return vector.dot(arguments["weights"])
    if operation == "matmul":
        return vector.matmul(arguments["matrix"]) + arguments["bias"]
    if operation == "mlp":
        # TenSEAL adds a plain vector to the first slots only, but the second product reads them
        # all: the first bias is a row of the matrix, whose input is 1.
        hidden = vector.matmul(arguments["first"])
        return hidden.square().matmul(arguments["second"]) + arguments["second_bias"]
    raise ValueError(operation)


def by_seal():
    """A weighted sum of each window of `stride` slots, with SEAL's own operations."""
    parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
    parameters.set_poly_modulus_degree(arguments["degree"])
    parameters.set_coeff_modulus([seal.Modulus(prime) for prime in arguments["primes"]])
    context = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)
    ciphertext = seal.Ciphertext()
    ciphertext.load(context, str(directory / "input"))
    keys = seal.GaloisKeys()
    keys.load(context, str(directory / "galois"))
    evaluator, encoder, plain = seal.Evaluator(context), seal.CKKSEncoder(context), seal.Plaintext()
    encoder.encode(arguments["weights"], arguments["scale"], plain)
    evaluator.multiply_plain_inplace(ciphertext, plain)
    evaluator.rescale_to_next_inplace(ciphertext)
    for steps in arguments["rotations"]:
        rotated = seal.Ciphertext()
        evaluator.rotate_vector(ciphertext, steps, keys, rotated)
        evaluator.add_inplace(ciphertext, rotated)
    ciphertext.save(str(directory / "result"))


if operation == "rotate":
    by_seal()
else:
    (directory / "result").write_bytes(by_protobuf().serialize())
