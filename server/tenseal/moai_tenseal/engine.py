"""What computes on ciphertext: TenSEAL, on keys and inputs that nobody trusts.

Runs in a process of its own, see `sandbox`.

Invariants:
- keys are used only if parameters, scale and the set of keys are exactly the context's;
- an input is used only if it is a fresh ciphertext of the context;
- what rescaling leaves of a scale that TenSEAL then overwrites is made up for in the weights,
  so that scores come out exact but for noise.
"""

import math
from collections.abc import Mapping

import tenseal as ts
from tenseal import sealapi

from . import wire
from .contexts import Context
from .models import Layer, Model
from .refusals import Refused


class Engine:
    """The models, ready for inputs."""

    def __init__(self, models: Mapping[str, Model], threads: int) -> None:
        self._threads = threads
        self._seal = {
            model.context: sealapi.SEALContext(_parameters(model.context), True, _LEVEL)
            for model in models.values()
        }
        self._models = {model.id: _Ready(model, _primes(self._seal, model)) for model in models.values()}

    def prepare(self, context: Context, data: bytes) -> "Keys":
        """Return evaluation keys of a context ready for use, or refuse."""
        try:
            wire.check_keys(data, context)
            loaded = ts.context_from(data, n_threads=self._threads)
        except (ValueError, RuntimeError) as error:
            raise _malformed("the keys", error) from error
        expected = self._seal[context]
        seal = loaded.seal_context().data
        galois = loaded.galois_keys().data if loaded.has_galois_keys() else None
        conditions = (
            (loaded.is_public(), "they hold a secret key"),
            (seal.key_parms_id() == expected.key_parms_id(), "they have other parameters"),
            (loaded.global_scale == context.global_scale, "they have another scale"),
            # `wire` saw that those are absent that the context has not.
            (not context.public_key or loaded.has_public_key(), "they lack the public key"),
            (
                not context.relinearisation_keys or loaded.has_relin_keys(),
                "they lack the relinearisation keys",
            ),
            (
                galois is not None
                and galois.size() == len(context.galois_elements)
                and all(galois.has_key(element) for element in context.galois_elements),
                "they have other Galois keys than the context",
            ),
        )
        for holds, problem in conditions:
            if not holds:
                raise _malformed("the keys", problem)
        return Keys(self, context, loaded)

    def ready(self, model: str) -> "_Ready":
        """Return a model that is there, or refuse."""
        if model not in self._models:
            raise Refused("unknown_model", f"there is no model {model}")
        return self._models[model]


class Keys:
    """Evaluation keys of one session."""

    def __init__(self, engine: Engine, context: Context, loaded: ts.Context) -> None:
        self._engine = engine
        self._context = context
        self._loaded = loaded

    def evaluate(self, model: str, data: bytes) -> bytes:
        """Return the encrypted result of a model on an encrypted input, or refuse."""
        ready = self._engine.ready(model)
        if ready.model.context != self._context:
            raise Refused("unknown_model", f"the model {model} is of another context")
        try:
            vector = wire.check_input(
                data, self._context, ready.model.block, ready.model.windows
            )
            loaded = ts.ckks_vector_from(self._loaded, vector.encode())
            self._check_fresh(loaded)
        except (ValueError, RuntimeError) as error:
            raise _malformed("the input", error) from error
        is_dot = ready.model.method == "dot"
        result = ready.dot(self, vector) if is_dot else ready.matmul(self, loaded)
        return result.encode()

    def _check_fresh(self, vector: ts.CKKSVector) -> None:
        (ciphertext,) = vector.ciphertext()
        seal = self._loaded.seal_context().data
        conditions = (
            (ciphertext.size() == 2, "a fresh ciphertext has two polynomials"),
            (ciphertext.is_ntt_form(), "it is not in NTT form"),
            (ciphertext.parms_id() == seal.first_parms_id(), "it is not at the first level"),
            (ciphertext.scale == self._context.global_scale, "its scale is another"),
            (not ciphertext.is_transparent(), "it is transparent: it hides nothing"),
        )
        for holds, problem in conditions:
            if not holds:
                raise ValueError(problem)

    def resized(self, vector: wire.Vector, size: int) -> ts.CKKSVector:
        """Return the same ciphertext as a vector of another number of values."""
        same = wire.Vector(size, vector.ciphertexts, vector.scale)
        return ts.ckks_vector_from(self._loaded, same.encode())


class _Ready:
    """A model with its weights as the scheme needs them."""

    def __init__(self, model: Model, primes: list[int]) -> None:
        self.model = model
        self.layers: list[tuple[list[list[float]], list[float]]] = []
        context = model.context
        self._slots = context.slots
        left = primes[: context.data_primes]
        for index, layer in enumerate(model.layers):
            # A product, and before all but the first a square: each drops the last prime left.
            dropped = [left.pop() for _ in range(2 if index else 1)]
            factor = math.prod(prime / context.global_scale for prime in dropped)
            self.layers.append(_scaled(layer, factor))

    def matmul(self, keys: Keys, vector: ts.CKKSVector) -> wire.Vector:
        """Compute on a vector that holds one window."""
        for index, (weights, bias) in enumerate(self.layers):
            if index:
                vector.square_()
            vector.matmul_(weights)
            # A product repeats its values over all slots, which the next one relies on; a sum
            # with a vector of that length would change the first of them only.
            vector = keys.resized(wire.Vector.decode(vector.serialize()), self._slots)
            repeats = -(-self._slots // len(bias))
            vector.add_((bias * repeats)[: self._slots])
            vector = keys.resized(wire.Vector.decode(vector.serialize()), len(bias))
        return wire.Vector.decode(vector.serialize())

    def dot(self, keys: Keys, vector: wire.Vector) -> wire.Vector:
        """Compute on a vector of windows, block by block, all at once."""
        model, slots = self.model, self._slots
        ((weights, bias),) = self.layers
        ciphertexts: list[bytes] = []
        for score, offset in enumerate(bias):
            column = [row[score] for row in weights]
            column += [0.0] * (model.block - len(column))
            scored = keys.resized(vector, slots)
            scored.mul_(column * (slots // model.block))
            # The sum over a block adds this up to the bias.
            scored.add_([offset / model.block] * slots)
            # As a vector of one block it is summed within each block.
            summed = keys.resized(wire.Vector.decode(scored.serialize()), model.block)
            summed.sum_()
            ciphertexts += wire.Vector.decode(summed.serialize()).ciphertexts
        return wire.Vector(vector.size, tuple(ciphertexts), vector.scale)


_LEVEL = sealapi.SEC_LEVEL_TYPE.TC128


def _parameters(context: Context) -> sealapi.EncryptionParameters:
    degree = context.poly_modulus_degree
    parameters = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
    parameters.set_poly_modulus_degree(degree)
    sizes = list(context.coeff_mod_bit_sizes)
    parameters.set_coeff_modulus(sealapi.CoeffModulus.Create(degree, sizes))
    return parameters


def _primes(seal: Mapping[Context, sealapi.SEALContext], model: Model) -> list[int]:
    parameters = seal[model.context].key_context_data().parms()
    return [modulus.value() for modulus in parameters.coeff_modulus()]


def _scaled(layer: Layer, factor: float) -> tuple[list[list[float]], list[float]]:
    return [[weight * factor for weight in row] for row in layer.weights], list(layer.bias)


def _malformed(what: str, problem: object) -> Refused:
    return Refused("malformed_ciphertext", f"{what} cannot be used: {problem}")
