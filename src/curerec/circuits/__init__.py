"""Circuits: module scorers, selection of the core circuit, faithfulness, stability."""
