"""``safecircuits layers``: everything of Safety Layers (ICLR 2025) on any model."""

from __future__ import annotations

import typer

from safecircuits.cli.layers import gap, locate, transplant

app = typer.Typer(help="Safety layers: where harmful and harmless prompts diverge, and which layers decide.")
gap.add_to(app)
locate.add_to(app)
transplant.add_to(app)
