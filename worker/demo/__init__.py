"""The demonstration: a real Redis, a real worker, and an agent that behaves and misbehaves."""
