"""Shapes of proposals that branch: fixed ones, and such as follow what the drafter is sure of."""
