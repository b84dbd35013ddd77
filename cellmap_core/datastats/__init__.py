"""Auto3DSeg data statistics: one case, the reduce over cases, what they mean."""
