"""twinflow beside other engines on the same machine: `python -m benchmarks.peers`.

contestants.py  who takes part, and how each is started
engines/        one process for each contestant, in an environment of its own
child.py        such a process, as seen from here
race.py         decode and prefill, all contestants in turns
served.py       HTTP servers under the same load, in turns
limits.py       what the machine could do at best
report.py       table and picture
setup.py        makes the environments of the others

Checks no results beyond what the first tokens are: tests do.
"""
