"""How fast, how large, and beside whom: `make bench`.

`questions/` has one file a question; `contestants/` one a program that is measured, each a process of its own;
`harness` lets them take turns and makes medians of it; `workers` starts and stops them; `models` and `adapter_files`
make what they run; `report` makes the tables, plots and the README's section from the JSON lines in `results/`, where
every machine has a folder.
"""
