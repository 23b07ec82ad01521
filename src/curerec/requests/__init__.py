"""Deletion requests as a service: a ledger, crash-safe stages, an atomic commit and a chain of records.

``store`` (the folder) -> ``ledger`` (SQLite) -> ``runner`` (stages by ``engine``) -> ``gate`` -> ``commit``
-> ``chain`` (records), checked from outside by ``audit``; after a kill ``recovery``. Models are loaded by
``engine`` with ``opening`` (the version in force) and ``judging`` (the verdict), and by ``making`` (a new
store); the rest needs no torch.
"""
