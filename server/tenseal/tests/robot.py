"""The robot's half of CKKS, made with TenSEAL: keys, encryption, decryption.

`python -m tests.robot make MODEL DIRECTORY` writes keys and inputs of a session,
`python -m tests.robot read MODEL DIRECTORY` what its results say: see `main`.
"""

import json
import sys
import tempfile
from pathlib import Path

import tenseal as ts
from tenseal import sealapi

from moai_tenseal import wire
from moai_tenseal.contexts import Context
from moai_tenseal.models import Model


def saved(thing: object) -> bytes:
    """Return a SEAL object's bytes; TenSEAL can only save it to a file."""
    with tempfile.NamedTemporaryFile() as file:
        thing.save(file.name)  # type: ignore[attr-defined]
        return Path(file.name).read_bytes()


class Robot:
    """One session's secret key."""

    def __init__(self, context: Context, private: ts.Context | None = None) -> None:
        self.context = context
        if private is not None:
            self.private = private
            return
        kinds = ts.ENCRYPTION_TYPE
        self.private = ts.context(
            ts.SCHEME_TYPE.CKKS,
            context.poly_modulus_degree,
            coeff_mod_bit_sizes=list(context.coeff_mod_bit_sizes),
            encryption_type=kinds.ASYMMETRIC if context.public_key else kinds.SYMMETRIC,
        )
        self.private.global_scale = context.global_scale

    def generate_keys(self, rotations: tuple[int, ...] | None = None) -> list[tuple[int, object]]:
        """Make the keys that the context has; each with its field in TenSEAL's message."""
        context, seal = self.context, self.private.seal_context().data
        generator = sealapi.KeyGenerator(seal, self.private.secret_key().data)
        elements = context.galois_elements
        if rotations is not None:
            modulus = 2 * context.poly_modulus_degree
            elements = frozenset(pow(3, step % context.slots, modulus) for step in rotations)
        keys: list[tuple[int, object]] = []
        if context.public_key:
            public_key = sealapi.PublicKey()
            generator.create_public_key(public_key)
            keys.append((1, public_key))
        if context.relinearisation_keys:
            relin_keys = sealapi.RelinKeys()
            generator.create_relin_keys(relin_keys)
            keys.append((4, relin_keys))
        galois_keys = sealapi.GaloisKeys()
        generator.create_galois_keys(sorted(elements), galois_keys)
        keys.append((5, galois_keys))
        return keys

    def evaluation_keys(self, rotations: tuple[int, ...] | None = None) -> bytes:
        """Return the public context with exactly the keys that the context has."""
        context, seal = self.context, self.private.seal_context().data
        fields: dict[int, wire.Value] = {2: 7, 3: context.global_scale}
        fields |= {number: saved(key) for number, key in self.generate_keys(rotations)}
        public = b"".join(wire.field(number, fields[number]) for number in sorted(fields))
        parameters = saved(seal.key_context_data().parms())
        kind = b"" if context.public_key else wire.field(4, 1)
        return wire.field(1, parameters) + wire.field(2, public) + kind

    def encrypt(self, model: Model, windows: list[list[float]]) -> bytes:
        """Return a job's body: the inputs of windows, one block each."""
        padding = [0.0] * (model.block - len(model.features))
        values = [value for inputs in windows for value in [*inputs, *padding]]
        return bytes(ts.ckks_vector(self.private, values).serialize())

    def decrypt(self, model: Model, data: bytes) -> list[list[float]]:
        """Return the scores of each window in a result's body."""
        vector = wire.Vector.decode(data)
        slots = []
        for ciphertext in vector.ciphertexts:
            whole = wire.Vector(self.context.slots, (ciphertext,), vector.scale)
            slots.append(ts.ckks_vector_from(self.private, whole.encode()).decrypt())
        if model.method == "matmul":
            return [list(slots[0][: len(model.labels) - 1])]
        starts = range(0, vector.size, model.block)
        return [[score[start] for score in slots] for start in starts]


def main(command: str, name: str, directory: Path) -> None:
    """Make a session's `keys` and an `input-N` for N of the recordings; or read `result-N`.

    Reading prints as JSON, for each result there is, what it says and what the model says in
    the clear.
    """
    from moai_tenseal import models

    from . import data

    model = models.load(Path(__file__).parents[1] / "models")[name]
    secret = directory / "secret"
    windows = data.windows()[::40]
    if command == "make":
        robot = Robot(model.context)
        secret.write_bytes(robot.private.serialize(save_secret_key=True))
        (directory / "keys").write_bytes(robot.evaluation_keys())
        for number, samples in enumerate(windows):
            body = robot.encrypt(model, [model.inputs(samples)])
            (directory / f"input-{number}").write_bytes(body)
        return
    robot = Robot(model.context, ts.context_from(secret.read_bytes()))
    answers = []
    for number, samples in enumerate(windows):
        result = directory / f"result-{number}"
        if not result.exists():
            continue
        (scores,) = robot.decrypt(model, result.read_bytes())
        expected = model.scores(model.inputs(samples))
        worst = max(abs(a - b) for a, b in zip(scores, expected, strict=True))
        answers.append(
            {
                "label": model.label(scores),
                "expected": model.label(expected),
                "is_exact": worst < model.error,
            }
        )
    print(json.dumps(answers))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
