//! Raw bindings to the border header.
