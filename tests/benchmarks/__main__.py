"""`python -m tests.benchmarks`: every benchmark of the machine at hand, as one page of tables."""

from tests.benchmarks import bench_conversion, bench_engine

for benchmark in (bench_conversion, bench_engine):
    print(benchmark.run(), flush=True)  # noqa: T201 - the page
