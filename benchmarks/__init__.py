"""Benchmarks of hp_norm_plugin against the implementations that a user could pick instead.

Commands, ``python -m benchmarks.NAME``:

* ``run``: time every provider over the grid (``make bench``)
* ``report``: tables and charts of the documents from the CSVs (``make bench-report``)
* ``check_regression``: what a CSV lost against another (``make bench-check``)
* ``gpu_run``: all that CI cannot run, on all GPUs of a machine
* ``tune``, ``choose``: time every launch configuration of a shape; make launch rules of the times
* ``ncu``: hardware counters of one call
* ``context``: what a norm adds between the matrix products of a model
* ``placement``: at which GPC the grid behind a norm begins, and what a product takes from there

How a cell is measured:

* ``shapes``: the grid, its bands and bounds, the bytes of a cell
* ``provider``, ``providers``, ``peers``: what a provider is; their names; how each is called
* ``cell``: bind, check, time, and the rows of one cell
* ``check``: a result against the contract
* ``timing``: the two protocols and the inputs
* ``stopwatch``: CUDA graphs, events, the order of the measurements
* ``l2``: takes back what a provider asked L2 to keep
* ``compile_ahead``: compiles for all cells in parallel before the first is timed
* ``environment``: commit, device, clocks, driver, versions
* ``terminal``: progress and the table of a run

What is made of the rows:

* ``records``: the CSV and its columns
* ``results``: which of the committed rows count
* ``analysis``, ``stats``: ratios and bounds; means, spreads, balanced orders
* ``tables``, ``charts``: Markdown and PNG

Of ``context`` and ``placement``: ``decoder`` (layers as a CUDA graph), ``step_profile`` (what each
kernel of a graph takes).

Without torch, each beginning with the command that compiles it: ``sweep.cu``, ``cold.cu``,
``floor.cu``, ``locality.cu``, ``placement.cu``; ``launch.cuh`` and ``least.cuh`` are theirs.
"""
