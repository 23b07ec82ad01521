SCHEMA = "curerec-bench/1"
