"""Contexts and models, and the cards that say what they are."""

import copy
import json
import math
import unittest

from moai_tenseal import cbor, models
from moai_tenseal.contexts import Context

from .golden import ROOT

DIRECTORY = ROOT / "server" / "tenseal" / "models"


class Contexts(unittest.TestCase):
    def test_the_documents_example_has_its_id(self) -> None:
        context = Context(4096, (33, 28, 45), 268369921.0, False, False, (1, 2, 4, 8, 16))
        document = (ROOT / "docs" / "protocol.md").read_text()
        self.assertIn(f"has the id `{context.id.hex()}`", document)
        example = "".join(
            next(line for line in document.splitlines() if line.startswith("6d6f6169")).split()
        )
        self.assertEqual(context.canonical().hex(), example)

    def test_every_part_is_in_the_id(self) -> None:
        base = (4096, (33, 28, 45), 2.0**28, False, False, (1, 2))
        changed = [
            (8192, (33, 28, 45), 2.0**28, False, False, (1, 2)),
            (4096, (33, 27, 45), 2.0**28, False, False, (1, 2)),
            (4096, (33, 28, 45), 2.0**27, False, False, (1, 2)),
            (4096, (33, 28, 45), 2.0**28, True, False, (1, 2)),
            (4096, (33, 28, 45), 2.0**28, False, True, (1, 2)),
            (4096, (33, 28, 45), 2.0**28, False, False, (-1, 2)),
        ]
        ids = {Context(*parts).id for parts in [base, *changed]}
        self.assertEqual(len(ids), len(changed) + 1)

    def test_weak_and_impossible_ones_are_refused(self) -> None:
        for parts in (
            (4096, (37, 36, 37), 2.0**28, False, False, (1,)),  # 110 bits
            (2048, (33, 28, 45), 2.0**28, False, False, (1,)),
            (4096, (45, 45), 2.0**28, False, False, (1,)),
            (4096, (33, 19, 45), 2.0**28, False, False, (1,)),
            (4096, (33, 28, 45), math.inf, False, False, (1,)),
            (4096, (33, 28, 45), 2.0**28, False, False, (0,)),
            (4096, (33, 28, 45), 2.0**28, False, False, (2, 1)),
            (4096, (33, 28, 45), 2.0**28, False, False, (2048,)),
            (4096, (33, 28, 45), 2.0**28, False, False, ()),
        ):
            with self.subTest(parts), self.assertRaises(ValueError):
                Context(*parts)


class Models(unittest.TestCase):
    def setUp(self) -> None:
        self.text = (DIRECTORY / "grasp-mlp.json").read_text()

    def test_those_of_the_project_are_served(self) -> None:
        known = models.load(DIRECTORY)
        self.assertEqual(sorted(known), ["failure-linear", "grasp-linear", "grasp-mlp"])
        for model in known.values():
            card = model.card()
            self.assertEqual(cbor.decode(cbor.encode(card)), card)
            self.assertNotIn("layers", card)
            self.assertEqual(card["context"], model.context.id.hex())
            self.assertLess(model.score_limit, 2.0**15)

    def test_no_input_leaves_the_score_limit(self) -> None:
        model = models.load(DIRECTORY)["grasp-mlp"]
        for sign in (-1, 1):
            inputs = [sign * model.input_limit] * len(model.features)
            self.assertLessEqual(max(map(abs, model.scores(inputs))), model.score_limit)

    def test_a_mistake_is_named_by_its_field(self) -> None:
        for path, value, field in (
            (["format"], 2, "format"),
            (["id"], "a/b", "id"),
            (["kind"], "linear", "layers"),
            (["method"], "dot", "method"),
            (["parameters", "coeff_mod_bit_sizes"], [50, 35, 50], "parameters"),
            (["parameters", "rotations"], [1, 2], "rotations"),
            (["parameters", "public_key"], False, "public_key"),
            (["parameters", "relinearisation_keys"], False, "relinearisation_keys"),
            (["parameters", "global_scale"], 2**35, "global_scale"),
            (["window", "samples"], 0, "window.samples"),
            (["features", 0, "channel"], 6, "features.channel"),
            (["features", 0, "divisor"], 0, "features.divisor"),
            (["features", 0, "statistic"], "median", "features.statistic"),
            (["input_limit"], -1, "input_limit"),
            (["block"], 32, "block"),
            (["windows"], 2, "block"),
            (["labels"], ["a"], "labels"),
            (["labels"], ["a", "b"], "layers"),
            (["labels"], ["a", "b", "\n"], "labels"),
            (["precision"], 1e-9, "precision"),
            (["layers", 0, "weights", 0, 0], 1e9, "layers"),
            (["layers", 0, "weights", 0, 0], "1", "layers.weights"),
            (["layers", 0, "bias", 0], math.nan, "layers.bias"),
        ):
            document = json.loads(self.text)
            place = document
            for step in path[:-1]:
                place = place[step]
            place[path[-1]] = copy.copy(value)
            with self.subTest(path), self.assertRaisesRegex(models.ModelError, field):
                models.Model.from_json(json.dumps(document).encode())
        for data in (b"", b"[", b"[]", b"{}", b"[" * 100_000):
            with self.assertRaises(models.ModelError):
                models.Model.from_json(data)
