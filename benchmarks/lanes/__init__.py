"""Two lanes of one device against one: the arms of `python -m benchmarks.lanes`.

mixed.py      the load: short conversations and long documents
arms.py       what is compared
simulated.py  arms under virtual time on an H100 that is described, not there
report.py     medians over seeds, ratios, table and picture
"""
