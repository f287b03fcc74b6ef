"""A deployment under virtual time: the objects that serve, and a cost model in place of a device.

traces.py, arrivals.py, lengths.py   what is asked, and when; load tests use them too
config.py      what is simulated
workload.py    requests from traces, distributions and a seed
agenda.py      events in order of time
worker.py      an engine whose executor takes no time, and a clock that does
lanes.py       two lanes of one worker
fleet.py       gateways, routers and hand-offs
measures.py    latencies, goodput, use of devices
report.py, plot.py   what is printed and drawn
"""
