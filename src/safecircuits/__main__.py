"""``python -m safecircuits`` is the command ``safecircuits``."""

from safecircuits.cli import app

app()
