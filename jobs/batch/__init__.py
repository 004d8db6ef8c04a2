"""A batch run: its plan, its ledger, what reads, answers and writes its shards."""
