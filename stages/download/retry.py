"""When a failed request is made again, and when a host is no longer asked at all for a while."""

from __future__ import annotations

import math
import random
import re
from collections import OrderedDict
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from stages.download.reasons import FetchError

MAX_DELAY_S = 30.0

# A host that failed like this SAME times running is taken to fail like this for REST_S seconds: its rows get the very failure that asking
# would give, with the host's own reason. Only what is the host's doing and not a path's: connections, and refusals.
HOST_REASONS = frozenset({"connect_refused", "connect_timeout", "connect_error", "http_429"})
SAME, REST_S, HOSTS = 12, 60.0, 20_000


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header asks for (a number, or a date; RFC 9110 10.2.3), None where it says nothing.

    `now`: seconds since 1970. A date in the past gives 0.
    """
    text = (value or "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        return max(0.0, float(parsedate_to_datetime(text).timestamp()) - now)
    except (ValueError, TypeError, OverflowError):
        return None


@dataclass(frozen=True)
class Patience:
    """How often and how long: `retries` after the first try; a time-out is tried once more at most, since it cost the most."""

    retries: int
    backoff_s: float
    retry_after_max_s: float

    def delay(self, err: FetchError, tries: int, spread: float | None = None) -> float | None:
        """Seconds to wait after `tries` tries (1 = the first has just failed), None where this failure is final.

        Exponential, with a spread of half to one and a half (`spread` 0 to 1, random if None), never less than the
        server asked for; where it asked for more than retry_after_max_s it is not asked again at all.
        """
        if not err.may_pass or tries > (min(self.retries, 1) if err.reason == "timeout" else self.retries):
            return None
        asked = err.wait_s or 0.0
        if asked > self.retry_after_max_s:
            return None
        spread = random.random() if spread is None else spread
        return max(asked, min(self.backoff_s * 2.0 ** (tries - 1), MAX_DELAY_S) * (0.5 + spread))


@dataclass(slots=True)
class _Run:
    kind: tuple[str, str | None, int | None]
    count: int
    last: float


class Breaker:
    """Remembers hosts that fail the same way every time, for one worker; bounded."""

    def __init__(self) -> None:
        self.runs: OrderedDict[str, _Run] = OrderedDict()

    def check(self, host: str, now: float) -> None:
        """Raises the failure that the host is known for."""
        run = self.runs.get(host)
        if run is None or run.count < SAME:
            return
        if now - run.last > REST_S:
            run.count = SAME - 1  # one request may find out whether it is still so
            run.last = now
            return
        raise FetchError(*run.kind, wait_s=math.inf)

    def failed(self, host: str, err: FetchError, now: float) -> None:
        if err.reason not in HOST_REASONS:
            return self.answered(host)
        kind = (err.reason, err.detail, err.status)
        run = self.runs.get(host)
        if run is None or run.kind != kind:
            self.runs[host] = _Run(kind, 1, now)
        else:
            run.count, run.last = run.count + 1, now
        self.runs.move_to_end(host)
        while len(self.runs) > HOSTS:
            self.runs.popitem(last=False)
        return None

    def answered(self, host: str) -> None:
        if self.runs:
            self.runs.pop(host, None)
