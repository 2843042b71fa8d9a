"""The audit log: what happened to whose session, one JSON object a line.

Invariants:
- a line names tenant, robot, session, context, model, times and codes; no key, no
  ciphertext, nothing of a reading;
- the file is only ever appended to and has mode 0600;
- a log that cannot be written stops no service: the failure is in the ordinary log, once
  until writing works again.
"""

import datetime
import json
import logging
import os
import sys
from pathlib import Path

from .names import SessionKey

log = logging.getLogger(__name__)


class Audit:
    """The audit log of one worker."""

    def __init__(self, path: Path | None, worker: str) -> None:
        self._path = path
        self._worker = worker
        self._has_failed = False
        self._descriptor = self._opened()

    def _opened(self) -> int:
        if self._path is None:
            return sys.stdout.fileno()
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def reopen(self) -> None:
        """Open the file again under its name: whoever rotates logs has moved it away."""
        try:
            descriptor = self._opened()
        except OSError as error:
            log.error("the audit log cannot be opened again: %s", error)
            return
        if self._path is not None:
            os.close(self._descriptor)
        self._descriptor = descriptor

    def record(
        self, key: SessionKey, now_ms: int, event: str, context: bytes | None, **facts: object
    ) -> None:
        """Write a line."""
        time = datetime.datetime.fromtimestamp(now_ms // 1000, datetime.timezone.utc)
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "time_ms": now_ms,
            "worker": self._worker,
            "tenant": key.tenant,
            "robot": key.robot,
            "session": key.session,
            "context": None if context is None else context.hex(),
            "event": event,
            **facts,
        }
        try:
            os.write(self._descriptor, json.dumps(line).encode() + b"\n")
        except OSError as error:
            if not self._has_failed:
                log.error("the audit log cannot be written; the service goes on: %s", error)
            self._has_failed = True
        else:
            self._has_failed = False
