"""What runs the notebooks in a batch.

batch      order, parallel runs, kills, results put in place      execute   one notebook in a process
cache      which results are up to date (status.json)              verify    are they complete, and the same as before?
report     index.md of the figures                                 doctor    what is missing on this machine?
claims     the paper's statements and their verdicts               ledger    the verdicts as tables
"""
