"""How well each refusal detector agrees with people who read the completions."""
