"""The steps of an engine while they are computed: one at a time, or one on each of two lanes."""
