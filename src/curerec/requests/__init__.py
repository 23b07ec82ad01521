"""Deletion requests as a service: a ledger, crash-safe stages, an atomic commit and a chain of records.

``store`` (the folder) -> ``ledger`` (SQLite) -> ``runner`` (stages by ``engine``) -> ``gate`` -> ``commit``
-> ``chain`` (records), checked from outside by ``audit``. Only ``engine`` loads models; the rest imports no
torch.
"""
