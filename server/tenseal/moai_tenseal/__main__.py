"""`python -m moai_tenseal`: run the server, or check its configuration."""

import argparse
import logging
import os
import queue
import secrets
import signal
import sys
import threading
import time
from pathlib import Path

from . import config, link, messages, models, names, trust
from .audit import Audit
from .sandbox import Limits, Outcome, Sandbox
from .service import Clocks, Parts, Service

log = logging.getLogger(__name__)

MAX_EVENTS = 256
SWEEP_SECONDS = 1.0


class _Stop:
    """SIGTERM came."""


class _Failure:
    """A thread ended that must not."""


class _Reopen:
    """SIGHUP came."""


class _Health:
    """The file in which the worker shows that it moves, and whether its broker has it."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.is_connected = False

    def beat(self) -> None:
        """Write, in one step."""
        if self._path is None:
            return
        new = self._path.with_name(self._path.name + ".new")
        try:
            new.write_text("connected" if self.is_connected else "disconnected")
            new.replace(self._path)
        except OSError as error:
            log.error("the health file cannot be written: %s", error)


def _read(path: Path) -> tuple[config.Config, dict[str, models.Model], trust.SigningKey, trust.Robots]:
    settings = config.load(path)
    known = models.load(settings.models_directory)
    for name, tenant in settings.tenants.items():
        for model in tenant.models or ():
            if model not in known:
                raise config.ConfigError(
                    f"the tenant {name} is to see the model {model}, which is not in "
                    f"{settings.models_directory}"
                )
    key = trust.SigningKey.read(settings.signing_key)
    robots = trust.Robots.read(settings.broker.robots_ca)
    for file in (settings.broker.ca, settings.broker.certificate, settings.broker.key):
        if not os.access(file, os.R_OK):
            raise config.ConfigError(f"{file} cannot be read")
    return settings, known, key, robots


def _run(
    settings: config.Config,
    known: dict[str, models.Model],
    signing_key: trust.SigningKey,
    robots: trust.Robots,
) -> int:
    worker = f"w-{secrets.token_hex(8)}"
    events: queue.Queue[object] = queue.Queue(MAX_EVENTS)
    # A handler must not wait for room in the queue that the interrupted thread empties.
    stopping: list[_Stop | _Reopen | _Failure] = []

    def failed(arguments: threading.ExceptHookArgs) -> None:
        log.critical("a thread failed: %r", arguments.exc_value, exc_info=arguments.exc_value)
        stopping.append(_Failure())

    threading.excepthook = failed
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.append(_Stop()))
    signal.signal(signal.SIGHUP, lambda *_: stopping.append(_Reopen()))
    limits = Limits(settings.max_memory_bytes, settings.max_compute_seconds, settings.max_prepared)
    sandbox = Sandbox(settings.models_directory, settings.threads, limits, events.put)
    status = names.worker_status(worker)
    gone = messages.encode_worker_status(worker, False)
    filters = names.worker_filters(settings.worker_group, worker)
    connection = link.Link(settings.broker, worker, filters, (status, gone), link.into(events))
    audit = Audit(settings.audit, worker)
    service = Service(
        Parts(
            worker=worker,
            config=settings,
            models=known,
            signing_key=signing_key,
            robots=robots,
            computer=sandbox,
            publisher=connection,
            audit=audit,
            clocks=Clocks(time.time, _boot_time),
        )
    )
    log.info("worker %s serves %s", worker, ", ".join(known))
    connection.start()
    health = _Health(settings.health)
    try:
        return _serve(service, events, stopping, audit, health)
    finally:
        log.info("stopping")
        connection.stop(status, gone)
        sandbox.stop()


def _boot_time() -> float:
    """Seconds since the machine started, whatever the wall clock does, sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _serve(
    service: Service,
    events: "queue.Queue[object]",
    signals: list[_Stop | _Reopen | _Failure],
    audit: Audit,
    health: _Health,
) -> int:
    next_sweep = time.monotonic()
    while True:
        while signals:
            match signals.pop(0):
                case _Stop():
                    return 0
                case _Failure():
                    return 1
                case _Reopen():
                    audit.reopen()
        if time.monotonic() >= next_sweep:
            next_sweep = time.monotonic() + SWEEP_SECONDS
            service.tick()
            health.beat()
        try:
            event = events.get(timeout=0.1)
        except queue.Empty:
            continue
        match event:
            case link.Message(topic, payload):
                service.message(topic, payload)
            case Outcome():
                service.outcome(event)
            case link.Connected():
                log.info("broker link is up")
                health.is_connected = True
                service.announce()
            case link.Disconnected(reason):
                log.warning("broker link is down: %s", reason)
                health.is_connected = False


def main() -> int:
    """Run a subcommand; the exit status is 78 if the configuration is wrong."""
    parser = argparse.ArgumentParser(prog="moai_tenseal", description=__doc__)
    parser.add_argument("--config", type=Path, default=config.DEFAULT_PATH)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="serve until SIGTERM")
    commands.add_parser("check", help="check configuration, models and keys; change nothing")
    arguments = parser.parse_args()
    try:
        read = _read(arguments.config)
    except (config.ConfigError, models.ModelError, trust.KeyFileError) as error:
        print(f"moai_tenseal: {error}", file=sys.stderr)
        return 78
    if arguments.command == "check":
        print(f"{arguments.config}: no problem found; models: {', '.join(read[1])}")
        return 0
    logging.basicConfig(
        level=read[0].log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    os.umask(0o077)
    return _run(*read)


if __name__ == "__main__":
    sys.exit(main())
