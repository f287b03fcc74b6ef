"""EasySpec: a drafter whose attention sub-layers are computed side by side (arXiv 2502.02493).

    config     what an operator may choose
    plan       which layers are computed side by side
    draft_error  how much a plan changes what a drafter says
    choice     layout and group size from measured times and agreement

The passes themselves are the model's (`runtime.models.decoder`), the layouts are a matter of where
its weights are placed (`runtime.models.placement`), and drafting is `drafters.draft_model`'s.
"""
