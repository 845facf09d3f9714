"""What a run measures: every metric is defined once, in `definitions`."""
