"""Identifiers and topics."""

import unittest

from moai_tenseal import names

SESSION = "018f4d2a-7c00-7abc-8def-0123456789ab"


class Topics(unittest.TestCase):
    def test_a_robots_topics_are_understood(self) -> None:
        key = names.SessionKey("acme.robot-1", SESSION)
        up = f"moai/v1/up/acme.robot-1/open/{SESSION}"
        self.assertEqual(names.parse_up(up), names.UpTopic(key, "open", None))
        for kind in ("chunk", "job", "delete", "attest"):
            up = f"moai/v1/up/acme.robot-1/to/w_1/{SESSION}/{kind}"
            self.assertEqual(names.parse_up(up), names.UpTopic(key, kind, "w_1"))
        self.assertEqual((key.tenant, key.robot), ("acme", "robot-1"))

    def test_anything_else_is_none(self) -> None:
        good = f"moai/v1/up/acme.robot-1/to/w/{SESSION}/job"
        for topic in (
            "",
            good + "/",
            good + "/x",
            good.replace("job", "have"),
            good.replace("acme", "Acme"),
            good.replace("acme.", ""),
            good.replace("acme", "a" * 33),
            good.replace("/w/", "/w+/"),
            good.replace("/w/", "//"),
            good.replace("/to/", "/open/"),
            good.replace("up", "down"),
            good.replace("v1", "v2"),
            good.replace("7abc", "4abc"),
            good.replace(SESSION, SESSION.upper()),
            good.replace(SESSION, SESSION.replace("-", "")),
            good.replace("robot-1", "robot-1\n"),
            good.replace("robot-1", "robot-\u0661"),
        ):
            with self.subTest(topic):
                self.assertIsNone(names.parse_up(topic))
