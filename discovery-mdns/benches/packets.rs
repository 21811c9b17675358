//! What a packet costs: read, answered, learned from.

fn main() {}
