//! A queue that poll threads burst through while the control thread swaps rings under it.
