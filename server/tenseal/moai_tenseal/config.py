"""The configuration file: that of `moai-server`, where it applies.

Invariant: a Config only exists if the whole file was understood; every mistake is named.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import names
from .store import Budget

DEFAULT_PATH = Path("/etc/moai-server/tenseal.toml")
MAX_FILE_LEN = 1 << 20
LEVELS = ("debug", "info", "warning", "error")


class ConfigError(Exception):
    """A configuration that cannot be used; one line for each mistake."""


@dataclass(frozen=True)
class Tenant:
    """What one tenant may have."""

    models: frozenset[str] | None
    budget: Budget
    max_jobs: int

    def sees(self, model: str) -> bool:
        """Tell whether robots of the tenant may know of a model."""
        return self.models is None or model in self.models


@dataclass(frozen=True)
class Broker:
    """Where the broker is, and the PEM files for mTLS."""

    host: str
    port: int
    ca: Path
    robots_ca: Path
    certificate: Path
    key: Path
    keep_alive: int


@dataclass(frozen=True)
class Config:
    """Everything an operator can set."""

    worker_group: str
    signing_key: Path
    models_directory: Path
    max_ttl: int
    threads: int
    max_prepared: int
    max_waiting_jobs: int
    max_compute_seconds: int
    max_memory_bytes: int
    tenants: Mapping[str, Tenant]
    audit: Path | None
    health: Path | None
    broker: Broker
    log_level: str


class _Section:
    """A table of the file, of which every key has to be asked for."""

    def __init__(self, table: object, path: str, problems: list[str]) -> None:
        if not isinstance(table, dict):
            problems.append(f"`{path}` must be a table")
            table = {}
        self._table: dict[str, object] = dict(table)
        self._path = path
        self._problems = problems

    def _name(self, key: str) -> str:
        return f"`{self._path}.{key}`" if self._path else f"`{key}`"

    def problem(self, key: str, what: str) -> None:
        """Note a mistake."""
        self._problems.append(f"{self._name(key)} {what}")

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text; without a default it has to be there."""
        value = self._table.pop(key, default)
        if isinstance(value, str) and value:
            return value
        self.problem(key, "is missing" if value is None else "must be a text")
        return ""

    def path(self, key: str, default: str | None = None) -> Path:
        """Return a path."""
        return Path(self.text(key, default))

    def maybe_path(self, key: str) -> Path | None:
        """Return a path that may be absent."""
        return self.path(key) if key in self._table else None

    def integer(self, key: str, default: int, least: int, most: int) -> int:
        """Return a number within bounds."""
        value = self._table.pop(key, default)
        if type(value) is int and least <= value <= most:
            return value
        self.problem(key, f"must be {least} to {most}")
        return default

    def choice(self, key: str, default: str, choices: tuple[str, ...]) -> str:
        """Return one of some words."""
        value = self._table.pop(key, default)
        if isinstance(value, str) and value in choices:
            return value
        self.problem(key, f"must be one of {', '.join(choices)}")
        return default

    def texts(self, key: str) -> list[str] | None:
        """Return a list of texts that may be absent."""
        if key not in self._table:
            return None
        value = self._table.pop(key)
        if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
            return value
        self.problem(key, "must be a list of texts")
        return []

    def section(self, key: str) -> "_Section":
        """Return a table; an absent one is empty."""
        name = f"{self._path}.{key}" if self._path else key
        return _Section(self._table.pop(key, {}), name, self._problems)

    def keys(self) -> list[str]:
        """Return the keys that nobody asked for yet."""
        return list(self._table)

    def close(self) -> None:
        """Note every key that nobody asked for."""
        for key in self._table:
            self.problem(key, "is not known")


def load(path: Path) -> Config:
    """Read a configuration file, or raise ConfigError."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_LEN).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return read(text, str(path))


def read(text: str, name: str) -> Config:
    """Return the configuration in a text, or raise ConfigError."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: {error}") from error
    problems: list[str] = []
    config = _build(_Section(table, "", problems))
    if problems:
        raise ConfigError("\n".join(f"{name}: {problem}" for problem in problems))
    return config


def _build(root: _Section) -> Config:
    group = root.text("worker_group")
    if group and not names.is_id(group):
        root.problem("worker_group", "must be 1 to 64 of A-Za-z0-9_-")
    tables = root.section("tenants")
    tenants = {name: _tenant(tables, name) for name in tables.keys()}
    if not tenants:
        root.problem("tenants", "is missing: add a table such as [tenants.acme]")
    audit, health, logs = root.section("audit"), root.section("health"), root.section("log")
    config = Config(
        worker_group=group,
        signing_key=root.path("signing_key"),
        models_directory=root.path("models_directory"),
        max_ttl=root.integer("max_ttl_seconds", 14400, 1, 14400),
        threads=root.integer("threads", 2, 1, 256),
        max_prepared=root.integer("max_prepared", 16, 1, 100_000),
        max_waiting_jobs=root.integer("max_waiting_jobs", 256, 1, 100_000),
        max_compute_seconds=root.integer("max_compute_seconds", 60, 1, 3600),
        max_memory_bytes=root.integer("max_memory_bytes", 4 << 30, 512 << 20, 1 << 50),
        tenants=tenants,
        audit=audit.maybe_path("path"),
        health=health.maybe_path("path"),
        broker=_broker(root.section("broker")),
        log_level=logs.choice("level", "info", LEVELS),
    )
    for section in (root, audit, health, logs):
        section.close()
    return config


def _tenant(tables: _Section, name: str) -> Tenant:
    section = tables.section(name)
    if not names.is_name(name):
        tables.problem(name, "must be 1 to 32 of a-z0-9-")
    models = section.texts("models")
    tenant = Tenant(
        models=None if models is None else frozenset(models),
        budget=Budget(
            sessions=section.integer("max_sessions", 64, 1, 1_000_000),
            bytes=section.integer("max_bytes", 4 << 30, 1, 1 << 50),
        ),
        max_jobs=section.integer("max_jobs", 64, 1, 100_000),
    )
    section.close()
    return tenant


def _broker(section: _Section) -> Broker:
    directory = "/etc/moai-server"
    ca = section.path("ca", f"{directory}/ca.pem")
    host = section.text("host")
    if host and not re.fullmatch(r"[A-Za-z0-9.:-]{1,253}", host):
        section.problem("host", "must be a host's name")
    broker = Broker(
        host=host,
        port=section.integer("port", 8883, 1, 65535),
        ca=ca,
        robots_ca=section.maybe_path("robots_ca") or ca,
        certificate=section.path("certificate", f"{directory}/server.pem"),
        key=section.path("key", f"{directory}/server.key"),
        keep_alive=section.integer("keep_alive_seconds", 30, 5, 1200),
    )
    section.close()
    return broker
