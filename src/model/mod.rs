//! A guest driver and a front-end over ordinary memory, for tests and benches.
