"""What both papers report beside what was measured here: the numbers, and the page of them."""
