//! A durable tiered store for content-addressed blocks
