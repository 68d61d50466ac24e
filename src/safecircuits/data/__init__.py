"""Prompts from anywhere: a file, a hub data set, a table, a list, or the embedded language."""
