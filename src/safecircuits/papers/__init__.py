"""The two papers from end to end on any model, beside the numbers that they report."""
