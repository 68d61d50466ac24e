"""``safecircuits units``: scores, groups and proofs of SSAH (ICLR 2026) on any model."""

from __future__ import annotations

import typer

from safecircuits.cli.units import groups, proof, sizes, training

app = typer.Typer(help="Safety-critical units: score them, group them, and test the groups by ablation.")
groups.add_to(app)
proof.add_to(app)
sizes.add_to(app)
training.add_to(app)
