"""From a stored record to `record.json` and one self-contained `report.html`; no torch here."""
