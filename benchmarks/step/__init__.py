"""Parts of `benchmarks/step_time.py`: workloads, arms, measuring."""
