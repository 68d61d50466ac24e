"""Figures and the self-contained report, from results as plain data; ``report.figures`` also draws result objects."""

from safecircuits.report.figures import save_figures
from safecircuits.report.html import write_report

__all__ = ["save_figures", "write_report"]
