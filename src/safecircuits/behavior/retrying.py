"""Asking a busy server again, by urllib3: which answers that is for, how often, and how long is waited between."""

from __future__ import annotations

from functools import cache
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from urllib3 import BaseHTTPResponse, PoolManager, ProxyManager, Retry
from urllib3.connectionpool import ConnectionPool
from urllib3.exceptions import InvalidHeader, MaxRetryError

BUSY = (429, 503, 529)
"""Statuses of a server that did not begin on the request: too many requests, unavailable, overloaded."""

LONGEST_WAIT = 120.0
"""Seconds; a server that wants to be left alone for longer is not waited for."""


class Patience(Retry):
    """Busy servers alone are asked again: a request that failed otherwise may have been worked on, and paid for."""

    RETRY_AFTER_STATUS_CODES = frozenset(BUSY)

    @classmethod
    def of(cls, retries: int) -> Patience:
        return cls(
            total=retries,
            connect=0,
            read=0,
            other=0,
            allowed_methods=None,
            status_forcelist=BUSY,
            backoff_factor=1.0,
            backoff_max=LONGEST_WAIT,
            raise_on_status=False,
        )

    def get_retry_after(self, response: BaseHTTPResponse) -> float | None:
        """The header's seconds; None where it says something else."""
        try:
            return super().get_retry_after(response)
        except InvalidHeader:
            return None

    def increment(
        self,
        method: str | None = None,
        url: str | None = None,
        response: BaseHTTPResponse | None = None,
        error: Exception | None = None,
        _pool: ConnectionPool | None = None,
        _stacktrace: TracebackType | None = None,
    ) -> Self:
        """What is left; raises where there is no further try, or none so soon."""
        if response is not None and _pool is not None and (self.get_retry_after(response) or 0.0) > LONGEST_WAIT:
            raise MaxRetryError(_pool, str(url))
        return super().increment(method, url, response, error, _pool, _stacktrace)


def connections(url: str) -> PoolManager:
    """What a URL's requests go through: a proxy where the environment names one for it."""
    parts = urlsplit(url)
    direct = parts.hostname is None or proxy_bypass(parts.hostname)
    return _through(None if direct else getproxies().get(parts.scheme))


@cache
def _through(proxy: str | None) -> PoolManager:
    return PoolManager() if proxy is None else ProxyManager(proxy)
