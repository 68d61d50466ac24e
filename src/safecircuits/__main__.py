"""The command ``safecircuits``, which ``python -m safecircuits`` is, too."""

from __future__ import annotations

import gc


def main() -> None:
    """Run it."""
    # What importing makes stays; looking through it for garbage again and again takes a tenth of the time of a help.
    gc.disable()
    from safecircuits.cli import app

    gc.freeze()
    gc.enable()
    app()


if __name__ == "__main__":
    main()
