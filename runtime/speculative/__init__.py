"""Guessing several next tokens of a sequence and checking them in one pass of the model.

    drafters        propose tokens: what they cost and how often they are right is all they decide
    trees           shapes of proposals that branch
    verification    which of the proposed tokens a sequence gets

Nothing here runs the model whose tokens are guessed, and no proposal changes what that model says.
"""
