"""The report of training runs: one HTML page, for a phone as for a wide screen, with nothing from outside."""
