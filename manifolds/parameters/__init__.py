"""The points of parameters: declarations, rows, shards."""
