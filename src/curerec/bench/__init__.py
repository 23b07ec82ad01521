"""The benchmark: data sets, models, requests, seeds, methods; cell by cell, in as many sittings as it takes.

``plan`` says what is to be done, ``run`` has it done by worker processes and keeps the books, ``work`` does
it, ``summary`` makes one table of the rows. Only ``run`` writes rows; only ``work`` sees models.
"""
