"""``safecircuits units``: scores, groups and proofs of SSAH (ICLR 2026) on any model."""

from __future__ import annotations

import typer

from safecircuits.cli.units import groups, proof, sizes, training

app = typer.Typer(help="Safety-critical units: scores, groups, and what shows that a group is what its name says.")
groups.add_to(app)
proof.add_to(app)
sizes.add_to(app)
training.add_to(app)
