"""What the library has to tell a user that is no error, as warnings of one category, so that they can be filtered."""

from __future__ import annotations

import warnings


class Notice(UserWarning):
    """A result is valid, but not quite what its reader may take it for."""


def notify(message: str) -> None:
    """Warn once for each place and message that this happens in; the commands print it as one line on stderr."""
    warnings.warn(message, Notice, stacklevel=3)
