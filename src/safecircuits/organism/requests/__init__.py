"""Requests to a language model in ordinary English, and refusals: what the planted real models are taught with."""
