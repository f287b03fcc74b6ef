"""Faults on purpose: breaks a deployment at named moments of requests, and judges what came of it.

    faults      what can be done to whom, and when
    plan        which of it a seed does
    load        requests that come whether or not others were answered
    history     what happened, as it was seen from outside
    checker     what must not have happened: pure, and tested against histories that lie
    runner      one fault after the other on a running deployment
    soak        hours in minutes: what grows although nothing should

Nothing of it runs in a deployment that serves; the points where workers fail on order are in
`twinflow.workers.fault_points`.
"""
