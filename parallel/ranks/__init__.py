"""The ranks of one worker: who they are and how they add up what each has computed."""
