"""Parts of `benchmarks.speculative`: tasks, arms, serving, stages of drafting, reports."""
