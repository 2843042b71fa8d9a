"""TenSEAL on real keys and readings: what it computes, and what it refuses."""

import random
import unittest
from dataclasses import replace
from functools import cache

from moai_tenseal import engine, models, wire
from moai_tenseal.refusals import Refused

from . import data
from .robot import Robot
from .test_models import DIRECTORY

MODELS = models.load(DIRECTORY)
WINDOWS = data.windows()


@cache
def prepared(name: str) -> tuple[Robot, bytes, engine.Engine, engine.Keys]:
    """Make a robot's keys for a model once."""
    robot = Robot(MODELS[name].context)
    keys = robot.evaluation_keys()
    computer = engine.Engine(MODELS, 1)
    return robot, keys, computer, computer.prepare(MODELS[name].context, keys)


class Evaluation(unittest.TestCase):
    def check(self, name: str, windows: list[list[list[float]]], at_a_time: int) -> None:
        model = MODELS[name]
        robot, evaluation_keys, _, keys = prepared(name)
        self.assertLessEqual(len(evaluation_keys), model.context.max_key_len)
        for start in range(0, len(windows), at_a_time):
            inputs = [model.inputs(samples) for samples in windows[start : start + at_a_time]]
            result = keys.evaluate(name, robot.encrypt(model, inputs))
            self.assertLessEqual(len(result), model.max_result_len)
            scored = robot.decrypt(model, result)
            for values, scores in zip(inputs, scored, strict=True):
                exact = model.scores(values)
                for score, expected in zip(scores, exact, strict=True):
                    self.assertLess(abs(score - expected), model.error)
                self.assertEqual(model.label(scores), model.label(exact))

    def test_a_dot_product_serves_many_windows_at_once(self) -> None:
        self.check("failure-linear", WINDOWS, MODELS["failure-linear"].windows)
        self.check("failure-linear", WINDOWS[:3], 1)

    def test_a_linear_model_with_a_matrix_gives_the_scores_of_the_clear(self) -> None:
        self.check("grasp-linear", WINDOWS[:: len(WINDOWS) // 8], 1)

    def test_a_network_with_squares_gives_the_scores_of_the_clear(self) -> None:
        self.check("grasp-mlp", WINDOWS[:: len(WINDOWS) // 4], 1)

    def test_extreme_inputs_stay_within_the_room_of_the_result(self) -> None:
        for name in ("failure-linear", "grasp-linear"):
            model = MODELS[name]
            robot, _, _, keys = prepared(name)
            (column, *_) = zip(*model.layers[0].weights, strict=True)
            for sign in (-1, 1):
                limit = sign * model.input_limit
                inputs = [limit if weight > 0 else -limit for weight in column]
                result = keys.evaluate(name, robot.encrypt(model, [inputs]))
                score = robot.decrypt(model, result)[0][0]
                self.assertLess(abs(score - model.scores(inputs)[0]), model.error)


class Refusals(unittest.TestCase):
    name = "failure-linear"

    def setUp(self) -> None:
        self.model = MODELS[self.name]
        self.robot, self.keys, self.engine, self.prepared = prepared(self.name)
        self.input = self.robot.encrypt(self.model, [[0.5] * 24])

    def refused(self, call: object, *arguments: object) -> str:
        with self.assertRaises(Refused) as caught:
            call(*arguments)  # type: ignore[operator]
        return f"{caught.exception.code}: {caught.exception.message}"

    def test_keys_of_another_kind_are_refused(self) -> None:
        context = self.model.context
        private = bytes(self.robot.private.serialize(save_secret_key=True))
        other_scale = replace(context, global_scale=2.0**28)
        other_primes = replace(context, coeff_mod_bit_sizes=(33, 28, 44))
        for what, context_of_keys, keys in (
            ("secret key", context, private),
            ("Galois keys", context, self.robot.evaluation_keys((1, 2, 4, 8))),
            ("Galois keys", context, self.robot.evaluation_keys((1, 2, 4, 8, 16, 32))),
            ("scale", context, Robot(other_scale).evaluation_keys()),
            ("parameters", context, Robot(other_primes).evaluation_keys()),
            ("keys", MODELS["grasp-linear"].context, self.keys),
            ("", context, self.keys[:-1]),
            ("", context, b""),
        ):
            with self.subTest(what):
                said = self.refused(self.engine.prepare, context_of_keys, keys)
                self.assertTrue(said.startswith("malformed_ciphertext"), said)
                self.assertIn(what, said)

    def test_inputs_that_are_no_fresh_ciphertext_are_refused(self) -> None:
        vector = wire.Vector.decode(self.input)
        (ciphertext,) = vector.ciphertexts
        other = Robot(replace(self.model.context, global_scale=2.0**28))
        foreign = Robot(MODELS["grasp-linear"].context)
        used = self.prepared.evaluate(self.name, self.input)
        for what, data_ in {
            "nothing": b"",
            "no ciphertext": replace(vector, ciphertexts=()).encode(),
            "two ciphertexts": replace(vector, ciphertexts=(ciphertext,) * 2).encode(),
            "no whole window": replace(vector, size=24).encode(),
            "too many windows": replace(vector, size=32 * 65).encode(),
            "another scale outside": replace(vector, scale=2.0**28).encode(),
            "another scale inside": replace(
                vector,
                ciphertexts=wire.Vector.decode(other.encrypt(self.model, [[1.0]])).ciphertexts,
            ).encode(),
            "another context": replace(
                wire.Vector.decode(
                    foreign.encrypt(MODELS["grasp-linear"], [[1.0] * 24])
                ),
                size=32,
                scale=vector.scale,
            ).encode(),
            "a result": replace(wire.Vector.decode(used), size=32).encode(),
            "too long": self.input + bytes(self.model.context.ciphertext_len(2)),
            "an object in place of a ciphertext": replace(
                vector, ciphertexts=(bytes(wire.fields(self.keys)[0][1]),)  # type: ignore[arg-type]
            ).encode(),
        }.items():
            with self.subTest(what):
                said = self.refused(self.prepared.evaluate, self.name, data_)
                self.assertTrue(said.startswith("malformed_ciphertext"), said)

    def test_damaged_inputs_are_refused_or_computed(self) -> None:
        source = random.Random(1)
        for _ in range(200):
            damaged = bytearray(self.input)
            # Where structure is: the message's fields, the header, the first of the body.
            damaged[source.randrange(120)] = source.randrange(256)
            try:
                self.prepared.evaluate(self.name, bytes(damaged))
            except Refused as refused:
                self.assertEqual(refused.code, "malformed_ciphertext")

    def test_a_model_of_another_context_is_unknown(self) -> None:
        for name in ("grasp-linear", "nonesuch"):
            said = self.refused(self.prepared.evaluate, name, self.input)
            self.assertTrue(said.startswith("unknown_model"), said)
