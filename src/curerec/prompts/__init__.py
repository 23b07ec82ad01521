"""Prompts: templates, encoding with a span map, counterfactuals."""
