"""The configuration file."""

import unittest

from moai_tenseal import config

SMALLEST = "worker_group = 'g'\nmodels_directory = 'm'\nsigning_key = 'k'\n[broker]\nhost = 'b'\n"


class Configuration(unittest.TestCase):
    def test_defaults_are_those_of_the_other_server(self) -> None:
        read = config.read(SMALLEST + "[tenants.acme]\n[tenants.globex]\nmodels = ['grasp']\n", "f")
        acme, globex = read.tenants["acme"], read.tenants["globex"]
        self.assertEqual((acme.budget.sessions, acme.budget.bytes, acme.max_jobs), (64, 4 << 30, 64))
        self.assertTrue(acme.sees("other") and globex.sees("grasp"))
        self.assertFalse(globex.sees("other"))
        self.assertEqual((read.max_ttl, read.broker.port), (14400, 8883))
        self.assertEqual(read.broker.robots_ca, read.broker.ca)

    def test_every_mistake_is_named(self) -> None:
        text = (
            "worker_group = 'a/b'\nthreads = 0\nspeed = 1\n[tenants.Acme]\n[tenants.acme]\n"
            "max_jobs = true\n[log]\nlevel = 'loud'\n"
        )
        with self.assertRaises(config.ConfigError) as caught:
            config.read(text, "f")
        for words in (
            "`worker_group` must",
            "`threads` must",
            "`speed` is not known",
            "`tenants.Acme` must",
            "`tenants.acme.max_jobs` must",
            "`log.level` must",
            "`broker.host` is missing",
            "`signing_key` is missing",
        ):
            self.assertIn(words, str(caught.exception))
        with self.assertRaisesRegex(config.ConfigError, "tenants"):
            config.read(SMALLEST, "f")
        with self.assertRaises(config.ConfigError):
            config.read("no toml", "f")
