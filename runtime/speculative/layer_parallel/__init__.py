"""EasySpec: a drafter whose attention sub-layers are computed side by side (arXiv 2502.02493).

    config   what an operator may choose
    plan     which layers are computed side by side
    share    how a drafter is spread over the ranks
    probe    measures passes and plans at start
    choice   layout and group size from what was measured

The passes themselves are the model's (`runtime.models.decoder`), drafting is
`drafters.draft_model`'s, and `runtime.draft_loading` puts all of it together.
"""
