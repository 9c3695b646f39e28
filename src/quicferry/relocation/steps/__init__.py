"""The orchestration that all techniques share, its other end, and its report."""
