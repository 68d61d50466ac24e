"""Any server that speaks OpenAI's chat format as a callable from text to text: a judge for whoever runs one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from safecircuits.base.processes import of_main


class Endpoint:
    """Asks ``<url>/chat/completions`` one question at a time, greedily; nothing is sent anywhere else.

    Published judges whose template has its model's own turn markers are asked through ``<url>/completions``.

    Args:
        url: of the server's API, such as ``http://localhost:8000/v1``.
        model: the name that the server knows it by.
        key_from: the environment variable that holds the key, if the server wants one. A key is never written down.
        max_tokens: of a reply.
        timeout: in seconds, for one reply.
        extra: more fields of the request, such as ``{"seed": 0}``.

    Raises:
        ValueError: for a URL that is not http(s), or a variable that is not set.

    Examples:
        >>> Endpoint("http://localhost:8000/v1", "judge")
        Endpoint(http://localhost:8000/v1, 'judge')
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_from: str | None = None,
        max_tokens: int = 64,
        timeout: float = 60.0,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise ValueError(f"the endpoint's URL is {url!r}, expected one such as 'http://localhost:8000/v1'")
        if key_from is not None and not os.environ.get(key_from):
            raise ValueError(f"the environment variable {key_from!r}, which holds the endpoint's key, is not set")
        self.url, self.model, self.key_from = url.rstrip("/"), model, key_from
        self.max_tokens, self.timeout, self.extra = max_tokens, timeout, dict(extra or {})
        self.__name__ = f"{model} at {self.url}"

    def __repr__(self) -> str:
        return f"Endpoint({self.url}, {self.model!r})"

    def __call__(self, question: str) -> str:
        """The reply's text.

        Raises:
            RuntimeError: if there is none: the server does not answer in time, refuses, or replies in another format.
        """
        return self.converse([{"role": "user", "content": question}])

    def converse(self, messages: Sequence[Mapping[str, str]], max_tokens: int | None = None) -> str:
        """The reply to a conversation, with a system message or answers in it; raises as a call does.

        Args:
            messages: with ``role`` and ``content``.
            max_tokens: of this reply.
        """
        answered = self._post("chat/completions", {"messages": list(messages)}, max_tokens)
        return self._text(answered, "message", "content")

    def complete(self, text: str, max_tokens: int | None = None) -> str:
        """What goes on after a text that has its model's turn markers, by ``<url>/completions``; raises as a call does.

        Args:
            text: goes to the model as it stands.
            max_tokens: of this reply.
        """
        return self._text(self._post("completions", {"prompt": text}, max_tokens), "text")

    def _post(self, path: str, asked: Mapping[str, Any], max_tokens: int | None) -> Any:
        limit = self.max_tokens if max_tokens is None else max_tokens
        body = {"model": self.model, **asked, "max_tokens": limit, "temperature": 0, **self.extra}
        headers = {"Content-Type": "application/json"}
        if self.key_from is not None:
            headers["Authorization"] = f"Bearer {os.environ[self.key_from]}"
        request = Request(f"{self.url}/{path}", json.dumps(body).encode(), headers)
        return of_main(lambda: self._reply_to(request))  # of several processes one asks, and one pays

    def _reply_to(self, request: Request) -> Any:
        try:
            with urlopen(request, timeout=self.timeout) as reply:
                return json.loads(reply.read())
        except HTTPError as error:
            said = error.read(300).decode(errors="replace")
            raise RuntimeError(f"{self.url} answers {error.code} {error.reason}: {said}") from error
        except (URLError, TimeoutError, ConnectionError) as error:
            raise RuntimeError(f"{self.url} gives no reply within {self.timeout:g} s: {error}") from error
        except ValueError as error:
            raise RuntimeError(f"{self.url} replies with something that is no JSON: {error}") from error

    def _text(self, answered: Any, *place: str) -> str:
        try:
            text = answered["choices"][0]
            for key in place:
                text = text[key]
        except (KeyError, IndexError, TypeError) as error:
            raise RuntimeError(
                f"{self.url} replies without choices[0].{'.'.join(place)}: {str(answered)[:300]}"
            ) from error
        if not isinstance(text, str):
            raise RuntimeError(f"{self.url} replies with no text: {str(answered)[:300]}")
        return text
