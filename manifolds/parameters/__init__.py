"""Which parameter holds which points: declarations, rows, shards."""
