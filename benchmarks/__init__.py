"""python -m benchmarks list | run SUITE... | compare A.json B.json | report A.json."""
