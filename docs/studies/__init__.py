"""Which optimizer trains better, and by how much: one protocol for all methods. `docs/benchmarks/protocol.md` states it."""
