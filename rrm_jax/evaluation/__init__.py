"""Where judging meets ranking: tournaments by a judge, benchmarks, intervals, and reports from runs' own files."""
