"""Figures of records and arrays; they know no results."""
