"""`twinflow calibrate tpla`: fits transforms of latents to a model and measures what they cost.

    corpus.py     Corpus: a text as windows of tokens, some to calibrate with, others to measure on
    subject.py    Subject: the model, and runners for its ranks
    collecting.py collect_moments: runs the model and adds up moments of its latents
    scoring.py    score_exact, score_against: decode steps of held-out text, compared token by token
    tpla.py       calibrate_tpla: all of it in order
    report.py     QualityReport: what was measured, as JSON and as a table
    plot.py       draw_report: the same as a picture, if matplotlib is there
    measured.py   find_measured: what serving wants to know of a report

`report` and `measured` do not load torch. Nothing here serves, and no weights are changed.
"""
