"""Recommender: load safely, score, tune (the only training loop), save."""
